"""The knobs of `tokens` and `pretrain`. Sources: see `align/configs/__init__.py`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from align.configs.curves import GRADIENT, LEARNING_RATE, LOSS, Curve
from align.configs.knobs import (
    StageConfig,
    SupervisedConfig,
    Trained,
    check_ranges,
    knob,
    require,
)
from align.configs.models import ModelConfig, require_one_model

SCHEDULES = ("cosine", "inverse_square_root", "constant")
OPTIMIZERS = ("adamw", "muon", "adafactor")


@dataclass(slots=True, kw_only=True)
class Tokens(StageConfig):
    """Tokenize documents once for all runs that train on them. `plan` adds this step if needed."""

    STAGE: ClassVar[str] = "tokens"
    VERSION: ClassVar[int] = 2  # a document begins with BOS if the tokenizer adds one
    PARALLEL: ClassVar[bool] = False
    OUTPUT: ClassVar[str] = "tokens"
    HEADLINE: ClassVar[tuple[tuple[str, str], ...]] = (("train/tokens", "tokens"),)
    INPUTS: ClassVar[dict[str, str]] = {"data": "documents"}
    OPTIONAL: ClassVar[dict[str, str]] = {
        "tokenizer": "tokenizer",
        "model": "model",
        "seq2seq_model": "seq2seq_model",
    }

    def check_inputs(self) -> None:
        given = [slot for slot in self.OPTIONAL if self.inputs.get(slot)]
        require(
            len(given) == 1,
            "inputs",
            given,
            "a tokenizer (to begin) or a model (to train on), and not both",
        )


@dataclass(slots=True, kw_only=True)
class Pretrain(SupervisedConfig):
    """Train a decoder-only GPT on documents, from scratch or starting from a model."""

    STAGE: ClassVar[str] = "pretrain"
    # 2: GPT-2's position embeddings start with half the standard deviation of its other weights
    # 3: precision is auto
    VERSION: ClassVar[int] = 3
    OUTPUT: ClassVar[str] = "model"
    CURVES: ClassVar[tuple[Curve, ...]] = (LOSS, LEARNING_RATE, GRADIENT)
    HEADLINE: ClassVar[tuple[tuple[str, str], ...]] = (("eval/loss", "eval/loss"),)
    GROUPS: ClassVar[dict[str, tuple[str, Any]]] = {
        "model": ("model, also whole as model=NAME", ModelConfig)
    }
    INPUTS: ClassVar[dict[str, str]] = {"data": "tokens"}
    OPTIONAL: ClassVar[dict[str, str]] = {"tokenizer": "tokenizer", "model": "model"}
    MANY: ClassVar[tuple[str, ...]] = ("data",)
    model: ModelConfig = field(default_factory=ModelConfig, metadata={"comment": "see below"})
    num_steps: int = knob(10_000, "optimizer steps")
    num_epochs: float | None = knob(
        None, "passes over all data, instead of num_steps; 100 in [GPT-1]"
    )
    batch_size: int = knob(512, "rows per optimizer step [GPT-2]")
    ramp_tokens: float | None = knob(
        None,
        "training tokens over which the batch grows linearly to batch_size; 4e9 to 12e9 in [GPT-3]",
    )
    ramp_start_tokens: int = knob(32_000, "tokens in the first batch of a ramp [GPT-3]")
    sequence_length: int | None = knob(None, "tokens per row; None: the model's context")
    isolate_documents: bool = knob(
        False, "true: a token attends only to its own document; false: to its whole row [GPT-3]"
    )
    weights: list[float] = field(
        default_factory=list,
        metadata={
            "comment": (
                "one weight for each of inputs.data, scaled to sum to 1 [GPT-3]; []: as many rows"
                " as each has"
            )
        },
    )
    optimizer: str = knob(
        "adamw",
        "adamw [GPT-3]; muon for the hidden matrices, with adamw without weight decay for the rest"
        " [Muon]; adafactor, whose learning rate is at most 1 / sqrt(step) [T5]",
    )
    learning_rate: float = knob(6e-4, "peak learning rate [GPT-3 small]")
    schedule: str = knob(
        "cosine",
        "learning rate after the warm-up: cosine [GPT-1, GPT-3]; inverse_square_root of the step,"
        " flat over the warm-up [T5]; constant",
    )
    warmup_steps: int | float = knob(
        200,
        "optimizer steps of linear warm-up; below 1: a fraction of all steps [ours; GPT-1: 2,000;"
        " T5: 10,000]",
    )
    warmup_tokens: float | None = knob(
        None, "tokens of warm-up, instead of warmup_steps; 375e6 in [GPT-3]"
    )
    decay_tokens: float | None = knob(
        None, "tokens at which the cosine ends, 260e9 in [GPT-3]; None: with the run"
    )
    final_learning_rate_fraction: float = knob(
        0.1, "fraction of the peak learning rate at which the cosine ends [GPT-3; GPT-1: 0]"
    )
    weight_decay: float = knob(0.1, "decoupled weight decay, on matrices only [GPT-3; GPT-1: 0.01]")
    eval_every: int = knob(200, "steps between evaluations of the held-out loss [ours]")

    def __post_init__(self) -> None:
        check_ranges(self)
        self.check_adam(self.optimizer)
        require(self.optimizer in OPTIMIZERS, "optimizer", self.optimizer, ", ".join(OPTIMIZERS))
        require(self.schedule in SCHEDULES, "schedule", self.schedule, ", ".join(SCHEDULES))
        require(all(w > 0 for w in self.weights), "weights", self.weights, "numbers above 0")
        in_tokens = self.warmup_tokens is not None or self.decay_tokens is not None
        ok = not in_tokens or self.schedule == "cosine"
        require(
            ok, "schedule", self.schedule, "cosine, where warmup_tokens or decay_tokens is given"
        )

    def check_inputs(self) -> None:
        data = self.inputs.get("data") or []
        count = 1 if isinstance(data, str) else len(data)
        ok = not self.weights or len(self.weights) == count
        require(ok, "weights", self.weights, f"one for each of inputs.data, which are {count}")
        require_one_model(self.model, ModelConfig(), self.inputs)
        known = None if self.inputs.get("model") else self.model.context_length
        ok = known is None or self.sequence_length is None or self.sequence_length <= known
        require(
            ok, "sequence_length", self.sequence_length, f"at most model.context_length, {known}"
        )
        architecture = self.model.architecture
        decoder = architecture != "t5" or bool(self.inputs.get("model"))
        require(
            decoder,
            "model.architecture",
            architecture,
            "a decoder alone; t5 has an encoder too: see text_to_text",
        )

    def trained(self, inputs: Mapping[str, Any]) -> tuple[Trained, ...]:
        return (Trained("model" if inputs.get("model") else None, "lm"),)

    def training_tokens(
        self, inputs: Mapping[str, Any], context_length: int
    ) -> tuple[int, int] | None:
        if self.num_epochs is not None or self.ramp_tokens is not None:
            return None
        length = self.sequence_length or context_length
        return self.num_steps * self.batch_size * length, length
