"""Compute token rewards and advantages from a scored rollout."""

from __future__ import annotations

import torch

from align.configs import Ppo
from align.losses.ppo import (
    Advantages,
    explained_variance,
    gae,
    masked_mean,
    normalize,
    rescale,
    token_rewards,
)
from align.rl.rewards import Rewards
from align.rl.rollouts import Rollouts
from align.runtime.log import Metrics


def estimate_advantages(
    cfg: Ppo, rollouts: Rollouts, rewards: Rewards, kl_coef: float
) -> tuple[Advantages, Metrics]:
    """Return advantages and returns for the whole rollout, `[B, T]` each, and their metrics."""
    samples, mask = rollouts.samples, rollouts.samples.mask
    learned = mask & rewards.scored[:, None]  # without a score, the advantage is 0, as in TRL
    in_reward = kl_coef if cfg.kl_form == "reward" else 0.0
    per_token = token_rewards(
        rewards.total, rollouts.logprobs, rollouts.ref_logprobs, mask, in_reward
    )
    if cfg.whiten_rewards:
        per_token = rescale(per_token, learned)
    advantages, returns = gae(per_token, rollouts.values, mask, cfg.gamma, cfg.gae_lambda)
    advantages = torch.where(learned, advantages, 0.0)
    # Without a score, the value's target is its old value.
    returns = torch.where(learned, returns, rollouts.values)
    kl = response_kl(rollouts)
    gap = rollouts.logprobs - samples.sampled_logprobs
    metrics = {
        "objective/kl": float(kl.mean()),
        "objective/reward": float((rewards.total - kl_coef * kl)[rewards.scored].mean()),
        "objective/kl_coef": kl_coef,
        "policy/entropy": float(masked_mean(rollouts.entropies, mask)),
        "policy/sampling_gap": float(masked_mean(gap.abs(), mask)),
        "policy/sampling_kl": float(masked_mean(gap.exp() - 1 - gap, mask)),
        "value/explained_variance": float(explained_variance(rollouts.values, returns, learned)),
    }
    return Advantages(
        normalize(advantages, learned) if cfg.normalize_advantages else advantages, returns
    ), metrics


def response_kl(rollouts: Rollouts) -> torch.Tensor:
    """Return log pi - log pi_ref of each whole response, `[B]`, in nats.

    Its mean estimates the KL.
    """
    return torch.where(rollouts.samples.mask, rollouts.logprobs - rollouts.ref_logprobs, 0.0).sum(1)
