"""Files of data as nobody should write them, made at random from a seed: every kind of file, packed and not.

Rows look like those of a layout, with some fields spoiled: other types, deep nesting, numbers that JSON has no room
for, half a surrogate pair, reserved names. Files have broken ends, marks, bytes and lines. The same seed makes the same
file.
"""

from __future__ import annotations

import bz2
import csv
import datetime
import decimal
import gzip
import io
import json
import lzma
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from stage_jobs import job_at

from align.configs import Data
from align.data.records import SPLITS, check_row, read_rows
from align.errors import ConfigError
from align.runtime.job import Inputs
from align.stages import data as stage

RECORDS = ("documents", "demonstrations", "prompts", "comparisons", "unpaired", "items", "labelled")
KINDS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".txt", ".md", ".xml", ".parquet", ".arrow")
PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda raw: pa.compress(raw, "zstd", asbytes=True),
}
LAYOUTS = {  # columns -> the record that they make
    "text": "documents",
    "messages": "demonstrations",
    "prompt": "prompts",
    "prompt completion": "demonstrations",
    "prompt chosen rejected": "comparisons",
    "chosen rejected": "comparisons",
    "prompt responses ranks": "comparisons",
    "prompt completion label": "comparisons",
    "prompt response label": "unpaired",
    "prompt response helpfulness": "comparisons",
    "instruction input output": "demonstrations",
    "instruction output_1 output_2 preference": "comparisons",
    "contexts completions labels": "items",
    "query choices gold": "items",
    "sentence label": "labelled",
    "sentence1 sentence2 label": "labelled",
    "premise hypothesis label": "labelled",
    "question choices answer": "labelled",
    "message_id parent_id text role rank": "demonstrations",
    "conversations": "demonstrations",
}
# Names that records, readers and Parquet use themselves.
RESERVED = (
    "text messages prompt responses ranks contexts completions labels label score texts choices gold group file tools "
    "weight answer_context leaning system history input context columns role content split index __index_level_0__"
).split()
TEXTS = [
    *("", " ", "hi", "yes", "1", "0", "-1", "nan", "null", "true", "user", "assistant", "[1, 2]", '["a", "b"]', "{"),
    *("\x00", "a\x00b", "\u2028", "\u2029", "\u0085", "\x0b\x0c\x1c", "\r", "\r\n", "\n", "\ufeff", "\ufffe", "\ufdd0"),
    *("é🌍", "e\u0301", "\u202e", '"', '""', "'", "\\", ",", "\t", ";", "|", "sep=;", "<pair>", "\ud800", "a\udfffb"),
    "\n\nHuman: Can ducks swim?\n\nAssistant: Yes.",
    "\n\nHuman: Can ducks swim?\n\nAssistant: Yes.\n\nHuman: And hens?\n\nAssistant: Hardly.",
    *("<|endoftext|>", "x" * 5000, "9" * 5000, "1e999"),
]
NUMBERS = [0, 1, 2, 3, -1, 7, 10, 2**31, 2**53, 2**63, 2**64, 10**30, -(10**30), 0.5, 1e308, float("nan"), float("inf")]
OTHERS = [
    b"\xff\x00",
    datetime.datetime(1, 1, 1),
    datetime.date(9999, 12, 31),
    datetime.timedelta(days=999_999_999),
    decimal.Decimal("1e40"),
    datetime.time(23, 59),
]


def value(rng: random.Random, depth: int = 0, *, plain: bool = True) -> Any:
    """Any value; `plain`: one that JSON can spell."""
    kind = rng.randrange(14 if depth < 4 else 8)
    if kind < 5:
        return rng.choice(TEXTS)
    if kind < 7:
        return rng.choice([None, True, False, *NUMBERS])
    if kind == 7:
        return rng.choice(OTHERS) if not plain else rng.choice([[], {}, [[]], [{}], [None]])
    if kind < 10:
        return [value(rng, depth + 1, plain=plain) for _ in range(rng.randrange(4))]
    if kind < 12:
        return turns(rng)
    if kind == 12 and rng.random() < 0.1:
        return nested(rng.choice([50, 101, 400]))
    return {rng.choice([*RESERVED, *TEXTS[:30]]): value(rng, depth + 1, plain=plain) for _ in range(rng.randrange(4))}


def turns(rng: random.Random) -> list[dict[str, Any]]:
    roles = ["user", "assistant"] * 3 + rng.choice([[], ["system"], ["bot"], [None], ["tool"], [3]])
    found = [{"role": role, "content": rng.choice(["hi", "yes", *TEXTS])} for role in roles[: rng.randrange(7)]]
    if found and rng.random() < 0.3:
        found[rng.randrange(len(found))][rng.choice(["weight", "tool_calls", "name", "content", "id"])] = value(rng, 3)
    return found


def nested(depth: int) -> Any:
    found: Any = "x"
    for level in range(depth):
        found = [found] if level % 2 else {"a": found}
    return found


def likely(rng: random.Random, field: str) -> Any:
    """A value that a field of this name may well have, most often a right one."""
    if rng.random() < 0.8:
        return right(rng, field)
    if field in ("messages", "conversations"):
        return turns(rng)
    if field in ("prompt", "chosen", "rejected") and rng.random() < 0.4:
        return turns(rng)
    if field in ("responses", "completions", "choices", "texts", "contexts"):
        return [rng.choice(["yes", "no", "perhaps", *TEXTS]) for _ in range(rng.randrange(1, 4))]
    if field in ("ranks", "labels"):
        return [rng.choice([0, 1, 2, 3, rng.choice(NUMBERS)]) for _ in range(rng.randrange(1, 4))]
    if field in ("label", "score", "preference", "helpfulness", "answer", "gold", "rank"):
        return rng.choice([0, 1, 2, "yes", "A", 0.5, True])
    return rng.choice(["Can ducks swim?", "Yes.", *TEXTS])


def right(rng: random.Random, field: str) -> Any:
    word = rng.choice(["cats", "ducks", "hens", "a\u2028b", "c\x85d", "é", "no\nyes", "x\x00y"])
    if field in ("messages", "conversations"):
        return [{"role": "user", "content": f"Do {word} swim?"}, {"role": "assistant", "content": word}]
    if field in ("responses", "completions", "choices", "contexts"):
        return [word, "and so on"]
    if field in ("ranks", "labels"):
        return rng.choice([[1, 2], [2, 1]]) if field == "ranks" else [1, 0]
    if field in ("label", "preference", "helpfulness", "answer", "gold", "rank"):
        return rng.choice([0, 1])
    if field == "role":
        return rng.choice(["prompter", "assistant"])
    if field in ("chosen", "rejected"):
        return f"{field}, {word}"
    return f"Do {word} swim?"


def rows(rng: random.Random, layout: str, *, plain: bool = True) -> list[dict[str, Any]]:
    """Some rows of one layout; of those of every other file some fields are spoiled, lacking or too many."""
    fields = layout.split()
    found = []
    most = rng.choice([0, 0, 0, 1, 2])
    for _ in range(rng.randrange(6)):
        row = {field: likely(rng, field) for field in fields}
        for _ in range(rng.randrange(most + 1)):
            place = rng.randrange(4)
            if place == 0:
                row[rng.choice(fields)] = value(rng, plain=plain)
            elif place == 1:
                row.pop(rng.choice(fields), None)
            elif place == 2:
                row[rng.choice(RESERVED)] = value(rng, plain=plain)
            else:
                row[rng.choice(TEXTS)] = value(rng, plain=plain)
        found.append(row)
    return found


def content(rng: random.Random, kind: str, layout: str) -> bytes:
    """The bytes of a file of one kind, before it is packed."""
    if kind in (".parquet", ".arrow"):
        return _table(rng, kind, layout)
    found = rows(rng, layout)
    if kind in (".jsonl", ".ndjson"):
        end = rng.choice(["\n", "\n", "\r\n", "\n\n", "\r"])
        text = end.join(_json(rng, row) for row in found) + rng.choice([end, ""])
    elif kind == ".json":
        text = rng.choice(["[{}]", "[{}]", "{}", '{{"data": [{}]}}', "[{}"]).format(
            ",".join(_json(rng, r) for r in found)
        )
    elif kind in (".csv", ".tsv"):
        text = _cells(rng, found, rng.choice([",", ";", "|", "\t"]) if kind == ".csv" else "\t")
    elif kind == ".xml":
        text = "<a>" + "".join(f'<pair value="TRUE"><t>{rng.choice(TEXTS)}</t><h>b</h></pair>' for _ in found) + "</a>"
    else:
        text = "".join(rng.choice(TEXTS) for _ in range(rng.randrange(9)))
    code = rng.choice(["utf-8"] * 24 + ["utf-8-sig", "utf-16", "utf-16-le", "utf-32", "latin-1", "cp1252"])
    return text.encode(code, rng.choice(["surrogatepass", "replace"]) if code[:3] == "utf" else "replace")


def _json(rng: random.Random, row: Any) -> str:
    text = json.dumps(row, ensure_ascii=rng.random() < 0.5)
    spoil = rng.randrange(100)
    if spoil == 0:
        return text[: rng.randrange(len(text) + 1)]
    if spoil == 1:
        return text.replace("}", ', "text": "again", "text": "twice"}', 1)
    if spoil == 2:
        return rng.choice(["[", '{"a":']) * rng.choice([10, 999, 10_000, 100_000])
    if spoil == 3:
        return rng.choice(["null", "7", '"text"', "[]", "NaN", "{}", "-", "'a'", "{'text': 'a'}", "9" * 5000, "\x00"])
    if spoil == 4:
        return text.replace(" ", rng.choice(["\x00", "\ufeff", "\u2028", "\xa0", "//"]), 1)
    return text


def _cells(rng: random.Random, found: list[dict[str, Any]], mark: str) -> str:
    names = list(dict.fromkeys(name for row in found for name in row)) or ["text"]
    if rng.random() < 0.1:
        names.append(rng.choice(names))
    file = io.StringIO(newline="")
    quoting = rng.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONE])
    writer = csv.writer(file, delimiter=mark, quoting=quoting, escapechar="\\" if quoting == csv.QUOTE_NONE else None)
    names = names if names != [""] else ["text"]
    writer.writerow(names)
    for row in found:
        cells = [row.get(name) for name in names]
        cells = [json.dumps(cell) if isinstance(cell, list | dict) else cell or " " for cell in cells]
        writer.writerow(cells[: rng.choice([len(cells)] * 9 + [1])])
    return file.getvalue() + rng.choice(["", "", "", '"', "a" + mark, "\x00"])


def _table(rng: random.Random, kind: str, layout: str) -> bytes:
    """A table whose columns have odd types, and values out of what Python can hold."""
    found = rows(rng, layout, plain=False) or [{"text": "a"}]
    names = list(dict.fromkeys(name for row in found for name in row))
    columns, kept = [], []
    for name in names:
        try:
            columns.append(pa.array([row.get(name) for row in found]))
            name.encode()
        except (pa.ArrowException, ValueError, OverflowError, TypeError):
            columns = columns[: len(kept)]
            continue
        kept.append(name)
    number = pa.array([rng.choice([0, 1, 2**62, -(2**62)]) for _ in found], pa.int64())
    for target in rng.sample(_TIMES, rng.randrange(3)):
        columns.append(number.view(target))
        kept.append(rng.choice([*RESERVED, "when", *kept[:1]]))
    table = pa.Table.from_arrays(columns, names=kept)
    file = io.BytesIO()
    try:
        if kind == ".parquet":
            pq.write_table(table, file)
        else:
            make = rng.choice([pa.ipc.new_stream, pa.ipc.new_file])
            with make(file, table.schema) as writer:
                writer.write_table(table)
    except (pa.ArrowException, ValueError):
        return b"PAR1"
    return file.getvalue()


_TIMES = [
    *(pa.duration(unit) for unit in ("s", "ms", "us", "ns")),
    *(pa.timestamp(unit) for unit in ("s", "ms", "us", "ns")),
    *(pa.date64(), pa.time64("us"), pa.time64("ns"), pa.timestamp("us", "no/such_zone"), pa.timestamp("s", "+09:00")),
]


def write(folder: Path, seed: int) -> tuple[Path, str]:
    """A file made from a seed, in a folder of its own, and the record that it is to be read as."""
    rng = random.Random(f"hostile file {seed}")
    layout, kind = rng.choice([*LAYOUTS]), rng.choice([*KINDS, ".jsonl", ".parquet", ".json"])
    record = LAYOUTS[layout] if rng.random() < 0.8 else rng.choice(RECORDS)
    packed = rng.choice([""] * 4 + [*PACKERS]) if kind not in (".parquet", ".arrow", ".xml") else ""
    raw = bytearray(PACKERS[packed](_spoiled(rng, content(rng, kind, layout))))
    if packed and rng.random() < 0.1:
        raw = bytearray(_spoiled(rng, bytes(raw), always=True))
    path = folder / f"{rng.choice(['rows', 'train', 'test', 'a b', 'é'])}{kind}{packed}"
    path.write_bytes(raw)
    return path, record


def _spoiled(rng: random.Random, raw: bytes, *, always: bool = False) -> bytes:
    """Now and then: bytes cut, changed or put in."""
    if not always and rng.random() < 0.9:
        return raw
    found = bytearray(raw)
    for _ in range(rng.randrange(1, 4)):
        place, what = rng.randrange(len(found) + 1), rng.randrange(3)
        if what == 0:
            del found[place:]
        elif what == 1:
            found[place:place] = rng.choice([b"\xff", b"\x00", b"\xed\xa0\x80", b"\xc3", b"\n", b'"', b"\r", b"\x81"])
        elif place < len(found):
            found[place] = rng.randrange(256)
    return bytes(found)


def outcome(folder: Path, seed: int) -> tuple[str, list[str]]:
    """What comes of the file of a seed as a random record, "rows" or the line that refuses it, and what is wrong."""
    folder.mkdir()
    path, record = write(folder, seed)
    job = job_at(folder / "job")
    try:
        stage.run(Data(source=f"path:{path}", record=record), Inputs({}), job)
        for split in SPLITS:
            for row in read_rows([job.out], split):
                check_row(record, row)
    except ConfigError as error:
        said = str(error)
        checks = {
            "it does not name the file": path.name in said,
            "it cannot be printed": said == said.encode(errors="replace").decode(),
            "rows were written": not list(job.out.glob("*.parquet")),
        }
        return said, [f"{what}: {ascii(said)[:300]}" for what, holds in checks.items() if not holds]
    except Exception as error:
        return "", [ascii(f"{type(error).__name__}: {error}")[:300]]
    return "rows", []
