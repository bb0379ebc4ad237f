"""Learning from rankings: InstructGPT's K-wise loss."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def kwise_loss(rewards: torch.Tensor, ranks: torch.Tensor) -> torch.Tensor:
    """The mean over ordered pairs of -log sigmoid(r_better - r_worse), for the K responses of one prompt.

    InstructGPT writes it as -1/C(K,2) * sum over pairs. Tied pairs carry no order and are left out of the sum; the
    paper does not say what divides it then, and here it is the number of pairs that are left, so that a prompt weighs
    the same however many ties it has.

    Args:
        rewards: [K], one reward a response.
        ranks: [K], 1 is best; equal ranks are ties.

    Returns:
        A scalar; 0 (with a gradient of 0) where every pair is tied.

    Source: Ouyang et al. 2022, equation 1.
    """
    better = ranks[:, None] < ranks[None, :]  # [i, j]: i is better than j
    margins = (rewards[:, None] - rewards[None, :])[better]
    return -F.logsigmoid(margins).sum() / max(margins.numel(), 1)


def pair_confidences(rewards: torch.Tensor, ranks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of each ordered pair, how sure the rewards are and whether they are right; both [P].

    A reward model says that one response is better with probability sigmoid(difference); its confidence is that of the
    response it prefers. `ranks` [K] say which is; equal rewards of an ordered pair are half right.
    """
    better = ranks[:, None] < ranks[None, :]
    margins = (rewards[:, None] - rewards[None, :])[better]
    return torch.sigmoid(margins.abs()), (torch.sign(margins) + 1) / 2


def pairwise_accuracy(rewards: torch.Tensor, ranks: torch.Tensor) -> tuple[float, int]:
    """(pairs that `rewards` puts in the order of `ranks`, pairs that are not tied); both arguments [K].

    Equal rewards of an ordered pair count half.
    """
    better = ranks[:, None] < ranks[None, :]
    order = torch.sign(rewards[:, None] - rewards[None, :])[better]
    return float((order + 1).sum() / 2), int(better.sum())
