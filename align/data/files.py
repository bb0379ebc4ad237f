"""Rows out of files: JSON lines, JSON, CSV, TSV, Parquet and plain text, compressed or not.

JSON lines, tables and Parquet are read in the memory of some rows. A `.json` list and a text are read whole: JSON's
end is what shows that it is a list, and what a text is cut into is for its format to say.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from align.data.records import Malformed, read_parquet

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".txt", ".md")
PACKED = (".gz", ".bz2", ".zst")  # may follow those that are text


class RawRow(NamedTuple):
    """A row as its file has it, and where that is: `file.jsonl:17`."""

    where: str
    row: dict[str, Any] | Malformed


def suffix_of(path: Path) -> str:
    return Path(path.name.removesuffix(path.suffix) if path.suffix in PACKED else path.name).suffix.lower()


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
    openers: dict[str, Callable[[Path], Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".zst": _open_zst}
    file = openers[path.suffix](path) if path.suffix in openers else path.open("rb")
    return io.TextIOWrapper(file, encoding="utf-8-sig", newline="" if keep_newlines else None)


def _open_zst(path: Path) -> Any:
    import pyarrow as pa  # Python's own library reads it from 3.14 on

    return pa.CompressedInputStream(pa.OSFile(str(path)), "zstd")


def _parquet(path: Path) -> Iterator[RawRow]:
    import pyarrow as pa

    try:
        for number, row in enumerate(read_parquet(path), 1):
            yield RawRow(f"{path}:{number}", row)
    except (pa.ArrowException, OSError) as error:
        yield RawRow(str(path), Malformed("file", f"expected Parquet ({' '.join(str(error).split())[:100]})"))


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
