"""Items with the votes of people, to and from the files of other labelling tools.

Each tool's module turns one `Labelled` into one object of its JSON file, and back. Whatever
they share is here: which tool a file is from, which votes count, and the errors.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from align.errors import ConfigError
from align.labelling import argilla, label_studio
from align.labelling.database import Imported, Votes, checked_vote, item_id
from align.labelling.labelled import ADJUDICATED, Labelled, Vote, Wrong
from align.labelling.snapshots import comparisons


class Tool(NamedTuple):
    """How to read and write the files of a labelling tool.

    Attributes:
        noun: what an object in its files is called.
        key: a name that each object has.
        read: returns the item and the votes in one object.
        write: returns the object of one item; the second argument is the most responses of an item.
        setup: returns the text that prepares the tool: the most responses, and the flags.
        suffix: of the file with that text.
    """

    noun: str
    key: str
    read: Callable[[Mapping[str, Any]], Labelled]
    write: Callable[[Labelled, int], dict[str, Any]]
    setup: Callable[[int, Sequence[str]], str]
    suffix: str


TOOLS = {
    "label-studio": Tool(
        "task", "data", label_studio.read, label_studio.write, label_studio.setup, ".xml"
    ),
    "argilla": Tool(
        "record", "fields", argilla.read, argilla.write, argilla.setup, ".settings.json"
    ),
}


def read(file: Path, tool: str | None) -> tuple[str, list[Labelled]] | None:
    """Return the tool that a file is from, and its items with the votes.

    Args:
        tool: the name of the tool; None: recognise it.

    Returns:
        None if no tool is given and the file is not one JSON list.

    Raises:
        ConfigError: the file cannot be read, is from another tool, or something in it is wrong.
    """
    found = _parsed(file, tool)
    if found is None:
        return None
    name = tool or _recognised(file, found)
    items = []
    for number, each in enumerate(found, 1):
        where = f"{file}: {TOOLS[name].noun} {number}"
        if not isinstance(each, dict) or TOOLS[name].key not in each:
            raise ConfigError(f"{where}: expected an object of {name} with {TOOLS[name].key!r}")
        try:
            item = TOOLS[name].read(each)
        except Wrong as error:
            raise ConfigError(f"{where}: {error}") from None
        items.append(_newest_only(item._replace(where=where)))
    return name, items


def _parsed(file: Path, tool: str | None) -> list[Any] | None:
    """Return the list in a JSON file; None if it is something else and no tool is given."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: cannot be read ({error})") from None
    if tool is None and not text.lstrip().startswith("["):
        return None  # a row on each line
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{file}: not JSON ({error})") from None
    if not isinstance(found, list):
        raise ConfigError(f"{file}: expected one JSON list, got {type(found).__name__}")
    return found


def _recognised(file: Path, found: Sequence[Any]) -> str:
    names = [
        name
        for name, tool in TOOLS.items()
        if found and all(isinstance(each, dict) and tool.key in each for each in found)
    ]
    if len(names) != 1:
        keys = ", ".join(f"{tool.key!r} ({name})" for name, tool in TOOLS.items())
        raise ConfigError(
            f"{file}: the tool is not clear: expected one of {keys} in every object; give --format"
        )
    return names[0]


def _newest_only(item: Labelled) -> Labelled:
    """Keep the newest vote of each labeler."""
    newest: dict[str, Vote] = {}
    for vote in sorted(item.votes, key=lambda vote: vote.at or 0.0):
        newest.pop(vote.labeler, None)
        newest[vote.labeler] = vote
    older = len(item.votes) - len(newest)
    left = {**item.left, "older than another of the same labeler": older} if older else item.left
    return item._replace(votes=list(newest.values()), left=left)


def of_split(items: Sequence[Labelled], split: str, gold: bool) -> list[dict[str, Any]]:
    """Return the rows of a split; with `gold`, each with its `ranks`.

    Raises:
        ConfigError: an item has no ranking, or several that differ, and none is the ground truth.
    """
    rows = [item for item in items if item.split == split]
    return [{**item.row, "ranks": _known(item)} if gold else item.row for item in rows]


def _known(item: Labelled) -> list[int]:
    rankings = [vote.ranks for vote in item.votes if vote.decides]
    rankings = rankings or [vote.ranks for vote in item.votes]
    differ = {tuple(ranks) for ranks in rankings}
    if len(differ) != 1:
        raise ConfigError(
            f"{item.where}: expected one ranking, or a ground truth, for --gold; got"
            f" {len(differ)} different ones"
        )
    return rankings[0]


def take(votes: Votes, items: Sequence[Labelled], tool: str) -> Imported:
    """Write items and the votes on them into a file of votes, all or nothing.

    Raises:
        ConfigError: a vote is not allowed, for example because of a flag that is not known.
    """
    flags = votes.setting("flags")
    checked = []
    for item in items:
        given = []
        for vote in item.votes:
            unknown = {mark for own in vote.flags for mark in own} - set(flags)
            if unknown:
                raise ConfigError(
                    f"{item.where}: {min(unknown)!r} is no flag of {votes.path}; begin a file of"
                    " votes with it: align label create --flags"
                )
            content = vote._asdict()
            try:
                content |= checked_vote(content, len(vote.ranks), flags, imported=True)
            except ValueError as error:
                raise ConfigError(f"{item.where}: {vote.labeler}: {error}") from None
            kept = {name: content[name] for name in ("ranks", "ratings", "flags", "seconds", "at")}
            # The note is whole: the limit on its length is against strangers.
            given.append((vote.labeler, {**kept, "note": vote.note, "imported": tool}))
        checked.append((item.row, item.split, given))
    return votes.import_votes(checked)


def current(votes: Votes) -> list[Labelled]:
    """Return the items and the votes that count, as a snapshot has them.

    Items whose ranking is known are left out: they test the labelers.
    """
    last = votes.counts()["last"]
    at = {
        (ranking["item"], ranking["labeler"]): ranking["content"].get("at") or ranking["at"]
        for ranking in votes.rankings(last)
    }
    given: dict[str, list[Vote]] = {}
    for row in comparisons(votes, last):  # an admin's decision has ranks alone
        vote = Vote(
            row["labeler"],
            row["ranks"],
            row.get("ratings", [None] * len(row["ranks"])),
            row.get("flags", [[] for _ in row["ranks"]]),
            row.get("note", ""),
            row.get("seconds"),
            at.get((row["item"], row["labeler"])),
            row["labeler"] == ADJUDICATED,
        )
        given.setdefault(row["item"], []).append(vote)
    return [
        Labelled(row, split, given.get(item_id(row["prompt"], row["responses"]), []))
        for row, split in votes.items()
    ]


def write(items: Sequence[Labelled], tool: str, flags: Sequence[str], file: Path) -> Path:
    """Write the items for a tool, and beside them the file that prepares the tool.

    All characters but ASCII are escaped, so that no program on the way changes invisible ones.

    Returns:
        The file beside.
    """
    used = TOOLS[tool]
    most = max((len(item.row["responses"]) for item in items), default=2)
    beside = file.with_suffix(used.suffix)
    for each in (file, beside):
        if each.exists():
            raise ConfigError(f"{each}: exists already; give another --out")
    if beside == file:
        raise ConfigError(f"--out: expected a name that does not end in {used.suffix}, got {file}")
    written = [used.write(item, most) for item in items]
    file.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
    beside.write_text(used.setup(most, flags), encoding="utf-8")
    return beside
