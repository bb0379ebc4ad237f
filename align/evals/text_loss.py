"""The loss of a language model on text: nats a token, and bits a byte."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from align.losses.lm import token_losses
from align.text.packing import pack_documents


class TextRows(NamedTuple):
    """Text as packed rows of tokens."""

    rows: torch.Tensor  # [R, length]
    bytes_per_token: float


def encode_text(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, length: int) -> TextRows:
    """Tokenise documents, end each with the end-of-text token, and pack them into rows; the tail is left out."""
    if not texts:
        return TextRows(torch.empty(0, length, dtype=torch.long), math.nan)
    documents = [
        [*ids, tokenizer.eos_token_id] for ids in tokenizer(list(texts), split_special_tokens=True)["input_ids"]
    ]
    size = sum(len(text.encode("utf-8", "surrogatepass")) for text in texts)
    return TextRows(pack_documents(documents, length), size / sum(map(len, documents)))


def num_targets(rows: torch.Tensor) -> int:
    """Tokens of packed rows that are predicted: all but the first of each row."""
    return rows.shape[0] * (rows.shape[1] - 1)


def summed_loss(model: PreTrainedModel, rows: torch.Tensor) -> torch.Tensor:
    """The sum of -log p over the targets of `rows` [R, length], in nats."""
    return _target_losses(model, rows).sum()


def row_losses(model: PreTrainedModel, rows: torch.Tensor) -> torch.Tensor:
    """The mean of -log p over the targets of each of `rows` [R, length], in nats; [R]."""
    return _target_losses(model, rows).view(len(rows), -1).mean(1)


def _target_losses(model: PreTrainedModel, rows: torch.Tensor) -> torch.Tensor:
    rows = rows.to(model.device)
    logits = model(input_ids=rows, use_cache=False).logits
    return token_losses(logits[:, :-1].flatten(0, 1), rows[:, 1:].flatten())
