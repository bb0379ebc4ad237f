"""Rows of a model's vocabulary for tokens that its tokenizer was given after training."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

# In a model's config: ids whose rows were drawn at import and not trained since, so that LoRA trains them whole.
DRAWN = "align_drawn_tokens"


@torch.no_grad()
def draw_rows(model: PreTrainedModel, ids: Sequence[int], seed: int, untrained: Sequence[int] = ()) -> None:
    """Draw the rows of tokens, where the model reads them and where it predicts them, as its trained rows are spread.

    Each row is drawn apart, from N(mean, deviation) of each dimension over the other rows: the mean itself, which
    `resize_token_embeddings` gives, would make all new tokens one. The model grows where it has too few rows.

    Args:
        model: changed in place, its config too.
        ids: of the new tokens.
        seed: of the draw.
        untrained: which of them training never sees, as padding.
    """
    if not ids:
        return
    rows = model.get_input_embeddings().num_embeddings
    known = min(*ids, rows)  # rows below the first new one are trained
    if max(ids) >= rows:
        model.resize_token_embeddings(max(ids) + 1, mean_resizing=False)
    generator = torch.Generator().manual_seed(seed)
    tables = {
        id(layer.weight): layer for layer in (model.get_input_embeddings(), model.get_output_embeddings()) if layer
    }
    for layer in tables.values():  # one where they are tied
        old = layer.weight[:known].float()
        noise = torch.randn(len(ids), old.shape[1], generator=generator)
        layer.weight[list(ids)] = (old.mean(0) + old.std(0) * noise).to(layer.weight)
        if getattr(layer, "bias", None) is not None:
            layer.bias[list(ids)] = layer.bias[:known].mean()
    if learned := sorted(set(ids) - set(untrained)):
        setattr(model.config, DRAWN, learned)
