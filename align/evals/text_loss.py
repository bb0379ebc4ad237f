"""The loss of a language model on rows of text, in nats."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel

from align.losses.lm import head_logprobs, summed_head_loss, token_losses
from align.models.packed import head_is_plain


def num_targets(rows: torch.Tensor) -> int:
    """Return the number of predicted tokens: all but the first of each row."""
    return rows.shape[0] * (rows.shape[1] - 1)


def summed_loss(
    model: PreTrainedModel, rows: torch.Tensor, position_ids: torch.Tensor | None = None
) -> torch.Tensor:
    """Return the sum of -log p over the targets of `rows` [R, length], in nats.

    Args:
        position_ids: [R, length]. Where they restart within a row, earlier tokens are not seen.
    """
    if not head_is_plain(model):
        return _target_losses(model, rows, position_ids).sum()
    rows = rows.to(model.device)
    head = model.get_output_embeddings()
    return summed_head_loss(
        _states(model, rows, position_ids), head.weight, head.bias, rows[:, 1:].flatten()
    )


def row_losses(model: PreTrainedModel, rows: torch.Tensor) -> torch.Tensor:
    """Return the mean of -log p over the targets of each row, [R], in nats.

    `rows` is [R, length].
    """
    return _target_losses(model, rows, None).view(len(rows), -1).mean(1)


def _target_losses(
    model: PreTrainedModel, rows: torch.Tensor, position_ids: torch.Tensor | None
) -> torch.Tensor:
    """Return -log p of each target, [R * (length - 1)], float32.

    If the head is plain, logits exist for some of the rows at a time.
    """
    rows = rows.to(model.device)
    targets = rows[:, 1:].flatten()
    if not head_is_plain(model):
        logits = model(**_where(model, rows, position_ids)).logits
        return token_losses(logits[:, :-1].flatten(0, 1), targets)
    head = model.get_output_embeddings()
    return -head_logprobs(
        _states(model, rows, position_ids), head.weight, head.bias, targets
    ).logprobs


def _states(
    model: PreTrainedModel, rows: torch.Tensor, position_ids: torch.Tensor | None
) -> torch.Tensor:
    """Return the last hidden state before each target, [R * (length - 1), H]."""
    return (
        model.base_model(**_where(model, rows, position_ids))
        .last_hidden_state[:, :-1]
        .flatten(0, 1)
    )


def _where(
    model: PreTrainedModel, rows: torch.Tensor, position_ids: torch.Tensor | None
) -> dict[str, Any]:
    where = {"input_ids": rows, "use_cache": False}
    return (
        where if position_ids is None else where | {"position_ids": position_ids.to(model.device)}
    )
