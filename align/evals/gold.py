"""The gold scorer of a dataset, where its world has one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from align.data import smallworld

Message = dict[str, str]
GoldScorer = Callable[[Sequence[Message], str], float]  # (prompt, response) -> overall score in [0, 1]


def gold_scorer(info: Mapping[str, Any]) -> GoldScorer | None:
    """The scorer that a dataset's `info` names; None for data whose worth only people could tell."""
    named = info.get("gold")
    if named is None:
        return None
    assert named["scorer"] == "smallworld", named
    world_seed = named["world_seed"]
    return lambda prompt, response: smallworld.gold(list(prompt), response, world_seed).overall
