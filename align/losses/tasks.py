"""Losses for a labelled task beside language modelling: GPT-1's fine-tuning loss."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F


def segment_means(values: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Return the mean of each of S consecutive segments of `values`.

    Args:
        values: [N], the segments one after the other.
        lengths: [S], of each segment; they sum to N.

    Returns:
        [S].
    """
    owner = torch.repeat_interleave(torch.arange(len(lengths), device=lengths.device), lengths)
    return (
        torch.zeros(len(lengths), dtype=values.dtype, device=values.device).index_add(
            0, owner, values
        )
        / lengths
    )


def row_outputs(logits: torch.Tensor, counts: Sequence[int], kind: str) -> list[torch.Tensor]:
    """Combine the logits of each row's sequences into the logits of the row.

    For classes and scores, the logits are summed. The linear layer has no bias, so this equals the
    layer applied to the summed states [GPT-1, section 3.3: similarity]. For a choice, each answer
    has its own scalar.

    Args:
        logits: [S, C], the sequences of each row are consecutive.
        counts: the number of sequences of each row.
        kind: class, choice or score.

    Returns:
        One vector per row: [C], or [number of answers] for a choice.
    """
    return [part[:, 0] if kind == "choice" else part.sum(0) for part in logits.split(list(counts))]


def task_loss(output: torch.Tensor, target: float, kind: str) -> torch.Tensor:
    """Return -log softmax(output) at the class or the right answer, in nats.

    For a score, return the squared error (align's choice).
    """
    if kind == "score":
        return (output[0] - target) ** 2
    return F.cross_entropy(output[None], torch.tensor([int(target)], device=output.device))


def joint_loss(task: torch.Tensor, lm: torch.Tensor, lm_coef: float) -> torch.Tensor:
    """Return L3 = L2 + lambda * L1 [GPT-1, equation 5]; all are scalars."""
    return task + lm_coef * lm
