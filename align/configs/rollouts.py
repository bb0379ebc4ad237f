"""The knobs of a rollout, which stages that learn from rewards share.

Sources: see `align/configs/__init__.py`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

from align.configs.knobs import (
    PRECISIONS,
    TrainingConfig,
    knob,
    max_new_tokens_knob,
    require,
)
from align.configs.models import LoraConfig
from align.errors import ConfigError


@dataclass(slots=True, kw_only=True)
class RolloutConfig(TrainingConfig):
    """How a policy samples responses while it trains, and what scores them."""

    OUTPUT: ClassVar[str] = "model"
    INPUTS: ClassVar[dict[str, str]] = {"policy": "model", "prompts": "prompts"}
    OPTIONAL: ClassVar[dict[str, str]] = {
        "reward_model": "reward_model",
        "heldout_reward_model": "reward_model",
    }
    MANY: ClassVar[tuple[str, ...]] = ("reward_model",)
    AXIS: ClassVar[str] = "iteration"
    GROUPS: ClassVar[dict[str, tuple[str, Any]]] = {"lora": ("low-rank adapters", LoraConfig)}

    # Each stage declares these with defaults of its own.
    num_iterations: int
    rollout_batch_size: int
    group_size: int

    temperature: float = knob(1.0, "temperature of sampling and of every log-prob [InstructGPT]")
    top_p: float = knob(
        1.0, "nucleus sampling: fraction of the probability to sample from [InstructGPT]"
    )
    max_new_tokens: int | None = max_new_tokens_knob()
    sampling_precision: str = knob(
        "fp32",
        "fp32, or bf16: faster, but rounding makes the samples depend on"
        " hardware.generation_batch_size",
    )
    reward_model_weights: list[float] = field(
        default_factory=list,
        metadata={
            "comment": (
                "one weight for each of inputs.reward_model; weighted scores are summed; []: their"
                " mean [ours]"
            )
        },
    )
    ensemble_std_coef: float = knob(
        0.0,
        "with several reward models: subtract this many standard deviations of their scores [ours]",
    )
    reward_functions: dict[str, float] = field(
        default_factory=dict,
        metadata={
            "comment": (
                "the name of one of align's own rewards (docs/reference/rewards.md),"
                " MODULE:FUNCTION or MODULE:FACTORY(ARGUMENTS) -> weight, for functions with TRL's"
                " signature; in YAML or as 'reward_functions={MODULE:FUNCTION:1.0}'; see"
                " docs/how-to/write-a-reward-function.md"
            ),
            "reads": "functions",
        },
    )
    length_coef: float = knob(
        0.0, "added to the reward for each response token; below 0 shortens responses [ours]"
    )
    missing_eos_penalty: float = knob(
        1.0, "subtracted from the reward of a response that was cut off [ours; TRL]"
    )
    missing_eos_reward: float | None = knob(
        None,
        "instead of the penalty: the whole reward of a response that was cut off [Ziegler: -1]",
    )
    reward_clip: float | None = knob(None, "clip the summed reward to +- this; None: no [ours]")
    samples_every: int | None = knob(
        10,
        "save episodes to samples.jsonl every this many iterations, and in the first and last;"
        " None: keep none [ours]",
    )
    lora: LoraConfig = field(default_factory=LoraConfig, metadata={"comment": "see below"})

    @property
    def has_value_model(self) -> bool:
        """Whether a value model trains beside the policy."""
        return False

    def keeps_samples(self, iteration: int) -> bool:
        """Return whether episodes of this iteration are kept in samples.jsonl.

        These are the first, every `samples_every`-th, and the last iteration.
        """
        if self.samples_every is None:
            return False
        last = self.num_iterations - 1
        return iteration in (0, last) or (iteration + 1) % self.samples_every == 0

    def check_rollout(self) -> None:
        """Raise `ConfigError` if a knob of the rollout is out of its range, or contradicts one."""
        require(self.temperature > 0, "temperature", self.temperature, "a number above 0")
        require(0 < self.top_p <= 1, "top_p", self.top_p, "a number above 0, at most 1")
        require(
            self.sampling_precision in PRECISIONS,
            "sampling_precision",
            self.sampling_precision,
            " or ".join(PRECISIONS),
        )
        require(
            self.rollout_batch_size % self.group_size == 0,
            "group_size",
            self.group_size,
            f"a divisor of rollout_batch_size, {self.rollout_batch_size}, which counts responses",
        )
        require(
            self.missing_eos_reward is None or self.missing_eos_penalty == 0,
            "missing_eos_reward",
            self.missing_eos_reward,
            "missing_eos_penalty=0 beside it: a reward is replaced or reduced, not both",
        )

    def check_inputs(self) -> None:
        models = self.inputs.get("reward_model") or []
        count = len(models) if isinstance(models, list) else 1
        require(
            self.ensemble_std_coef == 0 or count > 1,
            "ensemble_std_coef",
            self.ensemble_std_coef,
            "0, or several in inputs.reward_model",
        )
        require(
            len(self.reward_model_weights) in (0, count),
            "reward_model_weights",
            self.reward_model_weights,
            f"none, or {count}: one for each of inputs.reward_model",
        )
        for name, weights in (
            ("reward_functions", self.reward_functions.values()),
            ("reward_model_weights", self.reward_model_weights),
        ):
            require(all(map(math.isfinite, weights)), name, getattr(self, name), "finite weights")
        weights = [*self.reward_functions.values(), *(self.reward_model_weights or [1.0] * count)]
        if not any(weights):
            given = ", all of weight 0" if weights else ""
            raise ConfigError(
                "inputs.reward_model, reward_functions: expected at least one of them, got"
                f" none{given}: a reward model or a function of yours must say what a response is"
                " worth"
            )
