"""One item with the votes on it, between a file of votes and the file of another tool."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType, UnionType
from typing import Any, NamedTuple

from align.data.records import SPLITS
from align.labelling.database import MOST_RESPONSES, NAME

ADJUDICATED = "adjudicated"  # the labeler of an admin's decision, in snapshots
MOST_RATING = 7


class Wrong(ValueError):
    """Something in a file is not as expected; the message begins with its place."""


class Vote(NamedTuple):
    """What one labeler said of an item.

    Attributes:
        ranks: one for each response, 1 is best, without gaps.
        ratings: one for each response; None where the labeler gave none.
        flags: a list for each response.
        seconds: None if the tool does not know it.
        at: seconds since 1970; None if the tool does not know it.
        decides: counts as the true ranking.
    """

    labeler: str
    ranks: list[int]
    ratings: list[int | None]
    flags: list[list[str]]
    note: str = ""
    seconds: float | None = None
    at: float | None = None
    decides: bool = False


class Labelled(NamedTuple):
    """An item and the votes on it.

    Attributes:
        row: `prompt`, `responses` and other columns.
        left: votes in the tool's file that are no votes here, by reason.
        where: the file and the place in it, for errors.
    """

    row: dict[str, Any]
    split: str
    votes: list[Vote]
    left: Mapping[str, int] = MappingProxyType({})
    where: str = ""


def wrong(place: str, wanted: str, got: object) -> Wrong:
    """Return the error for a value that is not allowed."""
    shown = "nothing" if got is None else f"{type(got).__name__} {json.dumps(got, default=str)}"
    return Wrong(f"{place}: expected {wanted}, got {shown[:80]}")


def checked_text(value: Any, place: str) -> str:
    if not isinstance(value, str):
        raise wrong(place, "text", value)
    return value


def checked_list(value: Any, place: str, kind: type | UnionType, wanted: str) -> list[Any]:
    """Return a list whose entries are all of one type."""
    if not isinstance(value, list) or not all(isinstance(each, kind) for each in value):
        raise wrong(place, wanted, value)
    return value


def checked_object(value: Any, place: str) -> dict[str, Any]:
    """Return an object; nothing is an empty one."""
    if value is not None and not isinstance(value, dict):
        raise wrong(place, "an object", value)
    return value or {}


def checked_prompt(value: Any, place: str) -> list[dict[str, Any]]:
    """Return a prompt as messages; a text is a message of the user."""
    if isinstance(value, str):
        return [{"role": "user", "content": value}]
    messages = checked_list(value, place, dict, "a text or messages")
    if not messages:
        raise wrong(place, "a text or messages", value)
    for i, message in enumerate(messages):
        for name in ("role", "content"):
            checked_text(message.get(name), f"{place}[{i}].{name}")
    return messages


def checked_responses(texts: Sequence[str], place: str) -> list[str]:
    if not 2 <= len(texts) <= MOST_RESPONSES:
        raise Wrong(f"{place}: expected 2 to {MOST_RESPONSES} responses, got {len(texts)}")
    return list(texts)


def checked_split(value: Any, place: str) -> str:
    """Return the split of an item; an item without one is for training."""
    if value is not None and value not in SPLITS:
        raise wrong(place, f"one of {', '.join(SPLITS)}", value)
    return value or SPLITS[0]


def without_gaps(ranks: Sequence[int]) -> list[int]:
    """Return ranks that order and tie alike and are 1, 2, 3 and so on."""
    places = {rank: i for i, rank in enumerate(sorted(set(ranks)), 1)}
    return [places[rank] for rank in ranks]


def labeler_name(known: str) -> str:
    """Return the name of a labeler for somebody whom another tool calls `known`.

    A name that is not allowed gets the first digits of its sha256, so that two people never
    become one.
    """
    if NAME.fullmatch(known):
        return known
    plain = re.sub(r"[^a-z0-9._-]+", "-", known.lower()).strip("._-")[:40]
    digest = hashlib.sha256(known.encode(errors="surrogatepass")).hexdigest()[:8]
    return f"{plain}-{digest}" if plain else digest
