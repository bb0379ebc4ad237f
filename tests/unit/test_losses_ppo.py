"""Identities of PPO's arithmetic."""

from __future__ import annotations

import math

import pytest
import torch

from align.losses.ppo import (
    explained_variance,
    gae,
    masked_mean,
    masked_var,
    normalize,
    policy_loss,
    rescale,
    token_rewards,
    value_loss,
)

LENGTHS = torch.tensor([5, 1, 3, 4])
MASK = torch.arange(5)[None, :] < LENGTHS[:, None]


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def widened(x: torch.Tensor, fill: float) -> torch.Tensor:
    """Two more columns, and everything that does not count, set to `fill`."""
    inside = torch.where(MASK, x, torch.full_like(x, fill))
    return torch.cat([inside, inside.new_full((len(x), 2), fill)], dim=1)


WIDE_MASK = torch.cat([MASK, torch.zeros(4, 2, dtype=torch.bool)], dim=1)


def test_masked_mean_and_var_by_hand():
    x = torch.tensor([[1.0, 3.0, math.nan], [8.0, math.inf, -7.0]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    assert masked_mean(x, mask).item() == 4.0
    assert masked_var(x, mask).item() == pytest.approx((9 + 1 + 16) / 3, rel=1e-6)


def test_masked_mean_sends_no_gradient_to_what_does_not_count():
    x = torch.tensor([[2.0, math.nan]], requires_grad=True)
    masked_mean(x, torch.tensor([[True, False]])).backward()
    assert x.grad.tolist() == [[1.0, 0.0]]


def test_lambda_one_is_return_minus_value():
    rewards, values = normal(4, 5), normal(4, 5, seed=1)
    got = gae(rewards, values, MASK, 0.9, 1.0)
    for i, n in enumerate(LENGTHS.tolist()):
        for t in range(n):
            total = sum(0.9 ** (k - t) * rewards[i, k].item() for k in range(t, n))
            assert got.returns[i, t].item() == pytest.approx(total, rel=1e-12)
            assert got.advantages[i, t].item() == pytest.approx(total - values[i, t].item(), rel=1e-9)


def test_lambda_zero_is_the_td_residual():
    rewards, values = normal(4, 5), normal(4, 5, seed=1)
    got = gae(rewards, values, MASK, 0.9, 0.0).advantages
    for i, n in enumerate(LENGTHS.tolist()):
        for t in range(n):
            after = values[i, t + 1] if t + 1 < n else 0.0
            assert got[i, t].item() == pytest.approx((rewards[i, t] + 0.9 * after - values[i, t]).item(), rel=1e-12)


def test_gamma_zero_looks_at_one_reward():
    rewards, values = normal(4, 5), normal(4, 5, seed=1)
    got = gae(rewards, values, MASK, 0.0, 0.7)
    close(got.advantages[MASK], (rewards - values)[MASK])
    close(got.returns[MASK], rewards[MASK])


def test_gae_of_three_tokens_by_hand():
    got = gae(torch.tensor([[0.0, 0.0, 1.0]]), torch.tensor([[0.5, 0.25, 0.5]]), torch.ones(1, 3).bool(), 1.0, 0.5)
    assert got.advantages.tolist() == [[0.0 - 0.25 + 0.5 * (0.25 + 0.5 * 0.5), 0.25 + 0.5 * 0.5, 0.5]]
    assert got.returns.tolist() == [[0.5, 0.75, 1.0]]


def test_gae_leaves_its_arguments_alone():
    rewards, values = normal(4, 5), normal(4, 5, seed=1)
    kept = rewards.clone(), values.clone()
    gae(rewards, values, MASK, 0.9, 0.95)
    assert torch.equal(rewards, kept[0])
    assert torch.equal(values, kept[1])


@pytest.mark.parametrize("fill", [0.0, 1e6, math.nan, math.inf])
def test_padding_changes_nothing(fill):
    rewards, values, ref, scores = normal(4, 5), normal(4, 5, seed=1), normal(4, 5, seed=2), normal(4, seed=3)
    short = gae(rewards, values, MASK, 0.9, 0.95)
    long = gae(widened(rewards, fill), widened(values, fill), WIDE_MASK, 0.9, 0.95)
    for a, b in zip(short, long, strict=True):
        close(b, widened(a, 0.0))
    for f in (normalize, rescale):
        close(f(widened(rewards, fill), WIDE_MASK), widened(f(rewards, MASK), 0.0))
    close(
        token_rewards(scores, widened(rewards, fill), widened(ref, fill), WIDE_MASK, 0.1),
        widened(token_rewards(scores, rewards, ref, MASK, 0.1), 0.0),
    )
    close(
        explained_variance(widened(values, fill), widened(rewards, fill), WIDE_MASK),
        explained_variance(values, rewards, MASK),
    )


def test_row_order_changes_nothing():
    rewards, values, scores = normal(4, 5), normal(4, 5, seed=1), normal(4, seed=3)
    order = torch.tensor([2, 0, 3, 1])
    for a, b in zip(
        gae(rewards, values, MASK, 0.9, 0.95), gae(rewards[order], values[order], MASK[order], 0.9, 0.95), strict=True
    ):
        close(b, a[order])
    close(normalize(rewards[order], MASK[order]), normalize(rewards, MASK)[order])
    close(
        token_rewards(scores[order], rewards[order], values[order], MASK[order], 0.1),
        token_rewards(scores, rewards, values, MASK, 0.1)[order],
    )


def test_without_kl_the_reward_is_the_score_at_the_last_token_only():
    got = token_rewards(torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.randn(4, 5), torch.randn(4, 5), MASK, 0.0)
    assert got.tolist() == [[0, 0, 0, 0, 1], [2, 0, 0, 0, 0], [0, 0, 3, 0, 0], [0, 0, 0, 4, 0]]


def test_a_negative_kl_estimate_is_kept():
    got = token_rewards(torch.zeros(1), torch.tensor([[-3.0, -1.0]]), torch.tensor([[-1.0, -3.0]]), MASK[:1, :2], 0.5)
    assert got.tolist() == [[1.0, -1.0]]


def test_rewards_of_a_response_sum_to_score_minus_penalty():
    logprobs, ref, scores = normal(4, 5), normal(4, 5, seed=1), normal(4, seed=2)
    kl = torch.tensor([(logprobs[i, :n] - ref[i, :n]).sum() for i, n in enumerate(LENGTHS.tolist())])
    close(token_rewards(scores, logprobs, ref, MASK, 0.2).sum(1), scores - 0.2 * kl)


def test_normalize_has_mean_0_and_variance_1_and_0_elsewhere():
    got = normalize(5.0 + 3.0 * normal(4, 5), MASK)
    counted = got[MASK]
    assert counted.mean().item() == pytest.approx(0.0, abs=1e-12)
    assert counted.var(unbiased=False).item() == pytest.approx(1.0, rel=1e-8)
    assert (got[~MASK] == 0).all()


def test_rescale_keeps_the_mean():
    x = 5.0 + 3.0 * normal(4, 5)
    got = rescale(x, MASK)
    assert got[MASK].mean().item() == pytest.approx(x[MASK].mean().item(), rel=1e-12)
    assert got[MASK].var(unbiased=False).item() == pytest.approx(1.0, rel=1e-8)
    assert (got[~MASK] == 0).all()


def test_at_ratio_one_the_gradient_is_that_of_minus_advantage_times_logprob():
    logprobs, advantages = normal(4, 5), normal(4, 5, seed=1)
    one, other = logprobs.clone().requires_grad_(), logprobs.clone().requires_grad_()
    loss = policy_loss(one, logprobs, advantages, 0.2)
    loss.losses.sum().backward()
    (-advantages * other).sum().backward()
    close(one.grad, other.grad)
    assert (loss.ratio == 1).all()
    assert not loss.clipped.any()
    close(loss.losses.detach(), -advantages)


def test_clipping_is_one_sided():
    ratio = torch.tensor([1.5, 1.5, 0.5, 0.5], dtype=torch.float64)
    new = ratio.log().requires_grad_()
    advantages = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64)
    got = policy_loss(new, torch.zeros(4, dtype=torch.float64), advantages, 0.2)
    got.losses.sum().backward()
    close(got.losses.detach(), torch.tensor([-1.2, 1.5, -0.5, 0.8], dtype=torch.float64))
    assert got.clipped.tolist() == [True, False, False, True]
    assert got.clipped.double().mean().item() == 0.5
    close(new.grad, torch.tensor([0.0, 1.5, -0.5, 0.0], dtype=torch.float64))


def test_a_huge_log_ratio_stays_finite():
    got = policy_loss(torch.tensor([1e4, -1e4]), torch.zeros(2), torch.tensor([-1.0, 1.0]), 0.2)
    assert got.ratio.tolist() == pytest.approx([math.exp(20.0), math.exp(-20.0)], rel=1e-6)
    assert got.losses.isfinite().all()


def test_value_loss_without_clipping_is_half_the_square():
    new, old, returns = normal(6), normal(6, seed=1), normal(6, seed=2)
    got = value_loss(new, old, returns, None)
    close(got.losses, 0.5 * (new - returns) ** 2)
    assert got.clipped.tolist() == [False] * 6


def test_a_wide_value_clip_range_clips_nothing():
    new, old, returns = normal(6), normal(6, seed=1), normal(6, seed=2)
    got = value_loss(new, old, returns, 1e3)
    torch.testing.assert_close(got.losses, 0.5 * (new - returns) ** 2)


def test_a_value_that_moved_too_far_gets_no_gradient():
    new = torch.tensor([1.0, -1.0], requires_grad=True)
    got = value_loss(new, torch.zeros(2), torch.tensor([2.0, 2.0]), 0.25)
    got.losses.sum().backward()
    assert got.losses.tolist() == [0.5 * 1.75**2, 0.5 * 9.0]
    assert got.clipped.tolist() == [True, False]
    assert new.grad.tolist() == [0.0, -3.0]


def test_explained_variance_of_perfect_and_of_constant_values():
    returns = normal(4, 5)
    assert explained_variance(returns, returns, MASK).item() == 1.0
    assert explained_variance(torch.full_like(returns, 3.0), returns, MASK).item() == pytest.approx(0.0, abs=1e-12)
    assert explained_variance(returns + 7.0, returns, MASK).item() == pytest.approx(1.0, abs=1e-12)


def test_a_value_within_its_range_is_never_called_clipped_in_float32():
    generator = torch.Generator().manual_seed(0)
    new, values, returns = 0.05 * torch.randn(3, 10_000, generator=generator)
    got = value_loss(new, values, returns, 0.2)
    assert not got.clipped[(new - values).abs() < 0.199].any()
