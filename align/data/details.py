"""What comparisons keep beside prompt, responses and ranks, so that evaluations can tell more.

group   the part of a benchmark that a row is in: RewardBench's subset, RM-Bench's domain
styles  the style of each response, as RM-Bench has them
ties    how RewardBench 2 calls a row of its subset Ties: tied:3, or ref:3 for the same question
asked for one answer
votes   the ranks that each annotator gives to the responses
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from align.data.columns import first_of, from_json, number
from align.data.records import Row

# Columns that name a part of a benchmark; the first that is there counts. A user's own column comes
# first: columns={group: NAME}.
GROUPS = ("group", "subset", "domain", "scenario", "category", "dataset")
# RM-Bench's three responses to a side, in the order of its files: short; long; long in Markdown.
STYLES = ("concise", "detailed", "markdown")
PER_RESPONSE = ("styles", "votes")
_VOTES: dict[float, list[int]] = {0: [1, 1], 1: [1, 2], 2: [2, 1]}


def details_of(row: Mapping[str, Any], format: str) -> Row:
    """Return the details of a raw row; empty if it has none.

    Args:
        row: the raw row, under the names that readers ask for.
        format: the format of the row, a name of `FORMATS`.
    """
    found = group_of(row)
    if format == "prompt_chosen_rejected":
        sides = [from_json(row.get(side)) for side in ("chosen", "rejected")]
        num_chosen, num_rejected = (len(s) if isinstance(s, list) else 0 for s in sides)
        if "domain" in row and num_chosen == num_rejected == len(STYLES):
            found["styles"] = [*STYLES, *STYLES]
        if str(row.get("subset")).lower() == "ties" and isinstance(row.get("id"), str):
            found["ties"] = row.get("id")
    if format == "pandalm":
        votes = [number(row.get(f"annotator{i}")) for i in (1, 2, 3)]
        found["votes"] = [_VOTES[vote] for vote in votes if vote in _VOTES]
    return found


def group_of(row: Mapping[str, Any]) -> Row:
    """Return the group of a raw row as a row; empty if no column names one."""
    column = first_of(row, GROUPS)
    value = row.get(column) if column is not None else None
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return {}
    return {"group": str(value)}
