"""Test what a model knows of its pretraining text: true sentences against false ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from align.data import smallworld

TASK = "world_facts"


def known_facts(infos: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]] | None:
    """Return items with the facts of the text's world, each with the true sentence first.

    Return None if the text comes from no world, or from several.
    """
    named = infos[0].get("gold")
    if named is None or any(info.get("gold") != named for info in infos):
        return None
    return [
        {
            "contexts": [""] * len(row),
            # A sentence follows a line break in documents, too.
            "completions": [f"\n{sentence}" for sentence in row],
            "labels": [1, *[0] * (len(row) - 1)],
            "group": TASK,
        }
        for row in smallworld.world_facts(named["world_seed"])
    ]
