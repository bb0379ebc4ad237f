"""The knobs of `dpo`. Sources: see `align/configs/__init__.py`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from align.configs.curves import GRADIENT, LEARNING_RATE, Curve
from align.configs.knobs import SupervisedConfig, Trained, check_ranges, knob, require
from align.configs.models import LoraConfig

_LOSSES = ("sigmoid", "ipo", "hinge", "robust")


@dataclass(slots=True, kw_only=True)
class Dpo(SupervisedConfig):
    """Tune a model on rankings directly, without a reward model and without sampling.

    align dpo model=mine/sft data=mine/compare
    align dpo model=mine/sft data=path:pairs.jsonl lora.rank=16

    docs/how-to/choose-an-algorithm.md says how the algorithms differ.
    """

    STAGE: ClassVar[str] = "dpo"
    OUTPUT: ClassVar[str] = "model"
    INPUTS: ClassVar[dict[str, str]] = {"model": "model", "data": "comparisons"}
    CURVES: ClassVar[tuple[Curve, ...]] = (
        Curve("loss of the pairs", ("loss",)),
        Curve("share of pairs in the labelers' order", ("accuracy",)),
        Curve("implicit rewards", ("rewards/chosen", "rewards/rejected")),
        LEARNING_RATE,
        GRADIENT,
    )
    HEADLINE: ClassVar[tuple[tuple[str, str], ...]] = (("eval/accuracy", "accuracy"),)
    GROUPS: ClassVar[dict[str, tuple[str, Any]]] = {"lora": ("low-rank adapters", LoraConfig)}

    num_epochs: int = knob(1, "passes over the rankings [DPO]")
    batch_size: int = knob(
        64, "prompts per optimizer step, with all responses to each [DPO: 64 pairs]"
    )
    sequence_length: int | None = knob(
        None,
        "most tokens of a prompt and a response; rankings with a longer one are left out; None: the"
        " model's context, at most 2,048 [ours]",
    )
    learning_rate: float | None = knob(
        None, "peak learning rate; None: 1e-6, with lora.rank 2e-5 [DPO, TRL; ours with adapters]"
    )
    warmup_steps: int | float = knob(
        0.1, "optimizer steps of linear warm-up; below 1: a fraction of all steps [ours; DPO: 150]"
    )
    final_learning_rate_fraction: float = knob(
        1.0, "fraction of the peak learning rate at which the cosine ends; 1: constant [DPO]"
    )
    kl_coef: float = knob(
        0.1, "beta: weight of the KL to the given model; the higher, the nearer to it [DPO, TRL]"
    )
    loss: str = knob(
        "sigmoid",
        "sigmoid [DPO], ipo [Azar et al. 2023], hinge [Zhao et al. 2023] or robust, to a fraction"
        " `label_smoothing` of wrong labels [Chowdhury et al. 2024]",
    )
    label_smoothing: float = knob(
        0.0, "loss=robust: the fraction of the pairs that are labelled wrong [TRL]"
    )
    lora: LoraConfig = field(default_factory=LoraConfig, metadata={"comment": "see below"})

    def __post_init__(self) -> None:
        check_ranges(self)
        require(self.loss in _LOSSES, "loss", self.loss, " or ".join(_LOSSES))
        require(self.kl_coef > 0, "kl_coef", self.kl_coef, "a number above 0")
        smooth = self.label_smoothing
        require(smooth < 0.5, "label_smoothing", smooth, "a number from 0 up, below 0.5")
        robust = self.loss == "robust"
        require(
            (smooth > 0) == robust,
            "label_smoothing",
            smooth,
            "above 0 with loss=robust" if robust else f"0 with loss={self.loss}",
        )
        require(
            self.lora.dropout == 0,
            "lora.dropout",
            self.lora.dropout,
            "0: the loss compares log-probs with those of the given model",
        )

    def fill_in(self, bf16_is_fast: bool) -> None:
        super(Dpo, self).fill_in(bf16_is_fast)
        if self.learning_rate is None:
            self.learning_rate = 1e-6 if self.lora.rank is None else 2e-5

    def trained(self, inputs: Mapping[str, Any]) -> tuple[Trained, ...]:
        return (Trained("model", "lm"),) if self.lora.rank is None else ()
