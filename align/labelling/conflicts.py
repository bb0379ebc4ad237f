"""Items on which labelers disagree, for an admin to decide."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Collection, Sequence
from typing import Any

from align.labelling.agreement import Ranking
from align.labelling.simulated import agreeing_pairs


def conflicts(rankings: Sequence[Ranking], decided: Collection[str]) -> list[dict[str, Any]]:
    """Return items on which two labelers order at least one pair differently, worst first.

    Args:
        decided: items that are left out, because an admin has decided them.
    """
    by_item: dict[str, list[Ranking]] = defaultdict(list)
    for ranking in rankings:
        if ranking["gold"] is None:  # else its ranking is known
            by_item[ranking["item"]].append(ranking)
    found = []
    for item, own in by_item.items():
        if item in decided:
            continue
        against = ordered = 0
        for one, two in itertools.combinations(own, 2):
            alike, both = agreeing_pairs(one["content"]["ranks"], two["content"]["ranks"])
            against, ordered = against + both - alike, ordered + both
        if against:
            found.append(
                {
                    "item": item,
                    "share": against / ordered,
                    "prompt": own[0]["row"]["prompt"],
                    "responses": own[0]["row"]["responses"],
                    "rankings": {each["labeler"]: each["content"]["ranks"] for each in own},
                }
            )
    return sorted(found, key=lambda each: -each["share"])
