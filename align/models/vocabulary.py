"""Draw embedding rows for tokens that were added to the tokenizer after training."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

# Config field: ids whose rows were drawn at import and are not trained yet. LoRA trains these rows
# in full.
DRAWN = "align_drawn_tokens"


@torch.no_grad()
def draw_rows(
    model: PreTrainedModel, ids: Sequence[int], seed: int, untrained: Sequence[int] = ()
) -> None:
    """Draw the rows of new tokens in the embeddings and in the head.

    Each row is drawn independently from N(mean, std) of the trained rows, per dimension.
    `resize_token_embeddings` sets each new row to the mean, so all new tokens would start equal.
    The model grows if it has too few rows.

    Args:
        model: changed in place, including its config.
        ids: the new tokens.
        seed: for the random numbers.
        untrained: those of `ids` that never occur in training, such as padding.
    """
    if not ids:
        return
    rows = model.get_input_embeddings().num_embeddings
    known = min(*ids, rows)  # rows below the first new token are trained
    if max(ids) >= rows:
        model.resize_token_embeddings(max(ids) + 1, mean_resizing=False)
    generator = torch.Generator().manual_seed(seed)
    tables = {
        id(layer.weight): layer
        for layer in (model.get_input_embeddings(), model.get_output_embeddings())
        if layer
    }
    for layer in tables.values():  # one table if they are tied
        old = layer.weight[:known].float()
        noise = torch.randn(len(ids), old.shape[1], generator=generator)
        layer.weight[list(ids)] = (old.mean(0) + old.std(0) * noise).to(layer.weight)
        if getattr(layer, "bias", None) is not None:
            layer.bias[list(ids)] = layer.bias[:known].mean()
    if learned := sorted(set(ids) - set(untrained)):
        setattr(model.config, DRAWN, learned)
