"""The knobs of `text_to_text`. Sources: see `align/configs/__init__.py`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from align.configs.curves import GRADIENT, LEARNING_RATE, Curve
from align.configs.knobs import SupervisedConfig, Trained, check_ranges, knob, require
from align.configs.models import ModelConfig, require_one_model


def _t5_base() -> ModelConfig:
    return ModelConfig(architecture="t5", initializer_range=1.0)


@dataclass(slots=True, kw_only=True)
class TextToText(SupervisedConfig):
    """Train an encoder-decoder to fill in masked spans of text, on tasks as text, or on both."""

    STAGE: ClassVar[str] = "text_to_text"
    VERSION: ClassVar[int] = 2  # precision is auto
    OUTPUT: ClassVar[str] = "seq2seq_model"
    CURVES: ClassVar[tuple[Curve, ...]] = (
        Curve("loss, nats per token", ("loss", "eval/text/loss", "eval/tasks/loss")),
        Curve("share of answers that are right", ("eval/tasks/accuracy",)),
        LEARNING_RATE,
        GRADIENT,
    )
    HEADLINE: ClassVar[tuple[tuple[str, str], ...]] = (
        ("eval/text/loss", "eval/text/loss"),
        ("eval/tasks/accuracy", "accuracy"),
    )
    GROUPS: ClassVar[dict[str, tuple[str, Any]]] = {
        "model": ("model, also whole as model=NAME", _t5_base())
    }
    OPTIONAL: ClassVar[dict[str, str]] = {
        "data": "tokens",
        "tasks": "demonstrations",
        "tokenizer": "tokenizer",
        "model": "seq2seq_model",
    }
    MANY: ClassVar[tuple[str, ...]] = ("data",)
    model: ModelConfig = field(default_factory=_t5_base, metadata={"comment": "see below"})
    num_steps: int = knob(
        2**19, "optimizer steps [T5, the baseline's pre-training; 2^18 to fine-tune]"
    )
    batch_size: int = knob(128, "rows per optimizer step [T5]")
    input_length: int = knob(
        512, "tokens of an input, including its end token; longer tasks are left out [T5]"
    )
    target_length: int = knob(
        114, "tokens of a target, including its end token; longer tasks are left out [T5]"
    )
    tasks_share: float = knob(
        0.5, "fraction of a step's rows that are tasks, if data and tasks are given [ours]"
    )
    noise_density: float = knob(0.15, "fraction of a row's tokens that is masked [T5]")
    mean_span_length: float = knob(3.0, "mean tokens per masked span [T5]")
    optimizer: str = knob(
        "adafactor",
        "adafactor, whose steps are relative to the size of the weights and whose learning rate is"
        " at most 1 / sqrt(step) [T5]; adamw",
    )
    learning_rate: float = knob(0.01, "peak learning rate [T5, pre-training; 0.001 to fine-tune]")
    schedule: str = knob(
        "inverse_square_root",
        "inverse_square_root of the step, flat over warmup_steps [T5]; constant [T5, to fine-tune]",
    )
    warmup_steps: int | float = knob(
        10_000,
        "optimizer steps at the peak learning rate before inverse_square_root falls; below 1: a"
        " fraction of all steps [T5]",
    )
    beta2: float = knob(
        0.999, "Adam: decay of the squared gradient's mean, per step [ours, for adamw]"
    )
    max_grad_norm: float | None = knob(  # type: ignore[assignment]
        None, "clip the gradient to this global norm; None: no limit [T5: Adafactor has its own]"
    )
    eval_every: int = knob(1000, "steps between evaluations of held-out losses and answers [ours]")
    eval_rows: int | None = knob(
        1000, "held-out rows of each task, the first ones [ours]; None: all there are"
    )

    def __post_init__(self) -> None:
        check_ranges(self)
        self.check_adam(self.optimizer)
        require(
            self.model.architecture == "t5", "model.architecture", self.model.architecture, "t5"
        )
        require(
            self.optimizer in ("adafactor", "adamw"),
            "optimizer",
            self.optimizer,
            "adafactor or adamw",
        )
        ok = self.schedule in ("inverse_square_root", "constant")
        require(ok, "schedule", self.schedule, "inverse_square_root or constant")
        ok = 0 < self.noise_density < 1
        require(ok, "noise_density", self.noise_density, "a number between 0 and 1")
        require(
            self.mean_span_length >= 1, "mean_span_length", self.mean_span_length, "1 token or more"
        )
        require(
            self.eval_rows is None or self.eval_rows >= 1,
            "eval_rows",
            self.eval_rows,
            "at least 1, or null",
        )

    def check_inputs(self) -> None:
        data, tasks, tokenizer, model = (bool(self.inputs.get(slot)) for slot in self.OPTIONAL)
        given = list(self.inputs)
        require(
            data or tasks,
            "inputs",
            given,
            "data (text to take spans out of), tasks (demonstrations), or both",
        )
        known = model or tokenizer or data  # an artifact of tokens holds its tokenizer
        require(known, "inputs", given, "a tokenizer (to begin) or a model (to train on)")
        require(
            not (model and tokenizer),
            "inputs",
            given,
            "a tokenizer (to begin) or a model (to train on), not both",
        )
        require_one_model(self.model, _t5_base(), self.inputs)
        ok = not (data and tasks) or 0 < self.task_rows(data, tasks) < self.batch_size
        require(
            ok,
            "tasks_share",
            self.tasks_share,
            f"one that makes 1 to {self.batch_size - 1} rows of batch_size",
        )

    def task_rows(self, has_data: bool, has_tasks: bool) -> int:
        """Return how many of a step's rows are tasks. The other rows are text."""
        return round(
            self.batch_size * (self.tasks_share if has_data and has_tasks else float(has_tasks))
        )

    def trained(self, inputs: Mapping[str, Any]) -> tuple[Trained, ...]:
        return (Trained("model" if inputs.get("model") else None, "lm"),)

    def training_tokens(
        self, inputs: Mapping[str, Any], context_length: int
    ) -> tuple[int, int] | None:
        if inputs.get("tasks"):  # their lengths are unknown until they are tokenized
            return None
        return (
            self.num_steps * self.batch_size * (self.input_length + self.target_length),
            self.input_length,
        )
