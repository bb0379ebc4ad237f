"""Warn before training begins that a run will hardly change its model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from transformers import PreTrainedModel

FEW_STEPS = 50  # optimizer steps below which fine-tuning rarely moves a loss [ours]


def doubts(rates: Sequence[float], model: PreTrainedModel, trains_all: bool) -> Iterator[str]:
    """Yield one line per sign that a run will hardly change its model.

    Args:
        rates: the learning rate of each optimizer step. AdamW moves a weight by about the rate per
            step, hardly more.
        model: its `stored_dtype` is the precision that its weights are saved in.
        trains_all: False if adapters are trained, which are stored in float32.
    """
    if len(rates) < FEW_STEPS:
        count = "1 optimizer step" if len(rates) == 1 else f"{len(rates)} optimizer steps"
        yield (
            f"only {count}: fewer than {FEW_STEPS} seldom change a model much; lower the batch"
            " size, or train for longer"
        )
    dtype = getattr(model, "stored_dtype", torch.float32)
    if not trains_all or dtype == torch.float32:
        return
    spacing = typical_spacing(model, dtype)
    if (most := sum(rates)) < spacing / 2:
        name = str(dtype).removeprefix("torch.")
        yield (
            f"all steps together move a weight by at most {most:.1g}, and rounding to {name} for"
            f" storage moves a typical one by up to {spacing:.1g}, at random: more than what is"
            " learned; raise learning_rate"
        )


@torch.no_grad()
def typical_spacing(model: PreTrainedModel, dtype: torch.dtype) -> float:
    """Return the distance between two numbers of `dtype` at a typical weight's size.

    That size is the median of the absolute weights in the model's largest matrix.
    """
    largest = max(model.parameters(), key=lambda parameter: parameter.numel())
    sample = largest.detach().flatten()[:: max(1, largest.numel() // 10_000)]
    size = sample.abs().float().median()
    return float(
        torch.finfo(dtype).eps * 2 ** size.clamp(min=torch.finfo(dtype).tiny).log2().floor()
    )
