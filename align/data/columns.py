"""The columns of a user's row: their spelling, which of them were read, and which were not."""

from __future__ import annotations

import ast
import contextlib
import difflib
import json
import re
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

_NOTHING: tuple[Any, ...] = (None, "", [], {})


class Columns(dict[str, Any]):
    """A row that remembers which of its columns a reader asked for.

    Attributes:
        read: the columns that were asked for by name. Copies (`{**row}`) do not count: what they
            keep is in the result.
        skipped: fields within a column that no reader knows, such as `messages[].id`.
        in_table: True if the row is from a CSV or TSV file, where a list is text.
        called: record field -> the file's column, for the columns that a user renamed.
    """

    def __init__(
        self,
        values: Mapping[str, Any],
        read: set[str] | None = None,
        skipped: set[str] | None = None,
        *,
        in_table: bool = False,
        called: Mapping[str, str] | None = None,
    ):
        super().__init__(values)
        self.read: set[str] = set() if read is None else read
        self.skipped: set[str] = set() if skipped is None else skipped
        self.in_table, self.called = in_table, called or {}

    def __getitem__(self, name: str) -> Any:
        self.read.add(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        self.read.add(name)
        return super().get(name, default)

    def __or__(self, other: Mapping[str, Any]) -> Columns:  # type: ignore[override]
        """Return the row with other values; reading it counts as reading this row."""
        return Columns(
            {**self, **other}, self.read, self.skipped, in_table=self.in_table, called=self.called
        )


def skip(row: Mapping[str, Any], column: str, fields: Iterable[str]) -> None:
    """Note the fields within a column of lists that a reader does not read."""
    if isinstance(row, Columns):
        row.skipped.update(f"{column}[].{field}" for field in fields)


def in_table(row: Mapping[str, Any]) -> bool:
    """True for a row of a CSV or TSV file, where a list is text."""
    return isinstance(row, Columns) and row.in_table


def holds_something(value: Any) -> bool:
    return value not in _NOTHING


def first_of(row: Mapping[str, Any], names: Iterable[str]) -> str | None:
    """Return the first of `names` that is a non-empty column; this does not count as reading."""
    filled = {name for name, value in row.items() if holds_something(value)}
    return next((name for name in names if name in filled), None)


def number(value: Any) -> float | None:
    """Return a number, also from text as in a CSV file; None for anything else, NaN or infinity."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        found = float(value)
    except (ValueError, OverflowError):
        return None
    return found if found - found == 0 else None  # neither NaN nor infinite


def truth(value: Any) -> bool | None:
    """Return a truth value from JSON, a number (1 or 0) or a CSV cell; None for anything else."""
    if isinstance(value, str):
        word = value.strip().lower()
        value = word == "true" if word in ("true", "false") else number(word)
    if isinstance(value, bool):
        return value
    return bool(value) if isinstance(value, int | float) and value in (0, 1) else None


def from_json(value: Any) -> Any:
    """Parse a list or an object that a table holds as JSON text; return other values unchanged."""
    if isinstance(value, str) and value.lstrip().startswith(("[", "{")):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def listed_in(cell: str) -> list[Any] | None:
    """Return a list that a cell spells as JSON or as pandas does: `["a", "b"]`, `['a', 'b']`."""
    found = from_json(cell)
    if found is cell and cell.lstrip().startswith("["):
        with contextlib.suppress(ValueError, SyntaxError, MemoryError, RecursionError):
            found = ast.literal_eval(cell.strip())
    return found if isinstance(found, list) else None


# -- headers ---------------------------------------------------------------------------------------


def plain_name(name: str) -> str:
    """Return a column name as code writes it: `Response 1` -> response_1."""
    return re.sub(r"[\s\-]+", "_", name.strip()).lower()


def respelled(names: Iterable[Any], known: Mapping[str, str]) -> dict[str, str]:
    """Map the columns that are known ones in another spelling to the known names.

    Args:
        names: the row's columns.
        known: plain name -> the name that readers ask for.

    Returns:
        The row's name -> the known name. A column is left out if its name is already the known one
        or another column has the known name.
    """
    names = [name for name in names if isinstance(name, str)]
    taken, found = set(names), {}
    for name in names:
        wanted = known.get(plain_name(name))
        if wanted is not None and wanted not in taken:
            found[name] = wanted
            taken.add(wanted)
    return found


# -- guessing a user's columns ---------------------------------------------------------------------

_MEANINGS = {  # record field -> names that people use for it
    "prompt": (
        "prompt",
        "question",
        "query",
        "instruction",
        "request",
        "input",
        "problem",
        "user",
        "ask",
        "task",
        "q",
    ),
    "completion": (
        "completion",
        "answer",
        "response",
        "output",
        "reply",
        "assistant",
        "solution",
        "target",
        "a",
    ),
    "chosen": (
        "chosen",
        "good",
        "better",
        "best",
        "preferred",
        "accepted",
        "winner",
        "win",
        "positive",
    ),
    "rejected": (
        "rejected",
        "bad",
        "worse",
        "worst",
        "dispreferred",
        "refused",
        "loser",
        "lose",
        "negative",
    ),
    "text": ("text", "content", "document", "body", "passage", "article", "story", "page"),
    "label": (
        "label",
        "class",
        "category",
        "sentiment",
        "target",
        "gold",
        "verdict",
        "intent",
        "topic",
    ),
}


def guess(fields: Iterable[str], row: Mapping[str, Any]) -> dict[str, str]:
    """Guess the column for each field of a record: by the names, then by what is left over.

    Returns:
        Field -> column, for the fields that were found. Only columns of text or lists are
        considered, and integers too if `fields` has a label.
    """
    fields = list(fields)
    kinds = (str, list, int) if "label" in fields else (str, list)
    free = [
        name for name, value in row.items() if isinstance(name, str) and isinstance(value, kinds)
    ]
    scores = {(f, name): _likeness(f, name) for f in fields for name in free}
    found: dict[str, str] = {}
    for (field, name), score in sorted(scores.items(), key=lambda item: -item[1]):
        if score > 0.6 and field not in found and name not in found.values():
            found[field] = name
    unknown = [field for field in fields if field not in found]
    left = [name for name in free if name not in found.values()]
    if len(unknown) == len(left) == 1:
        found[unknown[0]] = left[0]
    return {field: found[field] for field in fields if field in found}


def _likeness(field: str, name: str) -> float:
    """Return how well a name fits a field, from 0 to 1.

    A whole word counts most, a part of a word less, a similar spelling least.
    """
    words = plain_name(name).split("_")
    meanings = _MEANINGS[field]
    for place, meaning in enumerate(meanings):
        if meaning in words:
            return 1 - place / 100
        if len(meaning) > 3 and any(meaning in word for word in words):
            return 0.8 - place / 100
    near = max(
        difflib.SequenceMatcher(None, plain_name(name), m).ratio() for m in meanings if len(m) > 3
    )
    return 0.7 if near > 0.8 else 0.0


def as_knob(columns: Mapping[str, str]) -> str:
    """Return the `columns` option as typed in a shell: `columns='{prompt: my_question}'`."""
    pairs = ", ".join(f"{field}: {_quoted(column)}" for field, column in columns.items())
    return "columns=" + shlex.quote(f"{{{pairs}}}")


def _quoted(name: str) -> str:
    """Return a name quoted for Hydra and OmegaConf.

    In their quoted text, a backslash is special before a quote, before `${` and at the end.
    """
    if re.fullmatch(r"[A-Za-z_]\w*", name) and name.lower() not in (
        "null",
        "true",
        "false",
        "nan",
        "inf",
    ):
        return name
    escaped = re.sub(
        r'(\\*)("|\$\{|$)', lambda found: found[1] * 2 + (found[2] and "\\" + found[2]), name
    )
    return f'"{escaped}"'


def counted(columns: Counter[str]) -> str:
    """Return columns by count, then by name: `category (3,000 rows), id (3,000)`."""
    ordered = sorted(columns.items(), key=lambda item: (-item[1], item[0]))
    said = [f"{name} ({count:,})" for name, count in ordered]
    name, count = ordered[0]
    said[0] = f"{name} ({count:,} row{'s' if count != 1 else ''})"
    # Half of a surrogate pair cannot be printed.
    return ", ".join(said).encode(errors="backslashreplace").decode()
