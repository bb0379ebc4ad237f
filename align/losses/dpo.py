"""The losses of direct preference optimization, as pure functions."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def dpo_loss(
    log_ratios: torch.Tensor,
    ranks: torch.Tensor,
    lengths: torch.Tensor,
    beta: float,
    loss: str = "sigmoid",
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """Return the mean loss over the ordered pairs of one prompt.

    With h = log_ratio_better - log_ratio_worse, the loss of a pair is

        sigmoid: -log sigmoid(beta h)
        robust: an unbiased estimate of that on clean labels, if `label_smoothing` of them are wrong
        hinge: max(0, 1 - beta h)
        ipo: (h - 1 / (2 beta))^2, with the log-ratios per token

    Tied pairs have no order and are left out. With 2 responses there is 1 pair.

    Args:
        log_ratios: [K], log pi - log pi_ref of each whole response, in nats.
        ranks: [K], 1 is best; equal ranks are ties.
        lengths: [K], tokens of each response.

    Returns:
        A scalar; 0 (with a gradient of 0) if every pair is tied.

    Source: Rafailov et al. 2023, equation 7; robust: Chowdhury et al. 2024, section 3; hinge: Zhao
    et al. 2023; ipo: Azar et al. 2023, equation 17, per token as in trl/trainer/dpo_trainer.py.
    """
    if loss == "ipo":
        log_ratios = log_ratios / lengths
    better = ranks[:, None] < ranks[None, :]  # [i, j]: i is better than j
    margins = (log_ratios[:, None] - log_ratios[None, :])[better]
    if loss == "ipo":
        losses = (margins - 1 / (2 * beta)) ** 2
    elif loss == "hinge":
        losses = F.relu(1 - beta * margins)
    elif loss == "robust":
        right, turned_round = -F.logsigmoid(beta * margins), -F.logsigmoid(-beta * margins)
        losses = (1 - label_smoothing) * right - label_smoothing * turned_round
        losses = losses / (1 - 2 * label_smoothing)
    else:
        losses = -F.logsigmoid(beta * margins)
    return losses.sum() / max(margins.numel(), 1)
