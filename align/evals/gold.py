"""The gold scorer of a dataset, if its world has one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from align.data import smallworld
from align.errors import ConfigError
from align.verifiers.episodes import Episodes

Message = dict[str, str]
# (prompt, response) -> the parts of its score, all in [0, 1].
GoldScorer = Callable[[Sequence[Message], str], smallworld.Score]

_FACTUAL = ("fact", "brief", "polite", "check", "sentence", "about")  # kinds of instructions


def gold_scorer(infos: Sequence[Mapping[str, Any]]) -> GoldScorer | None:
    """Return the scorer that all datasets' `info`s name.

    Return None if they name none: only people can judge such data.

    Raises:
        ConfigError: some have a scorer and others have none, or another one.
    """
    named = infos[0].get("gold")
    if any(info.get("gold") != named for info in infos):
        raise ConfigError(
            "inputs.prompts: data sets with a gold scorer can not be mixed with others"
        )
    if named is None:
        return None
    assert named["scorer"] == "smallworld", named
    world_seed = named["world_seed"]
    return lambda prompt, response: smallworld.gold(list(prompt), response, world_seed)


def mean_gold_score(gold: GoldScorer, episodes: Episodes) -> float:
    """Return the mean gold score of the episodes, from 0 to 1."""
    scores = [
        gold(row["prompt"], text).overall
        for row, text in zip(episodes.rows, episodes.texts, strict=True)
    ]
    return sum(scores) / len(scores)


def asks_for_facts(row: Mapping[str, Any]) -> bool:
    """Return whether a prompt of the embedded world asks for facts that its documents state.

    Other claims in answers to such prompts are made up.
    """
    return row.get("kind") in _FACTUAL
