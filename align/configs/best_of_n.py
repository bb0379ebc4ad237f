"""The knobs of `best_of_n`. Sources: see `align/configs/__init__.py`."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

from align.configs.curves import Curve
from align.configs.knobs import (
    StageConfig,
    check_ranges,
    knob,
    max_new_tokens_knob,
    precision_knob,
    require,
)
from align.errors import ConfigError

MOST_RESPONSES = 1000
_SCORES = ("reward/score", "rules/score", "heldout/score", "gold/score")


@dataclass(slots=True, kw_only=True)
class BestOfN(StageConfig):
    """Score the best of n sampled responses for n = 1, 2, 4, ...: how much choosing alone gains.

    align best_of_n model=mine/sft reward_model=mine/reward prompts=mine/prompts
    align best_of_n model=mine/sft reward_model=mine/reward heldout_reward_model=mine/other prompts=mine/prompts num_responses=256

    The reward model chooses; without one, the reward functions do. Whatever else scores the
    responses judges the choice: the prompts' gold scorer, the held-out reward model, and reward
    functions beside a reward model.
    """

    STAGE: ClassVar[str] = "best_of_n"
    OUTPUT: ClassVar[str] = "evaluation"
    INPUTS: ClassVar[dict[str, str]] = {"model": "model", "prompts": "prompts"}
    OPTIONAL: ClassVar[dict[str, str]] = {
        "reward_model": "reward_model",
        "heldout_reward_model": "reward_model",
    }
    AXIS: ClassVar[str] = "n"
    CURVES: ClassVar[tuple[Curve, ...]] = (
        Curve(
            "score of the best of n",
            _SCORES,
            against=("sqrt_kl", "square root of the KL, nats"),
            joined=True,
        ),
        Curve("tokens of the best of n", ("response_tokens",)),
    )

    num_responses: int = knob(
        64, "responses sampled per prompt, N; n is 1, 2, 4, ... and N, at most 1,000 [ours]"
    )
    split: str = knob(
        "test", "split of the prompts: validation to choose settings, test for the reported figure"
    )
    num_prompts: int | None = knob(None, "held-out prompts to use; None: all there are")
    reward_functions: dict[str, float] = field(
        default_factory=dict,
        metadata={
            "comment": (
                "NAME or MODULE:FUNCTION: weight; they choose, or judge if inputs.reward_model chooses;"
                " see docs/how-to/write-a-reward-function.md"
            ),
            "reads": "functions",
        },
    )
    temperature: float = knob(1.0, "temperature of sampling [Gao]")
    max_new_tokens: int | None = max_new_tokens_knob()
    num_bootstrap: int = knob(
        2000, "bootstrap resamples of the prompts for the 95 % intervals [ours]"
    )
    num_samples: int = knob(20, "rows in the table of samples [ours]")
    precision: str = precision_knob()
    seed: int | None = knob(None, "random seed; None: the run's seed")

    def __post_init__(self) -> None:
        check_ranges(self)
        require(
            2 <= self.num_responses <= MOST_RESPONSES,
            "num_responses",
            self.num_responses,
            f"a number from 2 to {MOST_RESPONSES:,}",
        )
        require(self.split in ("validation", "test"), "split", self.split, "validation or test")
        require(
            self.num_prompts is None or self.num_prompts > 0,
            "num_prompts",
            self.num_prompts,
            "a number above 0, or null",
        )
        require(
            self.temperature > 0,
            "temperature",
            self.temperature,
            "a number above 0: greedy responses are all alike",
        )

    def check_inputs(self) -> None:
        weights = self.reward_functions.values()
        require(
            all(map(math.isfinite, weights)),
            "reward_functions",
            self.reward_functions,
            "finite weights",
        )
        if self.reward_functions and not any(weights):
            raise ConfigError(
                "reward_functions: expected a weight other than 0 for one of them, or nothing is"
                " scored"
            )
        proxy, heldout = (
            self.inputs.get(slot) for slot in ("reward_model", "heldout_reward_model")
        )
        if not proxy and not self.reward_functions:
            raise ConfigError(
                "inputs.reward_model, reward_functions: expected one of them, got none: it chooses"
                " the best of n"
            )
        if heldout and heldout == proxy:
            raise ConfigError(
                "inputs.heldout_reward_model: expected another reward model than the one that"
                f" chooses, got {heldout!r} for both"
            )

    @property
    def counts(self) -> list[int]:
        """The values of n: the powers of 2 up to `num_responses`, and `num_responses`."""
        powers = [2**i for i in range(self.num_responses.bit_length())]
        return sorted({*powers, self.num_responses})
