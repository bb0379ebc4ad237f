"""The knobs of `kto`. Sources: see `align/configs/__init__.py`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from align.configs.curves import GRADIENT, LEARNING_RATE, Curve
from align.configs.knobs import SupervisedConfig, Trained, check_ranges, knob, require
from align.configs.models import LoraConfig
from align.errors import ConfigError

_LOSSES = ("kto", "apo_zero_unpaired")


@dataclass(slots=True, kw_only=True)
class Kto(SupervisedConfig):
    """Tune a model on single responses, each labelled as desirable or undesirable.

    align kto model=mine/sft unpaired=path:thumbs.jsonl
    align kto model=mine/sft data=mine/compare

    Rows of `unpaired` have prompt, completion and label. Of a ranking in `data`, the responses
    above the middle are desirable and those below it undesirable.
    docs/how-to/choose-an-algorithm.md says how the algorithms differ.
    """

    STAGE: ClassVar[str] = "kto"
    OUTPUT: ClassVar[str] = "model"
    INPUTS: ClassVar[dict[str, str]] = {"model": "model"}
    OPTIONAL: ClassVar[dict[str, str]] = {"data": "comparisons", "unpaired": "unpaired"}
    CURVES: ClassVar[tuple[Curve, ...]] = (
        Curve("loss of the responses", ("loss",)),
        Curve("share of responses on their side of the baseline", ("accuracy",)),
        Curve("implicit rewards", ("rewards/chosen", "rewards/rejected")),
        Curve("baseline: KL to the given model, nats", ("kl",)),
        LEARNING_RATE,
        GRADIENT,
    )
    HEADLINE: ClassVar[tuple[tuple[str, str], ...]] = (("eval/accuracy", "accuracy"),)
    GROUPS: ClassVar[dict[str, tuple[str, Any]]] = {"lora": ("low-rank adapters", LoraConfig)}

    num_epochs: int = knob(1, "passes over the responses [ours, as in dpo]")
    batch_size: int = knob(
        64, "responses per optimizer step, which also estimate the baseline [ours, as in dpo]"
    )
    sequence_length: int | None = knob(
        None,
        "most tokens of a prompt and a response; longer ones are left out; None: the model's"
        " context, at most 2,048 [ours]",
    )
    learning_rate: float | None = knob(
        None, "peak learning rate; None: 1e-6, with lora.rank 2e-5 [TRL; ours with adapters]"
    )
    warmup_steps: int | float = knob(
        0.1, "optimizer steps of linear warm-up; below 1: a fraction of all steps [ours]"
    )
    final_learning_rate_fraction: float = knob(
        1.0,
        "fraction of the peak learning rate at which the cosine ends; 1: constant [ours]",
    )
    kl_coef: float = knob(
        0.1, "beta: weight of the KL to the given model; the higher, the nearer to it [TRL]"
    )
    loss: str = knob(
        "kto",
        "kto: compare with a baseline, the KL to the given model [KTO]; apo_zero_unpaired: compare"
        " with 0 [APO]",
    )
    desirable_weight: float = knob(
        1.0,
        "weight of the loss of desirable responses; weight times number of desirable responses"
        " should be 1 to 4/3 times that of undesirable ones [KTO, equation 8]",
    )
    undesirable_weight: float = knob(1.0, "weight of the loss of undesirable responses [TRL]")
    lora: LoraConfig = field(default_factory=LoraConfig, metadata={"comment": "see below"})

    def __post_init__(self) -> None:
        check_ranges(self)
        require(self.loss in _LOSSES, "loss", self.loss, " or ".join(_LOSSES))
        require(self.kl_coef > 0, "kl_coef", self.kl_coef, "a number above 0")
        require(
            self.desirable_weight + self.undesirable_weight > 0,
            "desirable_weight",
            self.desirable_weight,
            "a number above 0, because undesirable_weight is 0",
        )
        require(
            self.batch_size > 1 or self.loss != "kto",
            "batch_size",
            self.batch_size,
            "at least 2 with loss=kto: the baseline pairs each prompt with a response to another",
        )
        require(
            self.lora.dropout == 0,
            "lora.dropout",
            self.lora.dropout,
            "0: the loss compares log-probs with those of the given model",
        )

    def check_inputs(self) -> None:
        if not any(self.inputs.get(slot) for slot in self.OPTIONAL):
            raise ConfigError(
                "inputs: expected data (comparisons) or unpaired (rows with prompt, completion and"
                " label), or both"
            )

    def fill_in(self, bf16_is_fast: bool) -> None:
        super(Kto, self).fill_in(bf16_is_fast)
        if self.learning_rate is None:
            self.learning_rate = 1e-6 if self.lora.rank is None else 2e-5

    def trained(self, inputs: Mapping[str, Any]) -> tuple[Trained, ...]:
        return (Trained("model", "lm"),) if self.lora.rank is None else ()
