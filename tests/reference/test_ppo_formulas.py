"""PPO's formulas against the papers' equations, written as loops over floats."""

from __future__ import annotations

import math
import random

import pytest
import torch

from align.losses.ppo import explained_variance, gae, normalize, policy_loss, rescale, token_rewards, value_loss

Rows = list[list[float]]


def ragged(seed: int) -> tuple[random.Random, list[int]]:
    rng = random.Random(seed)
    return rng, [rng.randint(1, 9) for _ in range(rng.randint(1, 6))]


def draw(rng: random.Random, lengths: list[int], scale: float = 1.0) -> Rows:
    return [[rng.gauss(0.0, scale) for _ in range(n)] for n in lengths]


def tensor(rows: Rows, fill: float = 0.0) -> torch.Tensor:
    width = max(map(len, rows))
    return torch.tensor([row + [fill] * (width - len(row)) for row in rows], dtype=torch.float64)


def mask_of(lengths: list[int]) -> torch.Tensor:
    return torch.tensor([[t < n for t in range(max(lengths))] for n in lengths])


def agree(got: torch.Tensor, expected: Rows) -> None:
    torch.testing.assert_close(got, tensor(expected), rtol=1e-12, atol=1e-12)


def slow_gae(rewards: list[float], values: list[float], gamma: float, lam: float) -> list[float]:
    """Schulman et al. 2016, equation 16, as the sum that it is: A_t = sum over l of (gamma lambda)^l delta_{t+l}."""
    n = len(rewards)
    state = [*values, 0.0]
    delta = [rewards[t] + gamma * state[t + 1] - state[t] for t in range(n)]
    return [sum((gamma * lam) ** (k - t) * delta[k] for k in range(t, n)) for t in range(n)]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.97, 0.9), (0.9, 0.0), (0.8, 1.0)])
def test_gae_is_equation_16(seed, gamma, lam):
    rng, lengths = ragged(seed)
    rewards, values = draw(rng, lengths), draw(rng, lengths)
    got = gae(tensor(rewards), tensor(values), mask_of(lengths), gamma, lam)
    expected = [slow_gae(r, v, gamma, lam) for r, v in zip(rewards, values, strict=True)]
    agree(got.advantages, expected)
    agree(got.returns, [[a + b for a, b in zip(x, v, strict=True)] for x, v in zip(expected, values, strict=True)])


@pytest.mark.parametrize("seed", range(4))
def test_normalize_and_rescale_are_whitening(seed):
    rng, lengths = ragged(seed)
    rows = [[3.0 + x for x in row] for row in draw(rng, [n + 1 for n in lengths], 2.0)]
    lengths = [n + 1 for n in lengths]
    flat = [x for row in rows for x in row]
    mean = sum(flat) / len(flat)
    std = math.sqrt(sum((x - mean) ** 2 for x in flat) / len(flat) + 1e-8)
    agree(normalize(tensor(rows), mask_of(lengths)), [[(x - mean) / std for x in row] for row in rows])
    agree(rescale(tensor(rows), mask_of(lengths)), [[(x - mean) / std + mean for x in row] for row in rows])


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("clip_range", [0.1, 0.2])
def test_policy_loss_is_equation_7(seed, clip_range):
    rng, _ = ragged(seed)
    new, old, advantages = draw(rng, [50, 50, 50], 0.4)
    got = policy_loss(*(torch.tensor(x, dtype=torch.float64) for x in (new, old, advantages)), clip_range)
    losses, ratios, clipped = [], [], []
    for n, o, a in zip(new, old, advantages, strict=True):
        r = math.exp(n) / math.exp(o)
        bounded = min(max(r, 1 - clip_range), 1 + clip_range)
        losses.append(-min(r * a, bounded * a))
        ratios.append(r)
        clipped.append(bounded * a < r * a)
    torch.testing.assert_close(got.losses, torch.tensor(losses, dtype=torch.float64), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(got.ratio, torch.tensor(ratios, dtype=torch.float64), rtol=1e-12, atol=1e-12)
    assert got.clipped.tolist() == clipped
    assert 0 < sum(clipped) < len(clipped)


@pytest.mark.parametrize("seed", range(4))
def test_value_loss_is_the_larger_of_the_clipped_and_the_plain(seed):
    rng, _ = ragged(seed)
    new, old, returns = draw(rng, [50, 50, 50], 0.5)
    got = value_loss(*(torch.tensor(x, dtype=torch.float64) for x in (new, old, returns)), 0.2)
    losses, clipped = [], []
    for n, o, r in zip(new, old, returns, strict=True):
        near = min(max(n, o - 0.2), o + 0.2)
        losses.append(max((n - r) ** 2, (near - r) ** 2) / 2)
        clipped.append(abs(near - r) > abs(n - r) and near != n)
    torch.testing.assert_close(got.losses, torch.tensor(losses, dtype=torch.float64), rtol=1e-12, atol=1e-12)
    off = got.clipped != torch.tensor(clipped)
    assert not off.any()
    assert 0 < sum(clipped) < len(clipped)


@pytest.mark.parametrize("seed", range(4))
def test_token_rewards_are_equation_2(seed):
    rng, lengths = ragged(seed)
    new, ref = draw(rng, lengths), draw(rng, lengths)
    scores = [rng.gauss(0, 1) for _ in lengths]
    expected = [
        [-0.3 * (a - b) + (score if t == len(x) - 1 else 0.0) for t, (a, b) in enumerate(zip(x, y, strict=True))]
        for x, y, score in zip(new, ref, scores, strict=True)
    ]
    got = token_rewards(
        torch.tensor(scores, dtype=torch.float64), tensor(new, 7.0), tensor(ref, -3.0), mask_of(lengths), 0.3
    )
    agree(got, expected)


@pytest.mark.parametrize("seed", range(4))
def test_explained_variance_is_one_minus_the_share_left(seed):
    rng, lengths = ragged(seed)
    lengths = [n + 1 for n in lengths]
    values, returns = draw(rng, lengths), draw(rng, lengths)
    right = [x for row in returns for x in row]
    left = [x - v for x, v in zip(right, [v for row in values for v in row], strict=True)]

    def spread(xs: list[float]) -> float:
        return sum(x * x for x in xs) / len(xs) - (sum(xs) / len(xs)) ** 2

    got = explained_variance(tensor(values, 9.0), tensor(returns, -9.0), mask_of(lengths))
    assert got.item() == pytest.approx(1 - spread(left) / spread(right), rel=1e-9)
