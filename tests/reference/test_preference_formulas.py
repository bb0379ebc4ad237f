"""InstructGPT's ranking loss against an explicit loop over pairs."""

from __future__ import annotations

import itertools
import math
import random

import pytest
import torch

from align.losses.preference import kwise_loss, pair_confidences, pairwise_accuracy


def pairs(rewards: list[float], ranks: list[int]) -> list[float]:
    """r_better - r_worse of each pair that is not tied."""
    margins = []
    for i, j in itertools.combinations(range(len(ranks)), 2):
        if ranks[i] != ranks[j]:
            better, worse = (i, j) if ranks[i] < ranks[j] else (j, i)
            margins.append(rewards[better] - rewards[worse])
    return margins


def rankings(tied: bool):
    for seed in range(8):
        rng = random.Random(seed)
        k = rng.randint(2, 9)
        ranks = [rng.randint(1, 3) for _ in range(k)] if tied else rng.sample(range(1, k + 1), k)
        yield [rng.choice([-1.0, 0.0, rng.gauss(0, 2)]) for _ in range(k)], ranks


@pytest.mark.parametrize("tied", [False, True])
def test_kwise_loss_is_the_mean_of_pair_losses(tied):
    for rewards, ranks in rankings(tied):
        losses = [-math.log(1 / (1 + math.exp(-margin))) for margin in pairs(rewards, ranks)]
        expected = sum(losses) / len(losses) if losses else 0.0
        got = kwise_loss(torch.tensor(rewards, dtype=torch.float64), torch.tensor(ranks))
        assert got.item() == pytest.approx(expected, rel=1e-12)


def test_without_ties_the_divisor_is_k_choose_2():
    for rewards, ranks in rankings(tied=False):
        total = sum(math.log1p(math.exp(-margin)) for margin in pairs(rewards, ranks))
        got = kwise_loss(torch.tensor(rewards, dtype=torch.float64), torch.tensor(ranks))
        assert got.item() == pytest.approx(total / math.comb(len(ranks), 2), rel=1e-12)


@pytest.mark.parametrize("tied", [False, True])
def test_pairwise_accuracy_counts_pairs(tied):
    for rewards, ranks in rankings(tied):
        margins = pairs(rewards, ranks)
        right = sum(1.0 if margin > 0 else 0.5 if margin == 0 else 0.0 for margin in margins)
        assert pairwise_accuracy(torch.tensor(rewards), torch.tensor(ranks)) == (right, len(margins))


@pytest.mark.parametrize("tied", [False, True])
def test_confidence_is_the_preferred_response_s_and_right_where_it_is_the_labeler_s(tied):
    for rewards, ranks in rankings(tied):
        sure, right = pair_confidences(torch.tensor(rewards, dtype=torch.float64), torch.tensor(ranks))
        margins = pairs(rewards, ranks)
        assert sorted(sure.tolist()) == pytest.approx(sorted(1 / (1 + math.exp(-abs(m))) for m in margins))
        wanted = sorted((1 / (1 + math.exp(-abs(m))), 1.0 if m > 0 else 0.5 if m == 0 else 0.0) for m in margins)
        for found, (confidence, hit) in zip(
            sorted(zip(sure.tolist(), right.tolist(), strict=True)), wanted, strict=True
        ):
            assert found == (pytest.approx(confidence), hit)
