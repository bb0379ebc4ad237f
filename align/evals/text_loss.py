"""The loss of a language model on rows of text, in nats."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from align.losses.lm import head_logprobs, token_losses
from align.models.packed import head_is_plain


def num_targets(rows: torch.Tensor) -> int:
    """Tokens of rows that are predicted: all but the first of each row."""
    return rows.shape[0] * (rows.shape[1] - 1)


def summed_loss(model: PreTrainedModel, rows: torch.Tensor, position_ids: torch.Tensor | None = None) -> torch.Tensor:
    """The sum of -log p over the targets of `rows` [R, length], in nats.

    Args:
        position_ids: [R, length], where they begin anew within a row: what comes before is then not seen.
    """
    return _target_losses(model, rows, position_ids).sum()


def row_losses(model: PreTrainedModel, rows: torch.Tensor) -> torch.Tensor:
    """The mean of -log p over the targets of each of `rows` [R, length], in nats; [R]."""
    return _target_losses(model, rows, None).view(len(rows), -1).mean(1)


def _target_losses(model: PreTrainedModel, rows: torch.Tensor, position_ids: torch.Tensor | None) -> torch.Tensor:
    """[R * (length - 1)], float32; logits exist for some rows at a time."""
    rows = rows.to(model.device)
    where = {"input_ids": rows, "use_cache": False}
    if position_ids is not None:
        where["position_ids"] = position_ids.to(model.device)
    targets = rows[:, 1:].flatten()
    if not head_is_plain(model):
        return token_losses(model(**where).logits[:, :-1].flatten(0, 1), targets)
    hidden = model.base_model(**where).last_hidden_state[:, :-1].flatten(0, 1)
    head = model.get_output_embeddings()
    return -head_logprobs(hidden, head.weight, head.bias, targets).logprobs
