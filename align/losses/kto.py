"""The loss of Kahneman-Tversky optimization, and labels from ranks, as pure functions."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def kto_loss(
    log_ratios: torch.Tensor,
    desirable: torch.Tensor,
    baseline: torch.Tensor | float,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> torch.Tensor:
    """Return the loss of each response, `[N]`.

    With the log-ratio r of a response and the baseline z, the loss is

        desirable: desirable_weight * (1 - sigmoid(beta (r - z)))
        undesirable: undesirable_weight * (1 - sigmoid(beta (z - r)))

    With a baseline of 0 this is the unpaired form of APO-zero.

    Args:
        log_ratios: [N], log pi - log pi_ref of each whole response, in nats.
        desirable: [N] bool.
        baseline: the KL that responses are compared with, in nats; see `kl_baseline`. It gets no
            gradient.

    Source: Ethayarajh et al. 2024, equation 7, with each loss shifted so that it is at least 0;
    D'Oosterlinck et al. 2024, equation 7; both as in trl/trainer/kto_trainer.py.
    """
    if isinstance(baseline, torch.Tensor):
        baseline = baseline.detach()
    signs = torch.where(desirable, 1.0, -1.0)
    weights = torch.where(desirable, desirable_weight, undesirable_weight)
    return weights * torch.sigmoid(-beta * signs * (log_ratios - baseline))


def kl_baseline(log_ratios: torch.Tensor) -> torch.Tensor:
    """Return an estimate of KL(pi, pi_ref) in nats, without a gradient: the mean, at least 0.

    Args:
        log_ratios: [M], log pi - log pi_ref of mismatched pairs: each prompt of the batch with a
            response to another prompt of the batch.

    Source: Ethayarajh et al. 2024, section 4.1.
    """
    return log_ratios.detach().mean().clamp(min=0)


def labels_of_ranks(ranks: Sequence[int]) -> list[bool | None]:
    """Return for each response to a prompt: True for desirable, False for undesirable.

    A response is desirable if it is better than more of the others than are better than it. If it
    is the other way round, it is undesirable. It is None, and left out, if both numbers are equal.
    So of a pair the chosen response is desirable, and the rejected one is not, as in
    `unpair_preference_dataset` of TRL.

    Args:
        ranks: [K], 1 is best; equal ranks are ties.
    """
    labels: list[bool | None] = []
    for own in ranks:
        lead = sum(rank > own for rank in ranks) - sum(rank < own for rank in ranks)
        labels.append(None if lead == 0 else lead > 0)
    return labels
