"""The knobs of `evaluate_reward`. Sources: see `align/configs/__init__.py`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from align.configs.knobs import StageConfig, check_ranges, knob, precision_knob, require


@dataclass(slots=True, kw_only=True)
class EvaluateReward(StageConfig):
    """Score a reward model on comparisons, beside chance and beside the length of the responses.

    align evaluate_reward model=mine/reward data=[mine/comparisons,card:hh_rlhf]
    """

    STAGE: ClassVar[str] = "evaluate_reward"
    OUTPUT: ClassVar[str] = "evaluation"
    HEADLINE: ClassVar[tuple[tuple[str, str], ...]] = (
        ("accuracy", "accuracy"),
        ("length_accuracy", "by length"),
        ("verdict", "verdict"),
    )
    INPUTS: ClassVar[dict[str, str]] = {"model": "reward_model", "data": "comparisons"}
    split: str = knob(
        "test",
        "split of the comparisons: validation to choose a model, test for the reported figure",
    )
    num_rankings: int | None = knob(
        None, "rankings of each dataset to use, the first ones; None: all there are"
    )
    num_bootstrap: int = knob(2000, "bootstrap resamples of prompts for the 95 % intervals [ours]")
    num_samples: int = knob(20, "rows in the table of the most confident mistakes [ours]")
    precision: str = precision_knob()
    seed: int | None = knob(None, "random seed; None: the run's seed")

    def __post_init__(self) -> None:
        check_ranges(self)
        require(self.split in ("validation", "test"), "split", self.split, "validation or test")
        require(
            self.num_rankings != 0, "num_rankings", self.num_rankings, "a number above 0, or null"
        )
