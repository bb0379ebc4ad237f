"""Who says what an answer is worth: the world's gold scorer, rules of the user's, a reward model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from align.data.records import Row
from align.evals.gold import GoldScorer
from align.functions import load_function
from align.models.heads import load_scalar
from align.models.load import context_length, load_tokenizer
from align.rollout.rewards import Episodes, RewardModel, call_function


class Scorer(NamedTuple):
    """`score` gives each of N answers a number; `parts`, where there are any, what that is made of, [N] each."""

    name: str
    score: Callable[[Sequence[Row], Sequence[str]], list[float]]
    parts: Callable[[Sequence[Row], Sequence[str]], dict[str, list[float]]] | None = None


def by_gold(gold: GoldScorer) -> Scorer:
    """The embedded world's: one number, and the five that it is the product of."""

    def parts(rows: Sequence[Row], answers: Sequence[str]) -> dict[str, list[float]]:
        scores = [gold(row["prompt"], answer) for row, answer in zip(rows, answers, strict=True)]
        return {name: [getattr(score, name) for score in scores] for name in scores[0]._fields}

    return Scorer(
        "gold",
        lambda rows, answers: [gold(r["prompt"], text).overall for r, text in zip(rows, answers, strict=True)],
        parts,
    )


def by_rules(functions: Mapping[str, float]) -> Scorer:
    """The weighted sum of functions of the user's, called as PPO calls them."""
    loaded = {name: load_function(name) for name in functions}

    def score(rows: Sequence[Row], answers: Sequence[str]) -> list[float]:
        episodes = Episodes(rows, (), (), answers)
        values = [weight * np.array(call_function(n, loaded[n], episodes)) for n, weight in functions.items()]
        return np.sum(values, axis=0).tolist()

    return Scorer("rules", score)


def by_reward_model(
    folder: Path, device: torch.device, max_tokens: int, autocast: Callable[[], AbstractContextManager[Any]]
) -> Scorer:
    """A reward model on the text in its own tokens."""
    scalar = load_scalar(folder, device)
    model = RewardModel("reward", scalar, load_tokenizer(folder), context_length(scalar.classifier))
    return Scorer(
        "reward",
        lambda rows, answers: model(Episodes(rows, (), (), answers), device, max_tokens, autocast).tolist(),
    )
