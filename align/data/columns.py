"""The columns of a user's row: how they are spelled, which were read, and which hold something that nobody read."""

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
        read: the columns that were asked for by name. Copies (`{**row}`) do not count: what they keep is in the result.
        skipped: fields within a column that no reader knows, as `messages[].id`.
        in_table: whether the row is of a CSV or TSV file, in which a list is text.
        called: name -> what the column is called in the file, where a user gave another.
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
        """The row with other values; what is read of it counts as read of this one."""
        return Columns({**self, **other}, self.read, self.skipped, in_table=self.in_table, called=self.called)


def skip(row: Mapping[str, Any], column: str, fields: Iterable[str]) -> None:
    """Note fields within a column of lists that a reader leaves unread."""
    if isinstance(row, Columns):
        row.skipped.update(f"{column}[].{field}" for field in fields)


def in_table(row: Mapping[str, Any]) -> bool:
    """True for a row of a CSV or TSV file, in which a list is text."""
    return isinstance(row, Columns) and row.in_table


def holds_something(value: Any) -> bool:
    return value not in _NOTHING


def first_of(row: Mapping[str, Any], names: Iterable[str]) -> str | None:
    """The first of the columns that a row has with something in it; asking does not count as reading."""
    filled = {name for name, value in row.items() if holds_something(value)}
    return next((name for name in names if name in filled), None)


def number(value: Any) -> float | None:
    """A number, or text that spells one as in a CSV file; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        found = float(value)
    except (ValueError, OverflowError):
        return None
    return found if found - found == 0 else None  # neither NaN nor infinite


def truth(value: Any) -> bool | None:
    """A truth value, as JSON, a number (1, 0) or a CSV file spells it; None for anything else."""
    if isinstance(value, str):
        word = value.strip().lower()
        value = word == "true" if word in ("true", "false") else number(word)
    if isinstance(value, bool):
        return value
    return bool(value) if isinstance(value, int | float) and value in (0, 1) else None


def from_json(value: Any) -> Any:
    """Lists and objects that a table holds as JSON text; any other value as it is."""
    if isinstance(value, str) and value.lstrip().startswith(("[", "{")):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def listed_in(cell: str) -> list[Any] | None:
    """A list that a cell of a table spells, as JSON or as pandas writes one: `["a", "b"]`, `['a', 'b']`."""
    found = from_json(cell)
    if found is cell and cell.lstrip().startswith("["):
        with contextlib.suppress(ValueError, SyntaxError, MemoryError, RecursionError):
            found = ast.literal_eval(cell.strip())
    return found if isinstance(found, list) else None


# -- headers -------------------------------------------------------------------------------------------------------


def plain_name(name: str) -> str:
    """`Instruction ` and `Response 1` as a program names a column: instruction, response_1."""
    return re.sub(r"[\s\-]+", "_", name.strip()).lower()


def respelled(names: Iterable[Any], known: Mapping[str, str]) -> dict[str, str]:
    """Which of a row's columns are known ones in another spelling.

    Args:
        names: the row's.
        known: plain name -> the spelling that readers ask for.

    Returns:
        The row's name -> the known one. A column is left alone where its name is known or another column has that name.
    """
    names = [name for name in names if isinstance(name, str)]
    taken, found = set(names), {}
    for name in names:
        wanted = known.get(plain_name(name))
        if wanted is not None and wanted not in taken:
            found[name] = wanted
            taken.add(wanted)
    return found


# -- a guess at what a user's columns are --------------------------------------------------------------------------

_MEANINGS = {  # record field -> what people call it
    "prompt": ("prompt", "question", "query", "instruction", "request", "input", "problem", "user", "ask", "task", "q"),
    "completion": ("completion", "answer", "response", "output", "reply", "assistant", "solution", "target", "a"),
    "chosen": ("chosen", "good", "better", "best", "preferred", "accepted", "winner", "win", "positive"),
    "rejected": ("rejected", "bad", "worse", "worst", "dispreferred", "refused", "loser", "lose", "negative"),
    "text": ("text", "content", "document", "body", "passage", "article", "story", "page"),
    "label": ("label", "class", "category", "sentiment", "target", "gold", "verdict", "intent", "topic"),
}


def guess(fields: Iterable[str], row: Mapping[str, Any]) -> dict[str, str]:
    """Guess which column of a row each field of a record is: by what its name says, then by what is left over.

    Returns:
        Field -> column, for those that were found. Only columns of text or lists are considered; with a label, numbers
        are, too.
    """
    fields = list(fields)
    kinds = (str, list, int) if "label" in fields else (str, list)
    free = [name for name, value in row.items() if isinstance(name, str) and isinstance(value, kinds)]
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
    """From 0 to 1. A word of the name counts most, a part of a word less, a spelling that is near least."""
    words = plain_name(name).split("_")
    meanings = _MEANINGS[field]
    for place, meaning in enumerate(meanings):
        if meaning in words:
            return 1 - place / 100
        if len(meaning) > 3 and any(meaning in word for word in words):
            return 0.8 - place / 100
    near = max(difflib.SequenceMatcher(None, plain_name(name), m).ratio() for m in meanings if len(m) > 3)
    return 0.7 if near > 0.8 else 0.0


def as_knob(columns: Mapping[str, str]) -> str:
    """`columns='{prompt: my_question}'`, as it is typed in a shell."""
    pairs = ", ".join(f"{field}: {_quoted(column)}" for field, column in columns.items())
    return "columns=" + shlex.quote(f"{{{pairs}}}")


def _quoted(name: str) -> str:
    """A name as Hydra and OmegaConf read it back: a backslash is special before a quote, before `${` and at the end."""
    if re.fullmatch(r"[A-Za-z_]\w*", name) and name.lower() not in ("null", "true", "false", "nan", "inf"):
        return name
    escaped = re.sub(r'(\\*)("|\$\{|$)', lambda found: found[1] * 2 + (found[2] and "\\" + found[2]), name)
    return f'"{escaped}"'


def counted(columns: Counter[str]) -> str:
    """`category (3,000 rows), id (3,000)`: columns in the order of their counts, then of their names."""
    ordered = sorted(columns.items(), key=lambda item: (-item[1], item[0]))
    said = [f"{name} ({count:,})" for name, count in ordered]
    name, count = ordered[0]
    said[0] = f"{name} ({count:,} row{'s' if count != 1 else ''})"
    return ", ".join(said).encode(errors="backslashreplace").decode()  # half of a surrogate pair cannot be printed
