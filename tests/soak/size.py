"""Read, check, sort and tokenise data that memory does not hold; memory must not grow with the rows.

    python tests/soak/size.py RESULTS.jsonl [--minutes 60] [--rows 2000000] [--bytes 5000000000] [--only PART]

Parts, each at a quarter of the size and at the whole of it:
    comparisons-plan   align plan data ... check_data=true, of --rows comparisons in files named train and test
    comparisons-data   align data, of the same
    text-plan          align plan data ... check_data=true, of --bytes of documents
    text-data          align data, of the same
    tokenizer          align tokenizer, on all training documents
    tokens             align tokens

The input is generated in a temporary folder (TMPDIR says where; it takes three times --bytes) and removed at the end.
Each part adds one line to RESULTS.jsonl: the most memory that its processes had, how many bytes of that each row more
took since the quarter, the seconds, and the progress it showed. The bytes a row are judged where the quarter's input is
200 MB or more: less only fills what is held in memory on purpose (rows before they are sorted, a group of them as it is
written). Start it again with the same size and it
continues with the next part. The exit code is 1 where a part, of this start or of one before, found something wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent.parent
PARTS = ("comparisons-plan", "comparisons-data", "text-plan", "text-data", "tokenizer", "tokens")
SHARES = (0.25, 1.0)
MOST = 16  # bytes of memory a row; a Python object of its own takes 50 and more
LEAST_INPUT = 200_000_000  # bytes of the quarter's input, from which on memory must not grow
DOCUMENT, COMPARISON = 2000, 500  # bytes of a row, about
HELD_OUT = 0.05  # of the comparisons, in test.jsonl
QUIET = 45.0  # seconds after which a command must have shown how far it is: it does so every 15
PROGRESS = re.compile(r"^ +.*\d.*/s.*left", re.MULTILINE)


# -- input -------------------------------------------------------------------------------------------------------------


def sentences(rng: random.Random, count: int) -> list[str]:
    """Sentences of some thousand words, frequent ones and rare ones."""
    words = ["".join(rng.choices("abcdefghiklmnoprstuwy", k=rng.randint(2, 9))) for _ in range(5000)]
    weights = [1 / (place + 1) for place in range(len(words))]
    return [" ".join(rng.choices(words, weights, k=14)) + ". " for _ in range(count)]


def write_rows(path: Path, count: int, size: int, row: Callable[[int, str], dict[str, Any]]) -> None:
    """`count` JSON lines that all differ, of about `size` bytes of text."""
    rng = random.Random(count)
    stock = sentences(rng, 4000)
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            text = f"{number}: " + "".join(rng.choices(stock, k=max(1, size // 80)))
            file.write(json.dumps(row(number, text)) + "\n")


def comparison(number: int, text: str) -> dict[str, Any]:
    return {"prompt": f"Question {number}?", "chosen": text, "rejected": text[::-1]}


class World:
    """The folder of one size, with what its parts need before them."""

    def __init__(self, folder: Path, rows: int, documents: int):
        self.folder, self.rows, self.documents = folder, rows, documents
        self.store = folder / "store"

    def rows_of(self, part: str) -> int:
        return self.rows if part.startswith("comparisons") else self.documents

    def bytes_of(self, part: str, rows: int) -> int:
        return rows * (COMPARISON if part.startswith("comparisons") else DOCUMENT)

    def command(self, part: str) -> list[str]:
        common = [f"store={self.store}", "tracker.backend=none", "hardware.device=cpu"]
        if part.startswith("comparisons"):
            data = [f"source=path:{self.comparisons()}", "record=comparisons", "name=size/comparisons"]
        else:
            data = [f"source=path:{self.texts()}", "record=documents", "name=size/text"]
        stage, *rest = {
            "plan": ["plan", "data", *data, "check_data=true"],
            "data": ["data", *data],
            "tokenizer": ["tokenizer", "inputs.data=size/text", "vocab_size=8000", "name=size/tokenizer"],
            "tokens": ["tokens", "inputs.data=size/text", "inputs.tokenizer=size/tokenizer", "name=size/tokens"],
        }[part.rpartition("-")[2]]
        return [sys.executable, "-m", "align", stage, *rest, *common]

    def before(self, part: str) -> None:
        """What a part reads; the input is there once its command is asked for."""
        for needed in {"tokenizer": ["text-data"], "tokens": ["text-data", "tokenizer"]}.get(part, []):
            measured(self.command(needed))  # at once where it is there

    def comparisons(self) -> Path:
        folder = self.folder / "comparisons"
        if not folder.is_dir():
            folder.mkdir(parents=True)
            held_out = int(self.rows * HELD_OUT)
            write_rows(folder / "test.jsonl", held_out, COMPARISON // 2, comparison)
            write_rows(folder / "train.jsonl", self.rows - held_out, COMPARISON // 2, comparison)
        return folder

    def texts(self) -> Path:
        folder = self.folder / "text"
        if not folder.is_dir():
            folder.mkdir(parents=True)
            write_rows(folder / "rows.jsonl", self.documents, DOCUMENT, lambda _, text: {"text": text})
        return folder


# -- what a command takes ----------------------------------------------------------------------------------------------


class Run(NamedTuple):
    """A command that ended: its exit code, the most resident memory of its processes, seconds, and what it printed."""

    code: int
    peak: int
    seconds: float
    said: str


def measured(command: list[str]) -> Run:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    begun, peak = time.monotonic(), 0
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(
            command, stdout=said, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
        while process.poll() is None:
            peak = max(peak, resident(process.pid))
            time.sleep(0.25)
        said.seek(0)
        return Run(process.returncode, peak, time.monotonic() - begun, said.read())


def resident(session: int) -> int:
    """Bytes that the processes of a session have to themselves; pages of files that they read are the system's."""
    total = 0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if int((folder / "stat").read_text().rpartition(")")[2].split()[3]) == session:
                total += int(re.search(r"RssAnon:\s+(\d+)", (folder / "status").read_text())[1]) * 1024  # type: ignore[index]
        except (OSError, TypeError):  # it ended meanwhile
            continue
    return total


def trial(part: str, world: World, smaller: dict[str, Any] | None) -> dict[str, Any]:
    """Run a part's command and say what it took, beside the same of a smaller size."""
    world.before(part)
    command = world.command(part)
    found = measured(command)
    rows = world.rows_of(part)
    shown = PROGRESS.findall(found.said)
    wrong = []
    if found.code != 0:
        wrong.append(f"exit code {found.code}: {found.said[-300:]}")
    if found.seconds > QUIET and not shown:
        wrong.append("no line said how fast it is and how long it takes")
    each = None
    if smaller is not None and rows > smaller["rows"]:
        each = (found.peak - smaller["peak"]) / (rows - smaller["rows"])
        if each > MOST and world.bytes_of(part, smaller["rows"]) >= LEAST_INPUT:
            wrong.append(f"{each:.0f} bytes of memory a row, expected at most {MOST}")
    return {
        "rows": rows,
        "peak": found.peak,
        "bytes_a_row": each,
        "seconds": round(found.seconds, 1),
        "progress": len(shown),
        "last_progress": shown[-1].strip() if shown else "",
        "wrong": wrong,
    }


def left(rows: list[dict[str, Any]], parts: list[str], size: list[int]) -> Iterator[tuple[float, str]]:
    done = {(row["share"], row["part"]) for row in rows if row["size"] == size}
    yield from ((share, part) for share in SHARES for part in parts if (share, part) not in done)


def run(results: Path, seconds: float, parts: list[str], size: list[int]) -> bool:
    """Go on with the parts; True where nothing was wrong."""
    rows = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="size-") as folder:
        worlds = {
            share: World(Path(folder) / f"{share}", int(size[0] * share), int(size[1] * share) // DOCUMENT)
            for share in SHARES
        }
        last = SHARES[0]
        for share, part in left(rows, parts, size):
            if time.monotonic() - begun > seconds:
                break
            if share != last:  # two sizes need not lie on the disk at once
                shutil.rmtree(worlds[last].folder, ignore_errors=True)
                last = share
            same = [row for row in rows if row["part"] == part and row["size"] == size and row["share"] < share]
            row = {"part": part, "share": share, "size": size, **trial(part, worlds[share], same[0] if same else None)}
            with results.open("a") as file:
                file.write(json.dumps(row) + "\n")
            rows.append(row)
            print(json.dumps(row), flush=True)
    own = [row for row in rows if row["part"] in parts and row["size"] == size]
    print(f"{sum(bool(row['wrong']) for row in own)} of {len(own)} parts found something wrong")
    return not any(row["wrong"] for row in own)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--bytes", type=int, default=5_000_000_000)
    parser.add_argument("--only", choices=PARTS)
    options = parser.parse_args()
    chosen = [options.only] if options.only else list(PARTS)
    passed = run(options.results, 60 * options.minutes, chosen, [options.rows, options.bytes])
    sys.exit(0 if passed else 1)
