"""What the steps of a plan will train: parameters, and floating-point operations where their tokens are known.

By the formulas of `align/sizes.py`, or from what the store holds; nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from align.artifacts import ArtifactStore
from align.configs import ModelConfig, Ppo, Pretrain, Reward, Sft, Tokenizer, Tokens
from align.plan import Source, Step
from align.sizes import Weight, parameters, training_flops, weights


class Cost(NamedTuple):
    """Of one step; None where it trains no model, or where it cannot be known beforehand."""

    parameters: int | None = None
    flops: int | None = None


Made = tuple[ModelConfig, list[Weight]]  # a language model


def step_costs(steps: Sequence[Step], store: ArtifactStore) -> dict[str, Cost]:
    """The cost of each step, by its label."""
    by_key = {step.key: step for step in steps}
    return {step.label: _cost(step, by_key, store) for step in steps}


def _cost(step: Step, steps: dict[str, Step], store: ArtifactStore) -> Cost:
    config = step.config
    if not isinstance(config, Pretrain | Sft | Reward | Ppo) or (isinstance(config, Ppo) and config.lora.rank):
        return Cost()
    made = _made(step.key, steps, store)
    if made is None:  # what it begins from is not of this plan
        return Cost(_measured(step.stage, step.key, "parameters", store))
    if isinstance(config, Sft):
        return Cost(parameters(made[1]))
    if isinstance(config, Reward):
        return Cost(_as_scalar(made))
    if isinstance(config, Ppo):
        start = step.inputs[config.value_from][0]
        value = _made(start.key, steps, store)
        return Cost(parameters(made[1]) + _as_scalar(value) if value is not None else None)
    if config.num_epochs is not None:
        return Cost(parameters(made[1]))
    length = config.sequence_length or made[0].context_length
    tokens = config.num_steps * config.batch_size * length
    return Cost(parameters(made[1]), training_flops(*made, length) * tokens)


def _made(key: str, steps: dict[str, Step], store: ArtifactStore) -> Made | None:
    """The language model of a planned step, or under its head; it has the size that pretraining gave it.

    None where that pretraining is not in the plan, or its architecture has no formula.
    """
    if key not in steps:
        return None
    step = steps[key]
    if isinstance(step.config, Pretrain) and "model" not in step.inputs:
        vocab_size = _vocab_size(step.inputs["data"][0], steps, store)
        made_of = weights(step.config.model, vocab_size) if vocab_size is not None else None
        return (step.config.model, made_of) if made_of is not None else None
    for slot in ("model", "policy"):
        if slot in step.inputs:
            source = step.inputs[slot][0]
            return _made(source.key, steps, store)
    return None


def _as_scalar(made: Made) -> int:
    """Parameters with a scalar for the head."""
    config, made_of = made
    return parameters([weight for weight in made_of if weight.place != "head"]) + config.hidden_size


def _vocab_size(source: Source, steps: dict[str, Step], store: ArtifactStore) -> int | None:
    """Entries of a tokenizer, or of the one that made tokens: as it was made, or as it is asked for."""
    measured = _measured(source.stage, source.key, "vocab_size", store)
    step = steps.get(source.key)
    if measured is not None or step is None:
        return measured
    if isinstance(step.config, Tokens):  # those of its tokenizer
        return _vocab_size(
            next(step.inputs[slot][0] for slot in ("tokenizer", "model") if slot in step.inputs), steps, store
        )
    return step.config.vocab_size if isinstance(step.config, Tokenizer) else None


def _measured(stage: str, key: str, metric: str, store: ArtifactStore) -> int | None:
    """What the step that made an artifact counted."""
    artifact = store.get(stage, key)
    return int(artifact.metrics[metric]) if artifact is not None and metric in artifact.metrics else None
