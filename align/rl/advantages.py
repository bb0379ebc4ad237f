"""Compute from a scored rollout what an update learns: advantages, returns, shares in the loss."""

from __future__ import annotations

from typing import NamedTuple

import torch

from align.configs import Ppo, filled
from align.losses.ppo import (
    Advantages,
    equal_groups,
    explained_variance,
    gae,
    group_advantages,
    leave_one_out_advantages,
    masked_mean,
    normalize,
    rescale,
    response_weights,
    token_rewards,
)
from align.rl.rewards import Rewards
from align.rl.rollouts import Rollouts
from align.runtime.log import Metrics


class Targets(NamedTuple):
    """What an update learns from a rollout.

    The policy's loss of some responses is the sum of weight * loss over their tokens, divided by
    the sum of the responses' units.
    """

    advantages: torch.Tensor  # [B, T]
    returns: torch.Tensor  # [B, T], what the value model learns
    weights: torch.Tensor | None  # [B, T]; None: 1 for each token
    units: list[int]  # one per response


def estimate_advantages(
    cfg: Ppo, rollouts: Rollouts, rewards: Rewards, kl_coef: float
) -> tuple[Targets, Metrics]:
    """Return what the whole rollout teaches, and its metrics."""
    samples, mask = rollouts.samples, rollouts.samples.mask
    learned = mask & rewards.scored[:, None]  # without a score, the advantage is 0, as in TRL
    in_reward = kl_coef if cfg.kl_form == "reward" else 0.0
    per_token = token_rewards(
        rewards.total, rollouts.logprobs, rollouts.ref_logprobs, mask, in_reward
    )
    estimate = _with_values if cfg.has_value_model else _without_values
    advantages, returns = estimate(cfg, rollouts, rewards, per_token, learned)
    kl = response_kl(rollouts)
    gap = rollouts.logprobs - samples.sampled_logprobs
    metrics = {
        "objective/kl": float(kl.mean()),
        "objective/reward": float((rewards.total - kl_coef * kl)[rewards.scored].mean()),
        "objective/kl_coef": kl_coef,
        "policy/entropy": float(masked_mean(rollouts.entropies, mask)),
        "policy/sampling_gap": float(masked_mean(gap.abs(), mask)),
        "policy/sampling_kl": float(masked_mean(gap.exp() - 1 - gap, mask)),
    }
    if cfg.has_value_model:
        metrics["value/explained_variance"] = float(
            explained_variance(rollouts.values, returns, learned)
        )
    if cfg.in_groups:
        equal = equal_groups(rewards.total, rewards.scored, cfg.group_size)
        metrics["group/equal"] = float(equal.float().mean())
    if cfg.normalize_advantages:
        advantages = normalize(advantages, learned)
    return Targets(advantages, returns, *_loss_shares(cfg, rollouts, rewards)), metrics


def _with_values(
    cfg: Ppo, rollouts: Rollouts, rewards: Rewards, per_token: torch.Tensor, learned: torch.Tensor
) -> Advantages:
    if cfg.whiten_rewards:
        per_token = rescale(per_token, learned)
    advantages, returns = gae(
        per_token, rollouts.values, rollouts.samples.mask, cfg.gamma, cfg.gae_lambda
    )
    advantages = torch.where(learned, advantages, 0.0)
    # Without a score, the value's target is its old value.
    return Advantages(advantages, torch.where(learned, returns, rollouts.values))


def _without_values(
    cfg: Ppo, rollouts: Rollouts, rewards: Rewards, per_token: torch.Tensor, learned: torch.Tensor
) -> Advantages:
    """Compare the whole reward of each response with others; all its tokens get the difference."""
    whole, scored = per_token.sum(1), rewards.scored
    if cfg.advantage == "group":
        differences = group_advantages(whole, scored, cfg.group_size, cfg.divide_by_group_std)
    elif cfg.advantage == "leave_one_out":
        differences = leave_one_out_advantages(whole, scored, cfg.group_size)
    else:  # the whole rollout is one group
        differences = group_advantages(whole, scored, len(whole))
    return Advantages(torch.where(learned, differences[:, None], 0.0), rollouts.values)


def _loss_shares(
    cfg: Ppo, rollouts: Rollouts, rewards: Rewards
) -> tuple[torch.Tensor | None, list[int]]:
    """Return `Targets.weights` and `Targets.units`."""
    mask = rollouts.samples.mask
    by_token = cfg.loss_mean == "tokens"
    units = mask.sum(1) if by_token else torch.ones_like(mask[:, 0], dtype=torch.int64)
    weights = (
        None if by_token else response_weights(mask, cfg.loss_mean, filled(cfg.max_new_tokens))
    )
    if cfg.drop_equal_groups:
        equal = equal_groups(rewards.total, rewards.scored, cfg.group_size)
        kept = ~equal.repeat_interleave(cfg.group_size)
        weights = torch.where(kept[:, None], mask.float() if weights is None else weights, 0.0)
        units = units * kept
    return weights, units.tolist()


def response_kl(rollouts: Rollouts) -> torch.Tensor:
    """Return log pi - log pi_ref of each whole response, `[B]`, in nats.

    Its mean estimates the KL.
    """
    return torch.where(rollouts.samples.mask, rollouts.logprobs - rollouts.ref_logprobs, 0.0).sum(1)
