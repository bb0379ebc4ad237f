"""Estimate the trained parameters and the floating-point operations (FLOPs) of each planned step.

The numbers come from the formulas of `align/models/sizes.py` or from metrics in the store. FLOPs
are known only if the number of tokens is. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from align.configs import ModelConfig, Pretrain, TextToText, Tokenizer
from align.models.sizes import Weight, parameters, training_flops, weights
from align.pipeline.plan import Source, Step
from align.store.artifacts import ArtifactStore


class Cost(NamedTuple):
    """The cost of a step; None if it trains no model, or if the number is not known in advance."""

    parameters: int | None = None
    flops: int | None = None


Made = tuple[ModelConfig, list[Weight]]  # a language model


def step_costs(steps: Sequence[Step], store: ArtifactStore) -> dict[str, Cost]:
    """Return the cost of each step by its label."""
    by_key = {step.key: step for step in steps}
    return {step.label: _cost(step, by_key, store) for step in steps}


def _cost(step: Step, steps: dict[str, Step], store: ArtifactStore) -> Cost:
    """Return the cost by formula, or what the step itself counted if a model is not in the plan."""
    measured = Cost(_measured(step.stage, step.key, "parameters", store))
    trained = step.config.trained(step.inputs)
    total, made = 0, None
    for slot, head in reversed(trained):
        made = _made(step.key if slot is None else step.inputs[slot][0].key, steps, store)
        if made is None:
            return measured
        total += _as_scalar(made) if head == "scalar" else parameters(made[1])
    if made is None:
        return measured
    known = step.config.training_tokens(step.inputs, made[0].context_length)
    return Cost(total, None if known is None else training_flops(*made, known[1]) * known[0])


def _made(key: str, steps: dict[str, Step], store: ArtifactStore) -> Made | None:
    """Return the sizes of the language model that a planned step makes or trains.

    They come from the step that pretrains the model. None if that step is not in the plan, or if
    the architecture has no formula.
    """
    if key not in steps:
        return None
    step = steps[key]
    for slot in ("model", "policy"):
        if slot in step.inputs:
            return _made(step.inputs[slot][0].key, steps, store)
    if not isinstance(step.config, Pretrain | TextToText):
        return None
    source = step.inputs.get("tokenizer") or step.inputs.get("data")
    vocab_size = _vocab_size(source[0], steps, store) if source else None
    made_of = weights(step.config.model, vocab_size) if vocab_size is not None else None
    return (step.config.model, made_of) if made_of is not None else None


def _as_scalar(made: Made) -> int:
    """Return the number of parameters with a scalar head instead of the language-model head."""
    config, made_of = made
    return parameters([weight for weight in made_of if weight.place != "head"]) + config.hidden_size


def _vocab_size(source: Source, steps: dict[str, Step], store: ArtifactStore) -> int | None:
    """Return the entries of a tokenizer, or of the tokenizer that tokens are made with.

    The number is from the metrics of the artifact if it exists, else from the planned step's knobs.
    None if neither knows it.
    """
    measured = _measured(source.stage, source.key, "vocab_size", store)
    if measured is not None or source.key not in steps:
        return measured
    step = steps[source.key]
    if isinstance(step.config, Tokenizer):
        # The size of a published vocabulary is known only once the step has read it.
        return None if step.config.source else step.config.vocab_size
    return (
        _vocab_size(step.inputs["tokenizer"][0], steps, store)
        if "tokenizer" in step.inputs
        else None
    )


def _measured(stage: str, key: str, metric: str, store: ArtifactStore) -> int | None:
    """Return a count from an artifact's metrics; None if the artifact or the metric is missing."""
    artifact = store.get(stage, key)
    return (
        int(artifact.metrics[metric])
        if artifact is not None and metric in artifact.metrics
        else None
    )
