"""Convert raw rows to one record, and count every row and column that is left out."""

from __future__ import annotations

import pickle
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

from align.data.columns import Columns, counted, holds_something, respelled
from align.data.details import PER_RESPONSE, details_of, group_of
from align.data.files import RawRow, suffix_of
from align.data.formats import GROUPED, SPELLINGS, infer_format, reader
from align.data.labelled import SPELLINGS_OF_LABELLED
from align.data.records import Dropped, Malformed, Row, check_row, clear_responses, convert, digest
from align.errors import ConfigError


class Read(NamedTuple):
    """A row of the wanted record.

    Attributes:
        split: the split of its file, if known.
        found: the row before its conversion to the wanted record; its split depends on it.
        made: the row as the wanted record.
    """

    split: str | None
    found: Row
    made: Row


class RowReader:
    """A reader of raw rows that gives rows of one record.

    Raw rows that make rows together wait in a temporary file until `joined` is called. Memory holds
    the digest of each key and the place of each of its rows: about 260 bytes per key.

    Args:
        record: the record that the rows become.
        format: the format of a raw row; None: detected from its columns.
        columns: record field -> the file's column, as the user gives them.
        name: the name of the data set, which some tasks write into their text.
        folder: the folder for the temporary file.
        details: comparisons also keep what `details_of` finds.

    Attributes:
        dropped: reason -> number of rows, or parts of a row, that were left out.
        unused: column -> number of rows where the column holds something that is neither read nor
            kept.
        unanswered: record -> number of rows of which only the prompt was kept.
    """

    def __init__(
        self,
        record: str,
        format: str | None = None,
        columns: Mapping[str, str] | None = None,
        name: str = "",
        folder: Path | None = None,
        details: bool = False,
    ):
        self.record, self.format, self.name = record, format, name
        self._details = details
        self.columns = dict(columns or {})
        self.dropped: Counter[str] = Counter()
        self.unused: Counter[str] = Counter()
        self.unanswered: Counter[str] = Counter()
        self._found_columns: set[str] = set()  # the columns in `columns` that some row has
        self._read_fields: set[str] = set()  # the fields that some format reads or keeps
        self._respelled: dict[tuple[Any, ...], dict[str, str]] = {}
        self._kind = ""  # what the label of labelled rows is: "label", "choices" or "score"
        self._groups = _Groups(folder)

    def read(self, raw: RawRow, split: str | None = None) -> Iterator[Read]:
        """Yield the rows that one raw row makes; a raw row of a group waits for `joined`.

        Raises:
            Malformed: no format that can become the record matches the raw row, or the raw row does
                not match its format.
            Dropped: there is nothing to learn from the raw row.
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
        extra: Row = {"group": path.name.partition(".")[0]} if self.record == "items" else {}
        if self.record == record == "comparisons":
            if self._details:
                extra = details_of(row, name)
            elif "group" in self.columns:
                extra = group_of(row)
        if suffix_of(Path(raw.where)) in (".txt", ".md"):
            row.read.add("file")  # the name of a text file, which is not the user's column
        own = {self._own_name(name, spelled): value for name, value in row.items()}
        kept: set[str] = set()
        for found in read(row):
            if isinstance(found, Dropped):
                self.dropped[str(found)] += 1
                continue
            named = {
                self._as_in_file(column, row, spelled): value for column, value in found.items()
            }
            for each in self._made({**extra, **named}, record, split):
                # A field of the record may have a column's name but another value.
                kept.update(
                    name
                    for name, value in own.items()
                    if name in each.made and each.made[name] == value
                )
                yield each
        self._count_columns(row, spelled, kept)

    def joined(self) -> Iterator[tuple[str, Iterator[Read]]]:
        """Yield each group's rows, with the place of the group's first raw row.

        A group's iterator raises the same errors as `read`.
        """
        for pieces in self._groups:
            where, split, name, _ = pieces[0]
            yield (
                where,
                _nested_within_reason(self._join(name, split, [piece for *_, piece in pieces])),
            )

    def lines(self) -> list[str]:
        """Return the messages for the user about columns."""
        said = [f"columns not used: {counted(self.unused)}"] if self.unused else []
        for record, count in self.unanswered.items():
            what = "their answers" if record == "demonstrations" else "their responses and ranks"
            said.append(f"prompts are what {count:,} {record} ask; {what} are not kept")
        return said

    def check_columns(self) -> None:
        """Check the `columns` option against the rows that were read.

        Raises:
            ConfigError: no row has a column that it names, or nothing reads a field that it sets.
        """
        for field, column in self.columns.items():
            if column not in self._found_columns:
                raise ConfigError(f"columns.{field}: no row has a column {column!r}")
            if field not in self._read_fields:
                raise ConfigError(
                    f"columns.{field}: nothing reads {field} from rows of these columns as"
                    f" {self.record}; docs/reference/row-layouts.md lists the columns of each"
                    " layout"
                )

    # -- one row -----------------------------------------------------------------------------------

    def _named(self, raw: Mapping[str, Any], in_table: bool) -> tuple[Columns, dict[str, str]]:
        """Return a row under the names that readers ask for, and the renamed columns as a map.

        The map is from the file's name to the name that readers ask for.
        """
        columns = {field: _as_spelled(column, raw) for field, column in self.columns.items()}
        row = {
            name: value
            for name, value in raw.items()
            if name not in columns and name not in columns.values()
        }
        displaced = {
            name for name in columns.keys() - columns.values() if holds_something(raw.get(name))
        }
        for field, column in columns.items():
            if column in raw:
                self._found_columns.add(self.columns[field])
                row[field] = raw[column]
        names = tuple(row)
        if names not in self._respelled:
            known = {
                plain: name for plain, name in self._spellings().items() if name not in columns
            }
            self._respelled[names] = respelled(names, known)
        spelled = self._respelled[names]
        values = {spelled.get(name, name): value for name, value in row.items()}
        return Columns(values, skipped=displaced, in_table=in_table, called=columns), spelled

    def _spellings(self) -> Mapping[str, str]:
        """Return plain names and the names that readers ask for; none if the format is given.

        A card's format asks for columns exactly as its data set spells them.
        """
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
            # A copy, so that looking at a column here does not count as reading it.
            return infer_format(dict(row), self.record)
        except Malformed:
            for field, column in row.called.items():
                if column not in raw:
                    has = ", ".join(map(str, raw)) or "none"
                    raise Malformed(
                        "columns", f"{field}: no column {column!r}; the file has {has}"
                    ) from None
            raise

    def _as_in_file(self, column: str, row: Columns, spelled: Mapping[str, str]) -> str:
        """Return the name to keep a column under.

        It is the column's name in the file, unless a reader asked for it by the known name.
        """
        return column if column in row.read else self._own_name(column, spelled)

    @staticmethod
    def _own_name(column: str, spelled: Mapping[str, str]) -> str:
        return next((own for own, known in spelled.items() if known == column), column)

    def _made(self, found: Row, record: str, split: str | None, parts: int = 1) -> Iterator[Read]:
        """Yield the row as the wanted record.

        `parts` is the number of raw rows that it is made of; a dropped row counts as this many.
        """
        if self.record == record == "comparisons":
            found, left_out = clear_responses(found)
            self.dropped.update(left_out)
            parts -= left_out.total()
            if left_out and self._details:  # these are one for each response that was there
                found = {k: v for k, v in found.items() if k not in PER_RESPONSE}
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
            if record == "demonstrations" != self.record and any(
                "weight" in each for each in found["messages"]
            ):
                self.unused["messages[].weight"] += 1
            yield Read(split, found, made)

    def _require_one_kind(self, made: Row) -> None:
        """Refuse a row whose label is of another kind than before: class, choice or score.

        A dataset holds one task, and its column `label` has one type.
        """
        given = next((name for name in ("choices", "score") if made.get(name) is not None), "label")
        what = {"choices": "the place of the right choice", "score": "a score", "label": "a class"}
        self._kind = self._kind or given
        if given != self._kind:
            raise Malformed(
                given, f"expected {what[self._kind]}, as the rows before have, got {what[given]}"
            )

    def _join(self, name: str, split: str | None, pieces: list[Row]) -> Iterator[Read]:
        for found in GROUPED[name].join(pieces):
            if isinstance(found, Dropped):
                self.dropped[str(found)] += 1
            else:
                each_a_row = found.get("responses") or found.get("messages") or [found]
                yield from self._made(found, GROUPED[name].record, split, len(each_a_row))

    def _count_columns(
        self, row: Columns, spelled: Mapping[str, str], kept: set[str] | tuple[()]
    ) -> None:
        for name, value in row.items():
            own = self._own_name(name, spelled)
            if name in row.read or own in kept:
                self._read_fields.add(name)
            elif holds_something(value):
                self.unused[str(self.columns.get(name) or own)] += 1
        for name in row.skipped:
            self.unused[name] += 1


def _as_spelled(column: str, row: Mapping[str, Any]) -> str:
    """Return a column's name as the row spells it.

    Unicode can write an accented letter as one character or as two.
    """
    if column in row:
        return column
    wanted = unicodedata.normalize("NFC", column)
    return next((name for name in row if unicodedata.normalize("NFC", name) == wanted), column)


def _nested_within_reason(found: Iterator[Read]) -> Iterator[Read]:
    """Yield the rows; report a recursion error as `Malformed`: the row is nested too deeply."""
    try:
        yield from found
    except RecursionError:
        raise Malformed("row", "expected fewer lists and objects in each other") from None


class _Groups:
    """Pieces of rows by key, in a temporary file.

    Memory holds only the places of each key's pieces.
    """

    def __init__(self, folder: Path | None):
        self._folder = folder
        self._file: IO[bytes] | None = None
        self._places: dict[bytes, list[int]] = {}

    def add(self, key: str, piece: Any) -> None:
        if self._file is None:
            # It is closed with this object.
            self._file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115
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
