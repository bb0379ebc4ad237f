"""Losses and metrics for rankings: InstructGPT's K-wise loss, with a margin and a centring term."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def kwise_loss(
    rewards: torch.Tensor,
    ranks: torch.Tensor,
    leads: torch.Tensor | None = None,
    center_rewards_coefficient: float = 0.0,
) -> torch.Tensor:
    """Return the mean of -log sigmoid(r_better - r_worse) over the ordered pairs of one prompt.

    InstructGPT writes it as -1/C(K,2) * sum over pairs. Tied pairs have no order and are left out
    of the sum. The paper does not say how to normalise then. Here the divisor is the number of
    remaining pairs, so that each prompt has the same weight, no matter how many ties it has.

    Args:
        rewards: [K], one reward per response.
        ranks: [K], 1 is best; equal ranks are ties.
        leads: [K, K], by how much the reward of i should exceed that of j; None: 0.
        center_rewards_coefficient: weight of (r_better + r_worse)^2 of each pair, which keeps the
            rewards near 0.

    Returns:
        A scalar; 0 (with a gradient of 0) if every pair is tied.

    Source: Ouyang et al. 2022, equation 1. Margin: Touvron et al. 2023 (Llama 2), equation 2.
    Centring: Eisenstein et al. 2023, as in trl/trainer/reward_trainer.py.
    """
    better = ranks[:, None] < ranks[None, :]  # [i, j]: i is better than j
    margins = (rewards[:, None] - rewards[None, :])[better]
    if leads is not None:
        margins = margins - leads[better]
    losses = -F.logsigmoid(margins)
    if center_rewards_coefficient:
        sums = (rewards[:, None] + rewards[None, :])[better]
        losses = losses + center_rewards_coefficient * sums**2
    return losses.sum() / max(margins.numel(), 1)


def ordered_rewards(
    rewards: torch.Tensor, ranks: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the rewards of the better and of the worse response of each ordered pair, [P] each.

    Args:
        rewards: [K].
        ranks: [K], 1 is best; tied pairs are left out.
    """
    better, worse = (ranks[:, None] < ranks[None, :]).nonzero().unbind(1)
    return rewards[better], rewards[worse]


def ordered_margins(rewards: torch.Tensor, ranks: torch.Tensor) -> torch.Tensor:
    """Return r_better - r_worse for each ordered pair, [P]; tied pairs are left out.

    Args:
        rewards: [K].
        ranks: [K], 1 is best.
    """
    better = ranks[:, None] < ranks[None, :]
    return (rewards[:, None] - rewards[None, :])[better]


def pair_confidences(
    rewards: torch.Tensor, ranks: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the reward model's confidence for each ordered pair, and if it is right.

    A reward model predicts that one response is better with probability sigmoid(difference). Its
    confidence is the probability of the response that it prefers. Tied pairs are left out.

    Args:
        rewards: [K].
        ranks: [K], 1 is best.

    Returns:
        Two tensors [P]: the confidence in [0.5, 1], and 1 if the prediction is right, 0 if it is
        wrong, 0.5 if both rewards are equal.
    """
    margins = ordered_margins(rewards, ranks)
    return torch.sigmoid(margins.abs()), (torch.sign(margins) + 1) / 2


def pairwise_accuracy(rewards: torch.Tensor, ranks: torch.Tensor) -> tuple[float, int]:
    """Count the pairs that `rewards` [K] orders like `ranks` [K].

    Returns:
        (correct pairs, pairs that are not tied in `ranks`). An untied pair with equal rewards
        counts as 0.5 correct.
    """
    better = ranks[:, None] < ranks[None, :]
    order = torch.sign(rewards[:, None] - rewards[None, :])[better]
    return float((order + 1).sum() / 2), int(better.sum())
