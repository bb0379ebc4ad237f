"""Read rows from files: JSON lines, JSON, CSV, TSV, Parquet, Arrow, RTE's XML and plain text.

All but Parquet and Arrow may be compressed. Most files are read in batches of rows, so memory holds
one batch. Three cases are read whole: a JSON list, which must be complete to be valid; a text file,
which is one row; and a `.json` file, which may hold JSON lines.

What a file does not say about itself is detected: its encoding, the separator of a table's cells,
and whether quotes enclose cells. Unusual findings are reported.
"""

from __future__ import annotations

import bz2
import codecs
import contextlib
import csv
import gzip
import io
import itertools
import json
import lzma
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TextIO
from xml.etree import ElementTree

from align.data.columns import plain_name
from align.data.formats import SPELLINGS
from align.data.records import Malformed, read_batches, type_name
from align.store.file_kinds import PACKED, unusual_kind

_BLOCK = 2**20  # bytes
# Larger content is not a row. A few bytes of a compressed file can expand to gigabytes of memory.
MAX_LINE = 2**26  # characters of a line, and of a cell
# Characters of a `.json` file, which is read whole; its Python objects take several times as much.
MAX_JSON = 2**30
MAX_TEXT = 2**32  # characters of a text file, which is one row
_BATCH_ROWS = 1000
_MARKS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
# The UTF-32 LE mark begins with the UTF-16 LE mark, so it must be tested first.
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig", "utf-8", None),
    (codecs.BOM_UTF32_LE, "utf-32", "utf-32-le", "UTF-32"),
    (codecs.BOM_UTF32_BE, "utf-32", "utf-32-be", "UTF-32"),
    (codecs.BOM_UTF16_LE, "utf-16", "utf-16-le", "UTF-16"),
    (codecs.BOM_UTF16_BE, "utf-16", "utf-16-be", "UTF-16"),
)
# A record of tab-separated cells as CSV writers make it: each cell with a quote is in quotes.
_ENCLOSED = re.compile(r'(?:(?:"(?:[^"]|"")*+"|[^"\t\r\n]*+)(?:\t|\r?\n|$))+')
_AS_LINES = "write its rows as JSON lines (jq -c '.[]' FILE), which are read one by one"
# Excel's first line in a table that is not separated by commas.
_SEPARATOR_LINE = re.compile(r'"?sep=(.)"?\r?\n')

Say = Callable[[str], None]
ColumnsOf = Callable[[list[str]], tuple[str, ...] | None]


class RawRow(NamedTuple):
    """A row as its file has it, and its place: `file.jsonl:17`."""

    where: str
    row: dict[str, Any] | Malformed


class Place:
    """The number of bytes read so far: those of the finished files and of the current file."""

    def __init__(self) -> None:
        self._before = 0
        self._here: Callable[[], int] = lambda: 0

    def bytes(self) -> int:
        return self._before + self._here()

    def follow(self, here: Callable[[], int]) -> None:
        """Set the function that returns the bytes read so far of the current file."""
        self._here = here

    def leave(self, path: Path) -> None:
        """Count a file as finished."""
        self._before, self._here = self._before + path.stat().st_size, lambda: 0


def suffix_of(path: Path) -> str:
    """Return the suffix that decides how a file is read, lower-case: `.csv` for `a.CSV.gz`."""
    packed = path.suffix.lower() in PACKED
    return Path(path.name.removesuffix(path.suffix) if packed else path.name).suffix.lower()


def read_file(
    path: Path,
    say: Say = lambda note: None,
    *,
    text_tables: bool = False,
    columns_of: ColumnsOf = lambda cells: None,
    place: Place | None = None,
) -> Iterator[RawRow]:
    """Yield every row of a file; unreadable rows come as `Malformed`.

    A plain text file is one row {"text", "file"}.

    Args:
        path: the file.
        say: called with one line for each unexpected property: `a.csv: read as Latin-1`.
        text_tables: read `.txt` files as tab-separated cells under a line of column names.
        columns_of: gets the first line of a table; returns the column names if this line is a row
            of data, or None if it is a header.
        place: updated with the number of bytes read.
    """
    place = place or Place()
    if (kind := unusual_kind(path)) is not None:
        yield RawRow(str(path), Malformed("file", f"expected an ordinary file, got {kind}"))
        return
    suffix = suffix_of(path)
    if suffix == ".txt" and text_tables:
        suffix = ".tsv"
    binary = {".parquet": _parquet, ".arrow": _arrow, ".xml": _pairs}
    try:
        if suffix in binary:
            yield from binary[suffix](path, place)
        else:
            text = _Text(path, _encoding(path, say), place)
            yield from _text_rows(text, suffix, say, columns_of)
    except Malformed as problem:
        yield RawRow(str(path), problem)
    except UnicodeDecodeError as error:
        yield RawRow(
            str(path), Malformed("file", f"expected {error.encoding.upper()} text ({error.reason})")
        )
    except (EOFError, OSError, zlib.error, lzma.LZMAError) as error:
        yield RawRow(str(path), Malformed("file", _broken(path, suffix, error)))
    with contextlib.suppress(FileNotFoundError):
        place.leave(path)


def _broken(path: Path, suffix: str, error: Exception) -> str:
    """Describe the error of a reader of compressed or binary files."""
    begins = PACKED.get(path.suffix.lower())
    if begins is not None and getattr(error, "errno", None) is None:  # with errno: a system error
        with path.open("rb") as file:
            if len(head := file.read(len(begins))) == len(begins) and head != begins:
                return (
                    f"expected {path.suffix[1:]} data, as its name says ({error}); rename it if it"
                    " is not"
                )
    return f"expected {suffix[1:]}, whole ({error})"


def _text_rows(text: _Text, suffix: str, say: Say, columns_of: ColumnsOf) -> Iterator[RawRow]:
    if suffix in (".jsonl", ".ndjson"):
        yield from _json_lines(text, say)
    elif suffix == ".json":
        yield from _json(text, say)
    elif suffix == ".csv":
        yield from _rows_under_header(text.path, _csv_records(text, say), say, columns_of)
    elif suffix == ".tsv":
        yield from _rows_under_header(text.path, _tsv_records(text, say), say, columns_of)
    else:
        with text.open() as file:
            content = _whole(file, MAX_TEXT, "split it into several files")
        yield RawRow(str(text.path), {"text": content, "file": text.path.name})


# -- bytes and characters --------------------------------------------------------------------------


def _binary(path: Path, place: Place | None = None) -> Any:
    """Open a file for reading, decompressed; `place` follows the position in the file itself."""
    file = path.open("rb", buffering=0)
    if place is not None:
        place.follow(lambda: 0 if file.closed else file.tell())
    openers: dict[str, Callable[[Any], Any]] = {
        ".gz": gzip.open,
        ".bz2": bz2.open,
        ".xz": lzma.open,
        ".zst": _open_zst,
    }
    suffix = path.suffix.lower()
    return _Unpacked(openers[suffix](file), file) if suffix in openers else io.BufferedReader(file)


class _Unpacked(io.BufferedReader):
    """The decompressed content of a file; closing it also closes the file."""

    def __init__(self, unpacked: Any, file: io.FileIO):
        super().__init__(unpacked)
        self._file = file

    def close(self) -> None:
        super().close()
        self._file.close()


def _open_zst(file: io.FileIO) -> Any:
    import pyarrow as pa  # Python's standard library has zstd only from 3.14 on

    return pa.CompressedInputStream(file, "zstd")


class _Text(NamedTuple):
    """A text file with a known encoding."""

    path: Path
    encoding: str
    place: Place

    def open(self, keep_line_ends: bool = False) -> TextIO:
        """Open the file as text; with `keep_line_ends` for the csv module, which needs them."""
        return io.TextIOWrapper(
            _binary(self.path, self.place),
            encoding=self.encoding,
            newline="" if keep_line_ends else None,
        )


def _encoding(path: Path, say: Say) -> str:
    """Detect the encoding: by the byte order mark, else UTF-8 if valid, else Windows-1252.

    Windows-1252 includes the printable characters of Latin-1. A file with at least as many
    multi-byte UTF-8 characters as invalid bytes is damaged UTF-8. It is refused, because in another
    encoding all of its other non-ASCII letters would be wrong.

    Raises:
        Malformed: the file is damaged UTF-8 or not text.
    """
    with _binary(path) as file:
        head = file.read(1000)
    for mark, encoding, without_mark, name in _BYTE_ORDER_MARKS:
        if head.startswith(mark):
            if name is not None:
                say(f"{path}: read as {name}")
            if bad := _first_bad_byte(path, without_mark):
                raise Malformed(
                    bad.line,
                    f"expected {name or 'UTF-8'} text, as its first bytes say, but {bad.what}",
                )
            return encoding
    if 4 * head.count(0) > len(head):
        raise Malformed(
            "file",
            "expected UTF-8 text, got zero bytes, as UTF-16 without its mark has; save it as UTF-8",
        )
    bad = _first_bad_byte(path, "utf-8")
    if bad is None:
        return "utf-8"
    name = _one_byte_encoding(path, bad)
    say(f"{path}: read as {name}, because it is not UTF-8; save it as UTF-8 if letters are wrong")
    return "cp1252"


class _BadByte(NamedTuple):
    """A byte that is not valid in the file's encoding."""

    line: str  # `line 17`
    what: str  # `byte 4 of it, 0xff, is none (invalid start byte)`


def _first_bad_byte(path: Path, encoding: str) -> _BadByte | None:
    """Return the first byte that is invalid in an encoding; None if there is none.

    Return None also for a file that cannot be decompressed: reading it later reports the error,
    after the rows that are whole.
    """
    decoder = codecs.getincrementaldecoder(encoding)()
    line, in_line = 1, 0  # the line in which a block begins, and its bytes in earlier blocks
    with _binary(path) as file:
        while True:
            try:
                block = file.read(_BLOCK)
            except (EOFError, OSError, zlib.error, lzma.LZMAError):
                return None
            try:
                text = decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                whole = error.object[: error.start].decode(encoding)
                at = len(whole.rpartition("\n")[2].encode(encoding)) + (
                    0 if "\n" in whole else in_line
                )
                what = (
                    f"byte {at + 1} of it, 0x{error.object[error.start]:02x}, is none"
                    f" ({error.reason})"
                )
                return _BadByte(f"line {line + whole.count(chr(10))}", what)
            if not block:
                return None
            line += text.count("\n")
            in_line = len(text.rpartition("\n")[2].encode(encoding)) + (
                0 if "\n" in text else in_line
            )


def _one_byte_encoding(path: Path, bad: _BadByte) -> str:
    """Return the name of the encoding of a file that is not UTF-8; `bad` is its first bad byte.

    Raises:
        Malformed: the file is damaged UTF-8, or not Windows-1252 either.
    """
    characters, stray = 0, set()
    num_stray = 0
    decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    with _binary(path) as file:
        while block := file.read(_BLOCK):
            wide = re.findall(r"[^\x00-\x7f]", decoder.decode(block))
            found = [
                ord(character) - 0xDC00 for character in wide if "\udc80" <= character <= "\udcff"
            ]
            stray |= set(found)
            num_stray += len(found)
            characters += len(wide) - len(found)
    if characters >= num_stray:
        advice = "fix it, or save it as UTF-8"
        raise Malformed(
            bad.line, f"expected UTF-8 text, as most of the file is, but {bad.what}; {advice}"
        )
    if stray & {0x81, 0x8D, 0x8F, 0x90, 0x9D}:  # Windows-1252 has no character there
        raise Malformed(
            bad.line,
            f"expected UTF-8 text, but {bad.what}, and it is not Windows-1252; save it as UTF-8",
        )
    return "Windows-1252" if any(byte < 0xA0 for byte in stray) else "Latin-1"


def _lines_of(file: TextIO) -> Iterator[str]:
    """Yield the lines of a file; memory holds one line, of `MAX_LINE` characters at most.

    Raises:
        Malformed: a line is longer.
    """
    number = 0
    while line := file.readline(MAX_LINE + 1):
        number += 1
        if len(line) > MAX_LINE:
            most = f"expected at most {MAX_LINE:,} characters in a line, got more"
            raise Malformed(f"line {number}", f"{most}; write it as several rows")
        yield line


def _whole(file: TextIO, most: int, advice: str) -> str:
    """Return the whole content of a file.

    Raises:
        Malformed: the file has more than `most` characters.
    """
    parts, size = [], 0
    while part := file.read(_BLOCK):
        parts.append(part)
        size += len(part)
        if size > most:
            raise Malformed("file", f"expected at most {most:,} characters, got more; {advice}")
    return "".join(parts)


# -- tables ----------------------------------------------------------------------------------------


class _Record(NamedTuple):
    """The cells of a table's row, or what is wrong with it, and the line where it begins."""

    line: int
    cells: list[str] | Malformed


def _csv_records(text: _Text, say: Say) -> Iterator[_Record]:
    mark, skipped = _mark(text)
    if mark != ",":
        say(f"{text.path}: its cells are separated by {_MARKS.get(mark, repr(mark))}")
    with text.open(keep_line_ends=True) as file:
        for _ in range(skipped):
            file.readline()
        yield from _quoted_records(file, mark, skipped)


def _mark(text: _Text) -> tuple[str, int]:
    """Return the separator of a CSV file, and the number of lines before the header that set it.

    The candidates are comma, semicolon, tab and vertical bar. Candidates that do not split the
    header are ignored. The best one splits all rows into equally many cells, with quotes around
    whole cells only. Ties, also if no candidate does so, are decided by the number of known column
    names, then by the order of the candidates.
    """
    with text.open(keep_line_ends=True) as file:
        sample = file.read(2**16)
        cut = bool(file.read(1))
    if said := _SEPARATOR_LINE.match(sample):
        return said[1], 1
    best = ","
    best_fit: tuple[bool, int, bool] | None = None
    for mark in _MARKS:
        records = list(_quoted_records(io.StringIO(sample, newline=""), mark))
        if cut:
            records = records[:-1] or records
        if not records or isinstance(records[0].cells, Malformed) or len(records[0].cells) == 1:
            continue
        num_known = sum(plain_name(name) in SPELLINGS for name in records[0].cells)
        whole = [record.cells for record in records if not isinstance(record.cells, Malformed)]
        is_equal, is_clean = len({len(cells) for cells in whole}) == 1, len(whole) == len(records)
        fit = (is_equal and is_clean, num_known, is_equal)
        if best_fit is None or fit > best_fit:
            best, best_fit = mark, fit
    return best, 0


def _quoted_records(file: TextIO, mark: str, skipped: int = 0) -> Iterator[_Record]:
    """Yield records whose cells quotes enclose.

    A record with other quotes is malformed; reading continues at the next line.
    """
    csv.field_size_limit(MAX_LINE)
    reader = csv.reader(_lines_of(file), delimiter=mark, strict=True)
    while True:
        begin = skipped + reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            advice = "; where quotes are text, name the file .tsv" if mark == "\t" else ""
            what = f"expected quotes around whole cells, and doubled inside them ({error}){advice}"
            yield _Record(begin, Malformed("row", what))
            continue
        if cells:
            yield _Record(begin, cells)


def _tsv_records(text: _Text, say: Say) -> Iterator[_Record]:
    """Yield records of tab-separated cells.

    Quotes are text, as in GLUE, unless every cell that holds a quote is enclosed in quotes.
    """
    with text.open() as file:
        quoted = _encloses_cells(_lines_of(file))
    if quoted:
        say(f"{text.path}: quotes enclose its cells, as a spreadsheet writes them")
        with text.open(keep_line_ends=True) as file:
            yield from _quoted_records(file, "\t")
        return
    with text.open() as file:
        for number, line in enumerate(_lines_of(file), 1):
            if line != "\n":
                yield _Record(number, line.removesuffix("\n").split("\t"))


def _encloses_cells(lines: Iterable[str]) -> bool:
    """True if a table of tab-separated cells has quotes and they enclose every cell with a quote.

    CSV writers always enclose such cells. Text with quotes soon has one elsewhere. A quoted cell
    may span lines, but if two of its lines in a row have as many tabs as the header, they are rows,
    and the quote is text. This limits memory to a few lines after a stray quote.
    """
    record: list[str] = []
    quotes, found, num_tabs = 0, False, None
    for line in lines:
        if num_tabs is None:
            num_tabs = line.count("\t")
        if not record and '"' not in line:
            continue
        if record and record[-1].count("\t") == line.count("\t") == num_tabs > 0:
            return False
        record.append(line)
        quotes += line.count('"')
        if quotes % 2:  # a cell continues on the next line
            continue
        if not _ENCLOSED.fullmatch("".join(record)):
            return False
        record, quotes, found = [], 0, True
    return found and not record


def _rows_under_header(
    path: Path, records: Iterator[_Record], say: Say, columns_of: ColumnsOf
) -> Iterator[RawRow]:
    first = next(records, None)
    if first is None:
        return
    if isinstance(first.cells, Malformed):
        yield RawRow(f"{path}:{first.line}", first.cells)
        return
    names = columns_of(first.cells)
    if names is not None:
        say(f"{path}: has no line of column names; read as {', '.join(names)}")
        records = itertools.chain([first], records)
    else:
        names = _header(path, first)
    for record in records:
        where = f"{path}:{record.line}"
        if isinstance(record.cells, Malformed):
            yield RawRow(where, record.cells)
        elif len(record.cells) != len(names):
            yield RawRow(where, _other_width(path, len(names), len(record.cells)))
        else:
            row = dict(zip(names, record.cells, strict=True))
            row.pop("", None)
            yield RawRow(where, row)


def _header(path: Path, first: _Record) -> tuple[str, ...]:
    """Return the column names; the first may be empty, as for row numbers of pandas and R."""
    assert not isinstance(first.cells, Malformed)
    names = tuple(name.strip() for name in first.cells)
    for place, name in enumerate(names):
        if not name and (place > 0 or len(names) == 1):
            raise Malformed(
                "header", f"line {first.line}: column {place + 1} has no name; name every column"
            )
    _refuse_twice(names, f"line {first.line}: ")
    return names


def _refuse_twice(names: Sequence[str], where: str = "") -> None:
    """Refuse two columns with the same name: the cells of one of them would be lost."""
    for place, name in enumerate(names):
        if name in names[:place]:
            raise Malformed("header", f"{where}two columns are called {name!r}; rename one of them")


def _other_width(path: Path, expected: int, got: int) -> Malformed:
    if suffix_of(path) == ".csv":
        advice = "a cell that holds the separator or a line end must be in quotes"
    else:
        advice = (
            "a cell holds no tab or line end, and quotes are text; write such a table as CSV or as"
            " JSON lines"
        )
    return Malformed("cells", f"expected {expected}, as the first line has, got {got}; {advice}")


# -- JSON ------------------------------------------------------------------------------------------


def _json_lines(text: _Text, say: Say) -> Iterator[RawRow]:
    # The start of the first line is enough: the line may be a whole list.
    with text.open() as file:
        first = next(
            (part.strip() for part in iter(lambda: file.readline(_BLOCK), "") if part.strip()), ""
        )
    if first == "{":
        raise Malformed(
            "file",
            "expected one object per line, got one over several; put each in one line (jq -c ."
            " FILE)",
        )
    if first.startswith("["):
        rows = None
        with text.open() as file, contextlib.suppress(ValueError, RecursionError):
            rows = json.loads(_whole(file, MAX_JSON, _AS_LINES), object_pairs_hook=_of_pairs)
        if rows is not None:
            say(f"{text.path}: holds one JSON list, not JSON lines; read as that")
            yield from _listed(text.path, rows)
            return
    with text.open() as file:
        yield from _lines(text.path, _lines_of(file))


def _lines(path: Path, lines: Iterable[str]) -> Iterator[RawRow]:
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield RawRow(f"{path}:{number}", _object(line))


def _json(text: _Text, say: Say) -> Iterator[RawRow]:
    with text.open() as file:
        content = _whole(file, MAX_JSON, _AS_LINES)
    try:
        rows = json.loads(content, object_pairs_hook=_of_pairs)
    except (ValueError, RecursionError) as error:
        lines = content.split("\n")
        several = [line for line in lines[:1000] if line.strip()]
        if len(several) < 2 or isinstance(_object(several[0]), Malformed):
            raise Malformed("file", f"expected JSON ({_of_json(error)})") from None
        say(f"{text.path}: holds JSON lines, not one JSON list; read as those")
        yield from _lines(text.path, lines)
        return
    if not isinstance(rows, list):
        raise Malformed("file", f"expected a JSON list of rows, got {_as_no_list(rows)}")
    yield from _listed(text.path, rows)


def _as_no_list(value: Any) -> str:
    """Describe a JSON value that is not a list of rows, and how to make one of it."""
    if not isinstance(value, dict):
        return type_name(value)
    for name, inner in value.items():
        if isinstance(inner, list) and inner and all(isinstance(row, dict) for row in inner):
            return (
                f"an object with rows under {name!r}; write that list alone (jq '.[\"{name}\"]'"
                " FILE)"
            )
    if value and all(isinstance(inner, dict) for inner in value.values()):
        return (
            "an object of objects; write its rows as a list (jq '[.[]]' FILE; from pandas:"
            " to_json(orient='records'))"
        )
    return (
        f"one object ({', '.join(map(str, value))[:60]}); put rows in a list, even one, or name the"
        " file .jsonl"
    )


def _listed(path: Path, rows: list[Any]) -> Iterator[RawRow]:
    for number, row in enumerate(rows):
        where = f"{path}[{number}]"
        if isinstance(row, dict):
            yield RawRow(where, row)
        elif isinstance(row, str):
            yield RawRow(where, {"text": row})
        else:
            yield RawRow(where, Malformed("row", "expected an object"))


def _of_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object; raise `ValueError` if a key is repeated: one value would be lost."""
    row = dict(pairs)
    if len(row) < len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"the key {twice!r} appears twice in one object; rename or remove one")
    return row


def _of_json(error: Exception, is_line: bool = False) -> str:
    """Describe an error in a JSON text and its place; for a single line, only the column."""
    if not isinstance(error, json.JSONDecodeError):
        return str(error)
    return (
        f"{error.msg}: " + ("" if is_line else f"line {error.lineno}, ") + f"column {error.colno}"
    )


def _object(line: str) -> dict[str, Any] | Malformed:
    try:
        row = json.loads(line, object_pairs_hook=_of_pairs)
    except (ValueError, RecursionError) as error:
        return Malformed("row", f"expected JSON ({_of_json(error, is_line=True)})")
    return (
        row
        if isinstance(row, dict)
        else Malformed("row", f"expected an object, got {type_name(row)}")
    )


# -- other kinds -----------------------------------------------------------------------------------


def _parquet(path: Path, place: Place) -> Iterator[RawRow]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        _refuse_twice(pq.read_schema(path).names)
        number, total, size = 0, pq.read_metadata(path).num_rows, path.stat().st_size
        place.follow(lambda: size * number // max(total, 1))
        for batch in read_batches(path):
            for row in _rows_of_batch(batch):
                number += 1
                yield RawRow(f"{path}:{number}", row)
    # `ValueError`: two fields of a struct have the same name.
    except (pa.ArrowException, OSError, ValueError, ArithmeticError) as error:
        yield RawRow(
            str(path), Malformed("file", f"expected Parquet ({' '.join(str(error).split())[:100]})")
        )


def _arrow(path: Path, place: Place) -> Iterator[RawRow]:
    """Read Arrow's two formats: the stream, which `datasets` saves, and the file."""
    import pyarrow as pa

    number = 0
    try:
        with pa.memory_map(str(path)) as source:
            is_file = source.read(6) == b"ARROW1"
            source.seek(0)
            reader = pa.ipc.open_file(source) if is_file else pa.ipc.open_stream(source)
            _refuse_twice(reader.schema.names)
            batches = map(reader.get_batch, range(reader.num_record_batches)) if is_file else reader
            # The file format allows random access, so its progress is counted in batches. The
            # stream is read in sequence, so its position is the progress.
            done, total, size = 0, reader.num_record_batches if is_file else 0, path.stat().st_size
            place.follow(lambda: size * done // total if is_file else source.tell())
            for batch in batches:
                done += 1
                for begin in range(0, batch.num_rows, _BATCH_ROWS):
                    for row in _rows_of_batch(batch.slice(begin, _BATCH_ROWS)):
                        number += 1
                        yield RawRow(f"{path}:{number}", row)
    except (pa.ArrowException, OSError, ValueError, ArithmeticError) as error:
        yield RawRow(
            str(path), Malformed("file", f"expected Arrow ({' '.join(str(error).split())[:100]})")
        )


def _rows_of_batch(batch: Any) -> list[dict[str, Any]]:
    """Return the rows of an Arrow batch as Python values.

    Raises:
        Malformed: a column holds a value that Python cannot hold, such as a time before the year 1.
    """
    import pyarrow as pa

    try:
        return batch.to_pylist()
    except (pa.ArrowException, ValueError, ArithmeticError, TypeError, LookupError):
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            try:
                column.to_pylist()
            except (
                pa.ArrowException,
                ValueError,
                ArithmeticError,
                TypeError,
                LookupError,
            ) as error:
                said = " ".join(str(error).split())[:100]
                raise Malformed(
                    name, f"expected a value that Python can hold, got a {column.type} ({said})"
                ) from None
        raise


def _pairs(path: Path, place: Place) -> Iterator[RawRow]:
    """Read RTE 1 to 3: `<pair id="1" value="TRUE"><t>..</t><h>..</h></pair>`.

    Attributes and texts become columns.
    """
    number = 0
    try:
        with _binary(path, place) as file:
            for _, element in ElementTree.iterparse(file):
                if element.tag == "pair":
                    texts = {
                        child.tag: " ".join("".join(child.itertext()).split()) for child in element
                    }
                    yield RawRow(f"{path}[{number}]", {**element.attrib, **texts})
                    number += 1
                    element.clear()
    except ElementTree.ParseError as error:
        raise Malformed("file", f"expected XML ({error})") from None
    if number == 0:
        raise Malformed(
            "file",
            "expected <pair> elements with <t> and <h>, as RTE's files have; other XML is not read",
        )
