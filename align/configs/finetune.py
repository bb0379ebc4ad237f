"""The knobs of `finetune`, GPT-1's second stage. Sources: see `align/configs/__init__.py`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from align.configs.curves import GRADIENT, LEARNING_RATE, Curve
from align.configs.knobs import SupervisedConfig, check_ranges, knob, require
from align.configs.models import LoraConfig

TASKS = ("classification", "entailment", "similarity", "multiple_choice")


@dataclass(slots=True, kw_only=True)
class Finetune(SupervisedConfig):
    """Tune a model on a labelled task with GPT-1's input transformations and auxiliary loss."""

    STAGE: ClassVar[str] = "finetune"
    # 2: precision is auto; with adapters, the embedding rows of tokens that import added (with
    #    random values) are trained in full
    VERSION: ClassVar[int] = 2
    OUTPUT: ClassVar[str] = "classifier"
    CURVES: ClassVar[tuple[Curve, ...]] = (
        Curve("loss on the task, nats or squared error", ("task_loss",)),
        Curve("loss on its text, nats per token", ("lm_loss",)),
        LEARNING_RATE,
        GRADIENT,
    )
    HEADLINE: ClassVar[tuple[tuple[str, str], ...]] = (
        ("test/accuracy", "test accuracy"),
        ("validation/accuracy", "validation accuracy"),
    )
    GROUPS: ClassVar[dict[str, tuple[str, Any]]] = {"lora": ("low-rank adapters", LoraConfig)}
    EXPLAINED: ClassVar[dict[str, str]] = {
        "warmup_fraction": "give warmup_steps: below 1 it is a fraction of all steps"
    }
    INPUTS: ClassVar[dict[str, str]] = {"model": "model", "data": "labelled"}
    task: str = knob(
        "classification",
        "classification, entailment, similarity or multiple_choice [GPT-1, figure 1]",
    )
    from_scratch: bool = knob(
        False, "start from random weights, not the model's; [GPT-1]'s ablation, table 5"
    )
    num_train_rows: int | None = knob(
        None, "use only this many training rows, the first ones; None: all there are"
    )
    num_epochs: int = knob(3, "passes over the training rows [GPT-1]")
    batch_size: int = knob(32, "rows per optimizer step [GPT-1]")
    learning_rate: float = knob(6.25e-5, "peak learning rate [GPT-1]")
    warmup_steps: int | float = knob(
        0.002,
        "optimizer steps of linear warm-up, times a linear decay to 0 over all of training; below"
        " 1: a fraction of all steps [GPT-1]",
    )
    lm_coef: float = knob(
        0.5, "weight of the language-model loss that is added to the task's; 0: none [GPT-1]"
    )
    classifier_dropout: float = knob(
        0.1,
        "dropout before the task's linear layer; all other layers keep the model's dropout [GPT-1]",
    )
    weight_decay: float = knob(0.01, "decoupled weight decay, on matrices only [GPT-1]")
    beta2: float = knob(0.999, "Adam: decay of the squared gradient's mean, per step [GPT-1]")
    lora: LoraConfig = field(default_factory=LoraConfig, metadata={"comment": "see below"})

    def __post_init__(self) -> None:
        check_ranges(self)
        require(self.task in TASKS, "task", self.task, ", ".join(TASKS[:-1]) + " or " + TASKS[-1])
        enough = self.num_train_rows is None or self.num_train_rows > 0
        require(enough, "num_train_rows", self.num_train_rows, "a number above 0, or null")
        require(
            self.classifier_dropout < 1,
            "classifier_dropout",
            self.classifier_dropout,
            "a number below 1",
        )
        trains = not self.from_scratch or self.lora.rank is None
        require(
            trains,
            "from_scratch",
            self.from_scratch,
            "false with lora.rank: a model of no knowledge stays frozen",
        )
