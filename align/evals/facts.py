"""What a model knows of its pretraining text: does it find a true sentence likelier than the false ones beside it?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from align.data import smallworld

TASK = "world_facts"


def known_facts(infos: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]] | None:
    """Items for text whose world can state its facts, the true sentence of each first; None for other text."""
    named = infos[0].get("gold")
    if named is None or any(info.get("gold") != named for info in infos):
        return None
    return [
        {
            "contexts": [""] * len(row),
            "completions": [f"\n{sentence}" for sentence in row],  # as one stands between two in a document
            "labels": [1, *[0] * (len(row) - 1)],
            "group": TASK,
        }
        for row in smallworld.world_facts(named["world_seed"])
    ]
