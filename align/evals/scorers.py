"""Scorers of answers: the world's gold scorer, a user's functions, a reward model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from align.evals.gold import GoldScorer
from align.models.compute import Compute
from align.models.heads import load_reward_model
from align.models.load import context_length, load_tokenizer
from align.verifiers.episodes import Episodes
from align.verifiers.functions import call_functions, load_functions
from align.verifiers.reward_models import RewardModel


class Scorer(NamedTuple):
    """A scorer of answers.

    Attributes:
        score: returns a number or None for each of N answers.
        parts: returns the parts of these numbers, [N] each; None if there are no parts.
    """

    name: str
    score: Callable[[Episodes], Sequence[float | None]]
    parts: Callable[[Episodes], dict[str, list[float]]] | None = None


def by_gold(gold: GoldScorer) -> Scorer:
    """Return the embedded world's scorer.

    A score is the product of its five parts.
    """

    def scores(episodes: Episodes) -> list[Any]:
        return [
            gold(row["prompt"], text)
            for row, text in zip(episodes.rows, episodes.texts, strict=True)
        ]

    def parts(episodes: Episodes) -> dict[str, list[float]]:
        found = scores(episodes)
        return {name: [getattr(score, name) for score in found] for name in found[0]._fields}

    return Scorer("gold", lambda episodes: [score.overall for score in scores(episodes)], parts)


def by_rules(functions: Mapping[str, float]) -> Scorer:
    """Return a scorer that sums a user's functions with weights.

    PPO calls the functions in the same way. The score is None if no function applies.
    """
    loaded = load_functions(list(functions))

    def score(episodes: Episodes) -> list[float | None]:
        answers = call_functions(loaded, episodes)
        columns = [answers[function.name] for function in loaded]
        table = np.array(columns, dtype=float)  # None becomes NaN
        weights = np.array([functions[function.reference] for function in loaded])
        totals = np.nansum(weights[:, None] * table, axis=0)
        # A function with weight 0 is only watched, so it does not count here.
        unscored = np.isnan(table[weights != 0]).all(axis=0)
        return [
            None if missing else float(total)
            for total, missing in zip(totals, unscored, strict=True)
        ]

    return Scorer("rules", score)


def by_reward_model(folder: Path, compute: Compute) -> Scorer:
    """Return a scorer that is a reward model; it encodes the text in its own tokens."""
    scalar = load_reward_model(folder, compute.device)
    model = RewardModel("reward", scalar, load_tokenizer(folder), context_length(scalar.classifier))
    return Scorer("reward", lambda episodes: model(episodes, compute).tolist())
