"""Give bad files of data, bad rows and folders of models that harm: each is read, or refused in one line.

    python tests/soak/files.py RESULTS.jsonl [--minutes 30] [--only PART]

Parts:
    models      every folder of tests/hostile_models.py, and 300 with some bytes changed, imported; one that harms must
                be refused, and nothing in it may run
    rows        100 random rows for a format or a layout (tests/hostile_rows.py)
    files       a file made at random, of any kind, packed or not (tests/hostile_files.py), read by the data stage

Each model is imported in a process of its own that may have 8 GiB of addresses and 5 minutes. Each trial adds one
line to RESULTS.jsonl. Start it again with the same file and it continues with the next one. Trial N is the same each
time. The exit code is 1 where a trial, of this start or of one before, found something wrong.
"""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import random
import resource
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(TESTS.parent), str(TESTS)]

# A child that is forked hangs where the tokenizers' threads of its parent were busy.
os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
from hostile_files import outcome  # noqa: E402
from hostile_models import EITHER, LEGAL, REFUSED, Spoil, bytes_changed, import_here  # noqa: E402
from hostile_rows import READERS, rows_of_format, rows_of_layout  # noqa: E402
from tiny_models import tiny_model, tiny_tokenizer  # noqa: E402
from trials import run_trials  # noqa: E402

from align.models.load import save_model  # noqa: E402

NUM_CHANGED = 300
MODELS: dict[str, Spoil] = {
    **REFUSED,
    **EITHER,
    **LEGAL,
    **{f"bytes changed {i}": bytes_changed(i) for i in range(NUM_CHANGED)},
}
COUNTS = {"models": len(MODELS), "rows": 1500, "files": 5000}
FORK = multiprocessing.get_context("fork")
_ADDRESSES = 8 << 30  # bytes of them; torch alone has some
_SECONDS = 300.0


def run_model(number: int, folder: Path, good: Path) -> dict[str, Any]:
    name = list(MODELS)[number]
    shutil.copytree(good, folder / "model")
    shutil.copy(good / "model.safetensors", folder / "elsewhere.safetensors")
    MODELS[name](folder / "model")
    said, told = FORK.Pipe(duplex=False)
    process = FORK.Process(target=_import, args=(folder, told))
    process.start()
    told.close()
    process.join(_SECONDS)
    if process.exitcode is None:
        process.kill()
        process.join()
        return {"case": name, "wrong": [f"it did not end in {_SECONDS:.0f} s"]}
    try:
        line, faults = said.recv()
    except EOFError:
        return {"case": name, "wrong": [f"its process ended with {process.exitcode}"]}
    if name in REFUSED and not line:
        faults.append("it was not refused")
    return {"case": name, "said": line[:200], "wrong": faults}


def _import(folder: Path, told: Any) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (_ADDRESSES, _ADDRESSES))
    os.chdir(folder)
    try:
        answer = import_here()
    except BaseException as error:  # whatever comes here, the command line has not caught
        answer = "", [ascii(f"{type(error).__name__}: {error}")[:300]]
    told.send(answer)


def run_rows(number: int, folder: Path, good: Path) -> dict[str, Any]:
    reader, rng = READERS[number % len(READERS)], random.Random(f"rows {number}")
    try:
        if isinstance(reader, str):
            rows_of_format(reader, rng, 100)
        else:
            rows_of_layout(reader, rng, 100)
    except Exception as error:
        return {"reader": str(reader), "wrong": [ascii(f"{type(error).__name__}: {error}")[:300]]}
    return {"wrong": []}


def run_file(number: int, folder: Path, good: Path) -> dict[str, Any]:
    with contextlib.redirect_stderr(io.StringIO()):
        said, wrong = outcome(folder / "file", number)
    return {"rows": said == "rows", "wrong": wrong}


RUN: dict[str, Callable[[int, Path, Path], dict[str, Any]]] = {"models": run_model, "rows": run_rows, "files": run_file}


@contextlib.contextmanager
def prepared() -> Iterator[Callable[[str, int], dict[str, Any]]]:
    with tempfile.TemporaryDirectory(prefix="files-") as kept, contextlib.chdir(kept):
        good = Path(kept) / "good"
        save_model(tiny_model("llama"), tiny_tokenizer(), good)

        def attempt(part: str, number: int) -> dict[str, Any]:
            with tempfile.TemporaryDirectory(dir=kept) as folder:
                return RUN[part](number, Path(folder), good)

        yield attempt


if __name__ == "__main__":
    sys.exit(run_trials(__doc__, COUNTS, 30.0, prepared))
