"""The arithmetic of PPO, as pure functions.

Shapes: B responses, T response tokens. `mask` [B, T] is True for tokens that count. Every mean over
tokens is a `masked_mean`: a plain mean over a padded tensor would depend on the amount of padding.
"""

from __future__ import annotations

from typing import NamedTuple

import torch


def masked_mean(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return the mean of `x` where `mask` is True; other entries may be anything, even NaN."""
    return torch.where(mask, x, 0.0).sum() / mask.sum()


def masked_var(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return the population variance (divided by n) of `x` where `mask` is True."""
    return masked_mean((x - masked_mean(x, mask)) ** 2, mask)


def normalize(x: torch.Tensor, mask: torch.Tensor, eps: float = 1e-8) -> torch.Tensor:
    """Return (x - mean) / std over the tokens where `mask` is True, and 0 elsewhere.

    Source: openai/lm-human-preferences, lm_human_preferences/utils/core.py,
    `whiten(shift_mean=True)`.
    """
    scaled = (x - masked_mean(x, mask)) * torch.rsqrt(masked_var(x, mask) + eps)
    return torch.where(mask, scaled, 0.0)


def rescale(x: torch.Tensor, mask: torch.Tensor, eps: float = 1e-8) -> torch.Tensor:
    """Scale `x` like `normalize`, but keep its mean.

    For rewards, whose sign has a meaning.

    Source: the same function as for `normalize`, with `whiten(shift_mean=False)`.
    """
    return torch.where(mask, normalize(x, mask, eps) + masked_mean(x, mask), 0.0)


def token_rewards(
    scores: torch.Tensor,
    logprobs: torch.Tensor,
    ref_logprobs: torch.Tensor,
    mask: torch.Tensor,
    kl_coef: float,
) -> torch.Tensor:
    """Return the reward per token that PPO maximises.

    The reward is -kl_coef * (log pi - log pi_ref) at each token. The last token of a response also
    gets the response's score.

    Args:
        scores: [B], one per response.
        logprobs, ref_logprobs: [B, T], nats, of the sampled tokens.

    Returns:
        [B, T], 0 where `mask` is False.

    Source: Ouyang et al. 2022, equation 2. The per-token KL estimate may be negative (k1, never its
    absolute value).
    """
    rewards = torch.where(mask, -kl_coef * (logprobs - ref_logprobs), 0.0)
    last = mask.sum(1) - 1
    rewards[torch.arange(len(scores), device=scores.device), last] += scores
    return rewards


class Advantages(NamedTuple):
    advantages: torch.Tensor  # [B, T]
    returns: torch.Tensor  # [B, T]


def gae(
    rewards: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, gamma: float, gae_lambda: float
) -> Advantages:
    """Compute generalised advantage estimates over each response.

    The value of the state after a response's last token is 0.

    A_t = d_t + gamma * lambda * A_{t+1},  d_t = r_t + gamma * V_{t+1} - V_t,  return_t = A_t + V_t.

    A response that was cut off without an end-of-text token is treated as ended, as in the code
    that InstructGPT builds on (lm-human-preferences).

    Args:
        values: [B, T], of the state before each token.

    Source: Schulman et al. 2016, equation 16; openai/lm-human-preferences, train_policy.py, `loss`.
    """
    rewards, values = torch.where(mask, rewards, 0.0), torch.where(mask, values, 0.0)
    advantages = torch.zeros_like(rewards)
    after, next_value = torch.zeros_like(rewards[:, 0]), torch.zeros_like(rewards[:, 0])
    for t in reversed(range(rewards.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        after = delta + gamma * gae_lambda * after
        advantages[:, t], next_value = after, values[:, t]
    advantages = torch.where(mask, advantages, 0.0)
    return Advantages(advantages, torch.where(mask, advantages + values, 0.0))


def group_advantages(
    rewards: torch.Tensor,
    scored: torch.Tensor,
    group_size: int,
    divide_by_std: bool = False,
    eps: float = 1e-4,
) -> torch.Tensor:
    """Return each response's reward minus the mean of its group, [B].

    Responses of one prompt follow each other. A response without a score counts in no mean, and its
    advantage is 0. The standard deviation divides by n - 1, as in TRL.

    Args:
        rewards: [B], of whole responses.
        scored: [B] bool.

    Source: Shao et al. 2024, section 4.1.2; without the deviation, Liu et al. 2025, section 3.2;
    trl/trainer/grpo_trainer.py.
    """
    mine, counts = rewards.view(-1, group_size), scored.view(-1, group_size)
    number = counts.sum(1, keepdim=True)
    mean = torch.where(counts, mine, 0.0).sum(1, keepdim=True) / number.clamp(min=1)
    differences = torch.where(counts, mine - mean, 0.0)
    if divide_by_std:
        variance = (differences**2).sum(1, keepdim=True) / (number - 1).clamp(min=1)
        differences = differences / (variance.sqrt() + eps)
    return differences.flatten()


def leave_one_out_advantages(
    rewards: torch.Tensor, scored: torch.Tensor, group_size: int
) -> torch.Tensor:
    """Return each response's reward minus the mean of the others of its group, [B].

    Responses of one prompt follow each other. A response without a score counts in no mean. Its
    advantage is 0, and so is that of the only one with a score.

    Args:
        rewards: [B], of whole responses.
        scored: [B] bool.

    Source: Ahmadian et al. 2024, section 3.2; Kool et al. 2019.
    """
    counts = scored.view(-1, group_size).sum(1, keepdim=True)
    # r_i - (sum - r_i) / (n - 1) = (r_i - mean) * n / (n - 1)
    factor = counts / (counts - 1).clamp(min=1)
    differences = group_advantages(rewards, scored, group_size).view(-1, group_size)
    return (differences * factor).flatten()


def equal_groups(rewards: torch.Tensor, scored: torch.Tensor, group_size: int) -> torch.Tensor:
    """Return [B / group_size] bool: the groups whose scored rewards are all equal.

    So are those with one score or none.

    Args:
        rewards: [B], of whole responses.
        scored: [B] bool.

    Source: Yu et al. 2025, section 3.2 (dynamic sampling).
    """
    mine, counts = rewards.view(-1, group_size), scored.view(-1, group_size)
    high = torch.where(counts, mine, -torch.inf).amax(1)
    low = torch.where(counts, mine, torch.inf).amin(1)
    return high <= low


def response_weights(mask: torch.Tensor, loss_mean: str, max_new_tokens: int) -> torch.Tensor:
    """Return [B, T]: the weight of each token's loss, so that responses have the mean asked for.

    The sum over the tokens, divided by the number of responses, is the mean over responses of each
    one's token mean ("responses"), or of its sum over `max_new_tokens` ("constant").

    Source: Shao et al. 2024, equation 3; Liu et al. 2025, section 3.2.
    """
    lengths = mask.sum(1, keepdim=True).clamp(min=1)
    each = 1.0 / (lengths if loss_mean == "responses" else max_new_tokens)
    return torch.where(mask, each, 0.0)


class PolicyLoss(NamedTuple):
    losses: torch.Tensor  # per token
    ratio: torch.Tensor
    clipped: torch.Tensor  # True where the clipped objective is the larger one


def policy_loss(
    new_logprobs: torch.Tensor,
    logprobs: torch.Tensor,
    advantages: torch.Tensor,
    clip_range: float,
    clip_range_high: float | None = None,
) -> PolicyLoss:
    """Return max(-A * ratio, -A * clip(ratio, 1 - eps, 1 + eps)) per token; any shape.

    The log-ratio is clamped to +-20 before the exponential, so that one token cannot overflow the
    loss of a whole batch.

    Args:
        clip_range_high: eps of the upper limit; None: `clip_range`.

    Source: Schulman et al. 2017, equation 7; with two limits, Yu et al. 2025, section 3.1.
    """
    ratio = torch.exp((new_logprobs - logprobs).clamp(-20.0, 20.0))
    high = clip_range if clip_range_high is None else clip_range_high
    plain = -advantages * ratio
    clipped = -advantages * ratio.clamp(1.0 - clip_range, 1.0 + high)
    return PolicyLoss(torch.maximum(plain, clipped), ratio, clipped > plain)


class ValueLoss(NamedTuple):
    losses: torch.Tensor  # per token
    clipped: torch.Tensor


def value_loss(
    new_values: torch.Tensor,
    values: torch.Tensor,
    returns: torch.Tensor,
    value_clip_range: float | None,
) -> ValueLoss:
    """Return 0.5 * max((V - R)^2, (V_clipped - R)^2) per token; any shape.

    V_clipped is V clamped to within `value_clip_range` of the old value. If `value_clip_range` is
    None, nothing is clipped.

    Source: openai/lm-human-preferences, train_policy.py, `loss`.
    """
    plain = (new_values - returns) ** 2
    if value_clip_range is None:
        return ValueLoss(0.5 * plain, torch.zeros_like(plain, dtype=torch.bool))
    near = new_values.clamp(values - value_clip_range, values + value_clip_range)
    clipped = (near - returns) ** 2
    return ValueLoss(0.5 * torch.maximum(plain, clipped), clipped > plain)


def kl_loss(new_logprobs: torch.Tensor, ref_logprobs: torch.Tensor, form: str) -> torch.Tensor:
    """Return KL(policy || reference) as a loss per token; any shape.

    The expectation of its gradient is the gradient of the KL. With d = log pi - log pi_ref, k2 =
    d^2 / 2 has the gradient d * grad log pi, which is that of the KL. k3 = exp(-d) - 1 + d
    estimates the value of the KL better but has another gradient. So k3 only sets the value, and
    the gradient is that of k2.

    Args:
        form: k2 or k3.

    Source: Schulman 2020, http://joschu.net/blog/kl-approx.html.
    """
    difference = new_logprobs - ref_logprobs
    k2 = 0.5 * difference**2
    if form == "k2":
        return k2
    k3 = torch.exp((-difference).clamp(max=20.0)) - 1.0 + difference
    return k2 + (k3 - k2).detach()


def next_kl_coef(
    kl_coef: float, kl: float, target: float, horizon: float, num_episodes: int
) -> float:
    """Return the adaptive KL coefficient after a rollout.

    It rises if the KL is above its target and falls if the KL is below.

    Args:
        kl, target: nats per response.
        horizon: in episodes. A KL that stays 20 % off its target changes the coefficient by a
            factor of 1 +- 0.2 / horizon per episode.

    Source: Ziegler et al. 2019, section 2.2; openai/lm-human-preferences, train_policy.py,
    `AdaptiveKLController`.
    """
    error = min(max(kl / target - 1.0, -0.2), 0.2)
    return kl_coef * (1.0 + error * num_episodes / horizon)


def importance_weights(
    logprobs: torch.Tensor, sampled_logprobs: torch.Tensor, cap: float
) -> torch.Tensor:
    """Return min(pi_trainer / pi_engine, cap) per token; any shape.

    Corrects for an inference engine whose probabilities differ slightly from those of the trained
    model.

    Source: Yao et al. 2025, truncated importance sampling.
    """
    return torch.exp((logprobs - sampled_logprobs).clamp(-20.0, 20.0)).clamp(max=cap)


def explained_variance(
    values: torch.Tensor, returns: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    """Return 1 - Var(returns - values) / Var(returns).

    1 is a perfect value model; 0 is no better than a constant.
    """
    return 1.0 - masked_var(returns - values, mask) / masked_var(returns, mask).clamp(min=1e-8)


def correlation(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return Pearson's correlation of two vectors [B]; 0 if one of them is constant."""
    x, y = x - x.mean(), y - y.mean()
    norms: torch.Tensor = x.norm() * y.norm()
    return (x * y).sum() / norms.clamp(min=1e-12)
