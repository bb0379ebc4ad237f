"""Rows out of files: JSON lines, JSON, CSV, TSV, Parquet and plain text, gzipped or not."""

from __future__ import annotations

import csv
import gzip
import io
import json
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from align.data.records import Malformed

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".txt", ".md")


class RawRow(NamedTuple):
    """A row as its file has it, and where that is: `file.jsonl:17`."""

    where: str
    row: dict[str, Any] | Malformed


def suffix_of(path: Path) -> str:
    return Path(path.name.removesuffix(".gz")).suffix.lower()


def read_file(path: Path) -> Iterator[RawRow]:
    """Every row of a file; a plain text file is one row {"text", "file"}. Unreadable rows come as `Malformed`."""
    suffix = suffix_of(path)
    if suffix == ".parquet":
        yield from _parquet(path)
        return
    with _open(path, keep_newlines=suffix in (".csv", ".tsv")) as file:
        try:
            if suffix == ".jsonl":
                yield from _json_lines(path, file)
            elif suffix == ".json":
                yield from _json_list(path, file)
            elif suffix in (".csv", ".tsv"):
                yield from _table(path, csv.DictReader(file, delimiter="\t" if suffix == ".tsv" else ","))
            else:
                yield RawRow(str(path), {"text": file.read(), "file": path.name})
        except UnicodeDecodeError as error:
            yield RawRow(str(path), Malformed("file", f"expected UTF-8 text ({error.reason} at byte {error.start})"))
        except (EOFError, OSError, zlib.error, csv.Error) as error:
            yield RawRow(str(path), Malformed("file", f"expected {suffix[1:]}, whole ({error})"))


def _open(path: Path, keep_newlines: bool) -> TextIO:
    """As text; the csv module wants line ends as they are, everything else has them made alike."""
    opener = gzip.open if path.suffix == ".gz" else open
    return io.TextIOWrapper(opener(path, "rb"), encoding="utf-8-sig", newline="" if keep_newlines else None)


def _parquet(path: Path) -> Iterator[RawRow]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        rows = pq.read_table(path).to_pylist()
    except (pa.ArrowException, OSError) as error:
        yield RawRow(str(path), Malformed("file", f"expected Parquet ({' '.join(str(error).split())[:100]})"))
        return
    for number, row in enumerate(rows, 1):
        yield RawRow(f"{path}:{number}", row)


def _table(path: Path, reader: csv.DictReader[str]) -> Iterator[RawRow]:
    """Rows with the line each begins at: a cell may hold several."""
    csv.field_size_limit(sys.maxsize)
    list(reader.fieldnames or [])
    begins = reader.line_num + 1
    for row in reader:
        yield RawRow(f"{path}:{begins}", row)
        begins = reader.line_num + 1


def _json_lines(path: Path, file: TextIO) -> Iterator[RawRow]:
    for number, line in enumerate(file, 1):
        if line.strip():
            yield RawRow(f"{path}:{number}", _object(line))


def _json_list(path: Path, file: TextIO) -> Iterator[RawRow]:
    try:
        rows = json.load(file)
    except (ValueError, RecursionError) as error:
        yield RawRow(str(path), Malformed("file", f"expected JSON ({error})"))
        return
    if not isinstance(rows, list):
        yield RawRow(str(path), Malformed("file", f"expected a JSON list of rows, got {type(rows).__name__}"))
        return
    for number, row in enumerate(rows):
        good = row if isinstance(row, dict) else {"text": row} if isinstance(row, str) else None
        yield RawRow(f"{path}[{number}]", Malformed("row", "expected an object") if good is None else good)


def _object(line: str) -> dict[str, Any] | Malformed:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        return Malformed("row", f"expected JSON ({error})")
    return row if isinstance(row, dict) else Malformed("row", f"expected an object, got {type(row).__name__}")
