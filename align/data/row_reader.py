"""Raw rows read as one record, with a count of every row and column that is left out."""

from __future__ import annotations

import pickle
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

from align.data.columns import Columns, counted, holds_something, respelled
from align.data.files import RawRow, suffix_of
from align.data.formats import GROUPED, SPELLINGS, infer_format, reader
from align.data.labelled import SPELLINGS_OF_LABELLED
from align.data.records import Dropped, Malformed, Row, check_row, clear_responses, convert, digest
from align.errors import ConfigError


class Read(NamedTuple):
    """A row of the wanted record.

    Attributes:
        split: the split that its file is, where that is known.
        found: the row before it was converted; its split depends on it.
        made: the row as the wanted record.
    """

    split: str | None
    found: Row
    made: Row


class RowReader:
    """Reads raw rows as one record.

    Rows that make a record together wait in a temporary file until `joined` is called; memory then holds the
    digest of a key and the place of each of its rows: 260 bytes a key.

    Args:
        record: what the rows become.
        format: how a raw row is read; None: by its columns.
        columns: record field -> the file's column, as a user gives them.
        name: of the data set, for tasks that are written with it.
        folder: for the temporary file.

    Attributes:
        dropped: reason -> rows, or parts of one, that were left out.
        unused: column -> rows in which it holds something that is neither read nor kept.
        unanswered: record -> rows of which only what is asked was kept.
    """

    def __init__(
        self,
        record: str,
        format: str | None = None,
        columns: Mapping[str, str] | None = None,
        name: str = "",
        folder: Path | None = None,
    ):
        self.record, self.format, self.name = record, format, name
        self.columns = dict(columns or {})
        self.dropped: Counter[str] = Counter()
        self.unused: Counter[str] = Counter()
        self.unanswered: Counter[str] = Counter()
        self._found_columns: set[str] = set()  # of `columns`, those that some row has
        self._read_fields: set[str] = set()  # of `columns`, those that some format reads or keeps
        self._respelled: dict[tuple[Any, ...], dict[str, str]] = {}
        self._kind = ""  # of labelled rows: what their label is
        self._groups = _Groups(folder)

    def read(self, raw: RawRow, split: str | None = None) -> Iterator[Read]:
        """Yield the rows that a raw row makes by itself; one that makes a row with others waits for `joined`.

        Raises:
            Malformed: the raw row is of no format that can become the record, or not what its format says.
            Dropped: it holds nothing to learn from.
        """
        return _nested_within_reason(self._read(raw, split))

    def _read(self, raw: RawRow, split: str | None) -> Iterator[Read]:
        if isinstance(raw.row, Malformed):
            raise raw.row
        path = Path(raw.where.rpartition(":")[0] or raw.where)
        row, spelled = self._named(raw.row, suffix_of(path) in (".csv", ".tsv"))
        name = self._format_of(raw.row, row)
        if name in GROUPED:
            key, piece = GROUPED[name].piece(row)
            self._groups.add(f"{split}\n{name}\n{key}", (raw.where, split, name, piece))
            self._count_columns(row, spelled, ())
            return
        record, read = reader(name, self.record)
        extra = {"group": path.name.partition(".")[0]} if self.record == "items" else {}
        if suffix_of(Path(raw.where)) in (".txt", ".md"):
            row.read.add("file")  # a text file's own name: no column of the user's
        own = {self._own_name(name, spelled): value for name, value in row.items()}
        kept: set[str] = set()
        for found in read(row):
            if isinstance(found, Dropped):
                self.dropped[str(found)] += 1
                continue
            named = {self._as_in_file(column, row, spelled): value for column, value in found.items()}
            for each in self._made({**extra, **named}, record, split):
                # A field of a record may have the name of a column and hold something else.
                kept.update(name for name, value in own.items() if name in each.made and each.made[name] == value)
                yield each
        self._count_columns(row, spelled, kept)

    def joined(self) -> Iterator[tuple[str, Iterator[Read]]]:
        """Yield the rows that raw rows make together, a group at a time, with the place of the group's first row.

        A group's iterator raises as `read` does.
        """
        for pieces in self._groups:
            where, split, name, _ = pieces[0]
            yield where, _nested_within_reason(self._join(name, split, [piece for *_, piece in pieces]))

    def lines(self) -> list[str]:
        """What to tell the user about columns."""
        said = [f"columns not used: {counted(self.unused)}"] if self.unused else []
        for record, count in self.unanswered.items():
            what = "their answers" if record == "demonstrations" else "their responses and ranks"
            said.append(f"prompts are what {count:,} {record} ask; {what} are not kept")
        return said

    def check_columns(self) -> None:
        """Raise `ConfigError` where `columns` names a column that no row has, or a field that nothing reads."""
        for field, column in self.columns.items():
            if column not in self._found_columns:
                raise ConfigError(f"columns.{field}: no row has a column {column!r}")
            if field not in self._read_fields:
                raise ConfigError(
                    f"columns.{field}: nothing reads {field} from rows of these columns as {self.record}; "
                    f"docs/reference/row-layouts.md lists the columns of each layout"
                )

    # -- one row -------------------------------------------------------------------------------------------------

    def _named(self, raw: Mapping[str, Any], in_table: bool) -> tuple[Columns, dict[str, str]]:
        """A row under the names that readers ask for, and which of these stand for another name in the file."""
        columns = {field: _as_spelled(column, raw) for field, column in self.columns.items()}
        row = {name: value for name, value in raw.items() if name not in columns and name not in columns.values()}
        displaced = {name for name in columns.keys() - columns.values() if holds_something(raw.get(name))}
        for field, column in columns.items():
            if column in raw:
                self._found_columns.add(self.columns[field])
                row[field] = raw[column]
        names = tuple(row)
        if names not in self._respelled:
            known = {plain: name for plain, name in self._spellings().items() if name not in columns}
            self._respelled[names] = respelled(names, known)
        spelled = self._respelled[names]
        values = {spelled.get(name, name): value for name, value in row.items()}
        return Columns(values, skipped=displaced, in_table=in_table, called=columns), spelled

    def _spellings(self) -> Mapping[str, str]:
        """Plain names and how readers spell them; a card's format asks for columns as its set does."""
        if self.format is not None:
            return {}
        if self.record == "labelled":
            return SPELLINGS_OF_LABELLED
        return SPELLINGS_OF_LABELLED | SPELLINGS if self.record == "demonstrations" else SPELLINGS

    def _format_of(self, raw: Mapping[str, Any], row: Columns) -> str:
        if self.format is not None:
            return self.format
        if self.record == "prompts" and "prompt" in row and "prompt" in self.columns:
            return "prompt"
        try:
            return infer_format(dict(row), self.record)  # a copy: looking at a column here is not reading it
        except Malformed:
            for field, column in row.called.items():
                if column not in raw:
                    has = ", ".join(map(str, raw)) or "none"
                    raise Malformed("columns", f"{field}: no column {column!r}; the file has {has}") from None
            raise

    def _as_in_file(self, column: str, row: Columns, spelled: Mapping[str, str]) -> str:
        """The name under which a column is kept: its own, unless a reader asked for it by another spelling."""
        return column if column in row.read else self._own_name(column, spelled)

    @staticmethod
    def _own_name(column: str, spelled: Mapping[str, str]) -> str:
        return next((own for own, known in spelled.items() if known == column), column)

    def _made(self, found: Row, record: str, split: str | None, parts: int = 1) -> Iterator[Read]:
        """The row as the wanted record; `parts` is how many rows of the file it is made of."""
        if self.record == record == "comparisons":
            found, left_out = clear_responses(found)
            self.dropped.update(left_out)
            parts -= left_out.total()
        try:
            made = check_row(self.record, convert(found, record, self.record, self.name))
        except Dropped as reason:
            self.dropped[str(reason)] += max(parts, 1)
        except ValueError as error:
            raise Malformed("row", f"its columns make it one of {record}; {error}") from None
        else:
            if self.record == "labelled":
                self._require_one_kind(made)
            if self.record == "prompts" and record != "prompts":
                self.unanswered[record] += 1
            if record == "demonstrations" and "tools" in found and "tools" not in made:
                self.unused["tools"] += 1
            if record == "demonstrations" != self.record and any("weight" in each for each in found["messages"]):
                self.unused["messages[].weight"] += 1
            yield Read(split, found, made)

    def _require_one_kind(self, made: Row) -> None:
        """Refuse a class among choices or scores: a dataset is of one task, and its column `label` of one type."""
        given = next((name for name in ("choices", "score") if made.get(name) is not None), "label")
        what = {"choices": "the place of the right choice", "score": "a score", "label": "a class"}
        self._kind = self._kind or given
        if given != self._kind:
            raise Malformed(given, f"expected {what[self._kind]}, as the rows before have, got {what[given]}")

    def _join(self, name: str, split: str | None, pieces: list[Row]) -> Iterator[Read]:
        for found in GROUPED[name].join(pieces):
            if isinstance(found, Dropped):
                self.dropped[str(found)] += 1
            else:
                each_a_row = found.get("responses") or found.get("messages") or [found]
                yield from self._made(found, GROUPED[name].record, split, len(each_a_row))

    def _count_columns(self, row: Columns, spelled: Mapping[str, str], kept: set[str] | tuple[()]) -> None:
        for name, value in row.items():
            own = self._own_name(name, spelled)
            if name in row.read or own in kept:
                self._read_fields.add(name)
            elif holds_something(value):
                self.unused[str(self.columns.get(name) or own)] += 1
        for name in row.skipped:
            self.unused[name] += 1


def _as_spelled(column: str, row: Mapping[str, Any]) -> str:
    """A column's name as a row has it: Unicode writes a letter with an accent as one character or as two."""
    if column in row:
        return column
    wanted = unicodedata.normalize("NFC", column)
    return next((name for name in row if unicodedata.normalize("NFC", name) == wanted), column)


def _nested_within_reason(found: Iterator[Read]) -> Iterator[Read]:
    """The rows; what is too deep for a reader is the fault of the row."""
    try:
        yield from found
    except RecursionError:
        raise Malformed("row", "expected fewer lists and objects in each other") from None


class _Groups:
    """Pieces of rows by key, in a temporary file; memory holds where each of a key's pieces is."""

    def __init__(self, folder: Path | None):
        self._folder = folder
        self._file: IO[bytes] | None = None
        self._places: dict[bytes, list[int]] = {}

    def add(self, key: str, piece: Any) -> None:
        if self._file is None:
            self._file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115  it is closed with this object
        self._places.setdefault(digest(key)[:16], []).append(self._file.tell())
        pickle.dump(piece, self._file, pickle.HIGHEST_PROTOCOL)

    def __iter__(self) -> Iterator[list[Any]]:
        for places in self._places.values():
            assert self._file is not None
            pieces = []
            for place in places:
                self._file.seek(place)
                pieces.append(pickle.load(self._file))
            yield pieces
