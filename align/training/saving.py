"""Save a language model that a stage has tuned."""

from __future__ import annotations

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from align.models.adapters import Adapters
from align.models.load import round_to_stored, save_model
from align.models.vocabulary import DRAWN
from align.runtime.job import Job


def save_tuned(
    model: PreTrainedModel,
    adapters: Adapters | None,
    name: str,
    merged: bool,
    tokenizer: PreTrainedTokenizerBase,
    job: Job,
) -> PreTrainedModel:
    """Save the tuned model into `job.out`, and return it as it was saved.

    Its weights are rounded to those of the file, so that metrics are of the saved model.

    Args:
        model: with its adapters, if there are any.
        adapters: None if all weights were trained.
        name: the adapter that was trained.
        merged: save a whole model, with the adapter in its weights.
    """
    if adapters is not None and not merged:
        if job.group.is_main:
            adapters.save(name, job.out, tokenizer)
        return model
    model = model if adapters is None else adapters.merged(name)
    vars(model.config).pop(DRAWN, None)  # rows of new tokens are trained now
    round_to_stored(model)
    if job.group.is_main:
        save_model(model, tokenizer, job.out)
    return model
