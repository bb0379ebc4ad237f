"""Learning a labelled task beside the language: GPT-1's loss."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F


def segment_means(values: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """The mean of each of S segments of `values` [N] that lie end to end, `lengths` [S] long; [S]."""
    owner = torch.repeat_interleave(torch.arange(len(lengths), device=lengths.device), lengths)
    return torch.zeros(len(lengths), dtype=values.dtype, device=values.device).index_add(0, owner, values) / lengths


def row_outputs(logits: torch.Tensor, counts: Sequence[int], kind: str) -> list[torch.Tensor]:
    """The logits of each row from those of its sequences.

    Of classes and scores they are added: the linear layer has no bias, so this is that layer of the added states
    [GPT-1, section 3.3: similarity]. Of a choice each answer has its scalar.

    Args:
        logits: [S, C], row after row; counts: how many sequences each row has; kind: class, choice or score.

    Returns:
        A vector a row: [C], or of a choice [number of answers].
    """
    return [part[:, 0] if kind == "choice" else part.sum(0) for part in logits.split(list(counts))]


def task_loss(output: torch.Tensor, target: float, kind: str) -> torch.Tensor:
    """-log softmax(output) at the class or the right answer, in nats; of a score the squared error [ours]."""
    if kind == "score":
        return (output[0] - target) ** 2
    return F.cross_entropy(output[None], torch.tensor([int(target)], device=output.device))


def joint_loss(task: torch.Tensor, lm: torch.Tensor, lm_coef: float) -> torch.Tensor:
    """L3 = L2 + lambda L1 [GPT-1, equation 5]; scalars."""
    return task + lm_coef * lm
