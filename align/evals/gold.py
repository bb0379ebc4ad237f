"""The gold scorer of a dataset, where its world has one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from align.data import smallworld
from align.errors import ConfigError

Message = dict[str, str]
GoldScorer = Callable[[Sequence[Message], str], smallworld.Score]  # (prompt, response) -> its parts, all in [0, 1]

_FACTUAL = ("fact", "brief", "polite", "check", "sentence", "about")  # kinds of instruction


def gold_scorer(infos: Sequence[Mapping[str, Any]]) -> GoldScorer | None:
    """The scorer that all datasets' `info`s name; None for data whose worth only people could tell.

    Raises:
        ConfigError: some have one and others none, or another.
    """
    named = infos[0].get("gold")
    if any(info.get("gold") != named for info in infos):
        raise ConfigError("inputs.prompts: data sets with a gold scorer can not be mixed with others")
    if named is None:
        return None
    assert named["scorer"] == "smallworld", named
    world_seed = named["world_seed"]
    return lambda prompt, response: smallworld.gold(list(prompt), response, world_seed)


def asks_for_facts(row: Mapping[str, Any]) -> bool:
    """Whether a prompt of the embedded world is answered with what its documents state; other claims are made up."""
    return row.get("kind") in _FACTUAL
