"""The knobs of `ppo`. Sources: see `align/configs/__init__.py`.

An episode is a prompt with one sampled response.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from align.configs.curves import Curve
from align.configs.knobs import (
    PRECISIONS,
    Trained,
    TrainingConfig,
    check_ranges,
    knob,
    max_new_tokens_knob,
    require,
)
from align.configs.models import LoraConfig
from align.errors import ConfigError

GAE = "gae"
# Knobs that say something only where there is a value model.
OF_VALUE_MODEL = (
    "value_learning_rate",
    "value_from",
    "update",
    "value_clip_range",
    "gamma",
    "gae_lambda",
    "whiten_rewards",
)
_SCORES = ("objective/score", "heldout/score", "gold/score")


@dataclass(slots=True, kw_only=True)
class Ppo(TrainingConfig):
    """Tune a policy against reward models, your own functions, or both; KL keeps it near its start.

    align ppo inputs.policy=mine/sft inputs.reward_model=mine/reward inputs.prompts=path:prompts.jsonl
    align ppo inputs.policy=mine/sft inputs.prompts=path:prompts.jsonl 'reward_functions={my_rewards:brevity:1.0}'

    docs/how-to/write-a-reward-function.md explains how to write a reward function.
    """

    STAGE: ClassVar[str] = "ppo"
    # 2: ema_decay is on; rows of text are counted per episode
    # 3: attention
    # 4: no reencode
    # 5: reward functions get messages and may return None; objective/score is the whole reward; ptx
    #    gradients are clipped separately; lora makes an adapter; new defaults
    # 6: rows of text have at most 2,048 tokens
    # 7: the spread of the scores is logged; checkpoints count successive iterations without an
    #    optimizer step
    VERSION: ClassVar[int] = 7
    OUTPUT: ClassVar[str] = "model"
    INPUTS: ClassVar[dict[str, str]] = {"policy": "model", "prompts": "prompts"}
    OPTIONAL: ClassVar[dict[str, str]] = {
        "reward_model": "reward_model",
        "value_model": "reward_model",
        "text": "documents",
        "heldout_reward_model": "reward_model",
    }
    MANY: ClassVar[tuple[str, ...]] = ("reward_model",)
    AXIS: ClassVar[str] = "iteration"
    CURVES: ClassVar[tuple[Curve, ...]] = (
        Curve("scores", _SCORES),
        Curve(
            "scores against KL, darker is later",
            _SCORES,
            against=("objective/kl", "KL, nats per response"),
        ),
        # Without the length (tokens) and the fraction of cut-off responses: their scale would
        # flatten the other curves.
        Curve(
            "parts of the reward, before their weights",
            prefix="reward/",
            without=("reward/length", "reward/missing_eos"),
        ),
        Curve("KL to the reference, nats per response", ("objective/kl",)),
        Curve("response length, tokens", ("response_tokens",)),
        Curve("entropy, nats per token", ("policy/entropy",)),
        Curve("share of tokens that are clipped", ("ppo/clip_fraction", "value/clip_fraction")),
        Curve("explained variance of the value model", ("value/explained_variance",)),
        Curve("loss on pretraining text, nats per token", ("ptx/loss",)),
        Curve("learning rate", ("policy/learning_rate", "value/learning_rate")),
        Curve("gradient norm", ("policy/grad_norm", "value/grad_norm")),
        Curve("groups whose rewards are all equal", ("group/equal",)),
    )
    HEADLINE: ClassVar[tuple[tuple[str, str], ...]] = (
        ("objective/score", "score"),
        ("objective/kl", "KL"),
    )
    EXPLAINED: ClassVar[dict[str, str]] = {
        "target_kl": (
            "kl_goal is the KL that kl_coef adapts to (nats per response), stop_kl_per_token the"
            " one at which an iteration's passes end (nats per token)"
        )
    }
    GROUPS: ClassVar[dict[str, tuple[str, Any]]] = {"lora": ("low-rank adapters", LoraConfig)}

    num_iterations: int = knob(
        500, "iterations: a rollout and the updates on it [InstructGPT: 256k episodes / 512]"
    )
    rollout_batch_size: int = knob(
        64, "episodes per rollout [ours, so that few prompts do; InstructGPT: 512]"
    )
    minibatch_size: int = knob(16, "episodes per optimizer step [ours; InstructGPT: 64]")
    num_epochs: int = knob(1, "passes over each rollout [InstructGPT]")
    stop_kl_per_token: float | None = knob(
        None,
        "end an iteration's passes once a minibatch's ppo/approx_kl, in nats per token, is above"
        " this; None: never [ours]",
    )
    learning_rate: float | None = knob(
        None,
        "peak learning rate of the policy; None: 5e-6, with lora.rank 1e-4 [InstructGPT: 2.55e-6 to"
        " 2.55e-5, final value not printed; ours with adapters]",
    )
    value_learning_rate: float | None = knob(
        None,
        "peak learning rate of the value model; None: 9e-6, with lora.rank 1e-4 [InstructGPT; ours"
        " with adapters]",
    )
    warmup_iterations: int = knob(
        10, "iterations of warm-up, linear from a tenth of the peak learning rate [InstructGPT]"
    )
    schedule: str = knob(
        "constant",
        "learning rate after the warm-up: constant, linear or cosine [InstructGPT; Ziegler:"
        " linear]",
    )
    final_learning_rate_fraction: float = knob(
        0.0, "fraction of the peak learning rate at which linear and cosine end [Ziegler]"
    )
    value_from: str | None = knob(
        None,
        "start of the value model: reward_model, or policy with a new head of zeros; None:"
        " inputs.value_model where given, else the (first) reward model where given, else the"
        " policy; the policy replaces a reward model that has its own tokenizer [InstructGPT:"
        " reward_model]",
    )
    value_warmup_iterations: int | None = knob(
        None,
        "first iterations, which train only the value model; None: a tenth of them, at most 10"
        " [ours]",
    )
    update: str = knob(
        "joint",
        "joint: train policy and value model; policy: after the value model's warm-up train only"
        " the policy [InstructGPT]",
    )

    advantage: str = knob(
        GAE,
        "what a response's reward is compared with: gae (the value model), group (the mean of its"
        " prompt's group), leave_one_out (the mean of the others in the group) or batch (the mean"
        " of the rollout); only gae has a value model [InstructGPT; GRPO; RLOO; Williams 1992]",
    )
    group_size: int = knob(
        1, "responses sampled per prompt; group and leave_one_out need at least 2 [InstructGPT]"
    )
    divide_by_group_std: bool = knob(
        False,
        "advantage=group: divide by the standard deviation of the group's rewards [GRPO: true;"
        " Dr. GRPO: false]",
    )
    drop_equal_groups: bool = knob(
        False,
        "leave out of the loss each group whose rewards are all equal, apart from the KL; DAPO"
        " samples others in their place [DAPO: true]",
    )
    loss_mean: str = knob(
        "tokens",
        "the policy's loss is a mean over: the minibatch's tokens; responses (each the mean of its"
        " tokens); or constant (the sum over the tokens, divided by responses x max_new_tokens)"
        " [DAPO; GRPO; Dr. GRPO]",
    )

    kl_coef: float = knob(0.02, "beta: weight per nat of KL to the initial policy [InstructGPT]")
    kl_form: str = knob(
        "reward",
        "place of the KL: reward (k1, at each token), or k2 or k3 (in the loss) [InstructGPT]",
    )
    kl_goal: float | None = knob(
        None, "kl_coef adapts to reach this KL, in nats per response; None: fixed [Ziegler: 6]"
    )
    kl_horizon: float = knob(10_000.0, "episodes over which kl_coef adapts [Ziegler]")
    gamma: float = knob(1.0, "discount per token [InstructGPT: none]")
    gae_lambda: float = knob(0.95, "lambda of generalized advantage estimation [Ziegler]")
    normalize_advantages: bool = knob(
        True, "scale advantages to mean 0 and standard deviation 1 over the whole rollout [Ziegler]"
    )
    clip_range: float = knob(0.2, "clip the probability ratio to 1 +- this [InstructGPT]")
    clip_range_high: float | None = knob(
        None, "clip the ratio to at most 1 + this; None: clip_range [DAPO: 0.28]"
    )
    value_clip_range: float | None = knob(
        None,
        "clip the change of the value to +- this, in reward units; None: no clipping [ours;"
        " Ziegler: 0.2]",
    )
    entropy_coef: float = knob(
        0.0,
        "weight of the entropy, in nats per token, that is added to the objective; its mean is that"
        " of loss_mean [ours]",
    )

    temperature: float = knob(1.0, "temperature of sampling and of every log-prob [InstructGPT]")
    top_p: float = knob(
        1.0,
        "nucleus sampling: fraction of the probability to sample from; below 1 needs importance_cap"
        " [InstructGPT]",
    )
    max_new_tokens: int | None = max_new_tokens_knob()
    sampling_precision: str = knob(
        "fp32",
        "fp32, or bf16: faster, but rounding makes the samples depend on"
        " hardware.generation_batch_size",
    )
    importance_cap: float | None = knob(
        None,
        "truncated importance sampling: weight tokens by min(p_trainer / p_sampler, this), to"
        " correct the gap between trainer and sampler; None: no [ours; Yao et al. 2025: 2]",
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
    whiten_rewards: bool = knob(
        False,
        "scale a rollout's rewards to a standard deviation of 1 and keep their mean [ours;"
        " Ziegler: on]",
    )
    samples_every: int | None = knob(
        10,
        "save episodes to samples.jsonl every this many iterations, and in the first and last;"
        " None: keep none [ours]",
    )

    ptx_coef: float = knob(
        0.0,
        "PPO-ptx: weight of the pretraining loss, mean nats per token; needs inputs.text"
        " [InstructGPT: 27.8]",
    )
    ptx_examples_per_episode: float = knob(
        8.0, "rows of pretraining text per episode [InstructGPT]"
    )
    ptx_length: int | None = knob(
        None,
        "tokens per row of pretraining text; None: the policy's context [InstructGPT], at most"
        " 2,048",
    )
    ema_decay: float | None = knob(
        0.992,
        "decay per optimizer step of the policy's moving average, which is saved in ema/; an"
        " adapter's two matrices are averaged separately; None: none [InstructGPT]",
    )
    lora: LoraConfig = field(default_factory=LoraConfig, metadata={"comment": "see below"})
    adam_epsilon: float = knob(
        1e-5, "Adam: added to the root of the squared gradient's mean [Ziegler]"
    )
    max_grad_norm: float = knob(1.0, "clip each gradient to this global norm [ours]")
    on_nonfinite: str = knob(
        "stop",
        "if a number is not finite: stop, or skip the minibatch (the rollout if the number is in a"
        " rollout) [ours]",
    )

    def __post_init__(self) -> None:
        check_ranges(self)
        episodes = self.rollout_batch_size
        require(
            episodes % self.minibatch_size == 0,
            "minibatch_size",
            self.minibatch_size,
            f"a divisor of rollout_batch_size, {episodes} (give both)",
        )
        require(self.temperature > 0, "temperature", self.temperature, "a number above 0")
        require(0 < self.clip_range < 1, "clip_range", self.clip_range, "a number between 0 and 1")
        require(0 < self.top_p <= 1, "top_p", self.top_p, "a number above 0, at most 1")
        for name, allowed in _CHOICES.items():
            shown = " or ".join("null" if choice is None else choice for choice in allowed)
            require(getattr(self, name) in allowed, name, getattr(self, name), shown)
        self._check_advantage()
        self._check_together()

    def _check_advantage(self) -> None:
        """Raise `ConfigError` if the way to estimate advantages contradicts other knobs."""
        in_groups = self.in_groups
        require(
            self.group_size >= (2 if in_groups else 1),
            "group_size",
            self.group_size,
            f"at least 2 with advantage={self.advantage}",
        )
        require(
            self.rollout_batch_size % self.group_size == 0,
            "group_size",
            self.group_size,
            f"a divisor of rollout_batch_size, {self.rollout_batch_size}, which counts responses",
        )
        require(
            self.advantage == "group" or not self.divide_by_group_std,
            "divide_by_group_std",
            self.divide_by_group_std,
            "false: only advantage=group, as in grpo, divides by it",
        )
        require(
            in_groups or not self.drop_equal_groups,
            "drop_equal_groups",
            self.drop_equal_groups,
            "false, or advantage=group or leave_one_out: others learn from such groups, too",
        )
        high = self.clip_range_high
        require(
            high is None or high >= self.clip_range,
            "clip_range_high",
            high,
            f"at least clip_range ({self.clip_range:g}), or null",
        )
        for name in () if self.has_value_model else OF_VALUE_MODEL:
            require(
                getattr(self, name) == type(self).__dataclass_fields__[name].default,
                name,
                getattr(self, name),
                _no_value_model(self.advantage),
            )
        require(
            self.has_value_model or not self.value_warmup_iterations,
            "value_warmup_iterations",
            self.value_warmup_iterations,
            _no_value_model(self.advantage),
        )

    def _check_together(self) -> None:
        """Raise `ConfigError` if knobs that are valid on their own contradict each other."""
        require(
            self.top_p == 1 or self.importance_cap is not None,
            "top_p",
            self.top_p,
            "1, or importance_cap too: what is cut off would bend the ratio",
        )
        require(
            self.kl_goal is None
            or (self.kl_form == "reward" and self.kl_coef > 0 and self.kl_goal > 0),
            "kl_goal",
            self.kl_goal,
            "a number above 0, with kl_form=reward and kl_coef above 0 to start from; or null",
        )
        require(
            self.kl_goal is None or self.kl_horizon > 0.2 * self.rollout_batch_size,
            "kl_horizon",
            self.kl_horizon,
            f"above a fifth of rollout_batch_size ({self.rollout_batch_size}), or one step could"
            " turn kl_coef negative",
        )
        require(
            self.missing_eos_reward is None or self.missing_eos_penalty == 0,
            "missing_eos_reward",
            self.missing_eos_reward,
            "missing_eos_penalty=0 beside it: a reward is replaced or reduced, not both",
        )
        require(
            (self.value_warmup_iterations or 0) < self.num_iterations,
            "value_warmup_iterations",
            self.value_warmup_iterations,
            f"fewer than num_iterations ({self.num_iterations}), or the policy never learns",
        )
        require(
            self.ema_decay is None or 0 < self.ema_decay < 1,
            "ema_decay",
            self.ema_decay,
            "between 0 and 1, or null",
        )
        require(
            self.lora.dropout == 0,
            "lora.dropout",
            self.lora.dropout,
            "0: the first ratio would not be 1",
        )
        require(
            self.ptx_coef == 0 or round(self.minibatch_size * self.ptx_examples_per_episode) >= 1,
            "ptx_examples_per_episode",
            self.ptx_examples_per_episode,
            f"at least a row for a minibatch of {self.minibatch_size}",
        )

        require(
            self.ptx_length is None or self.ptx_length >= 2,
            "ptx_length",
            self.ptx_length,
            "at least 2, because the first token of a row is not predicted",
        )

    def fill_in(self, bf16_is_fast: bool) -> None:
        super(Ppo, self).fill_in(bf16_is_fast)
        full = self.lora.rank is None
        if self.learning_rate is None:
            self.learning_rate = 5e-6 if full else 1e-4
        if self.value_learning_rate is None and self.has_value_model:
            self.value_learning_rate = 9e-6 if full else 1e-4
        if self.value_warmup_iterations is None:
            self.value_warmup_iterations = self._usual_warmup()

    def _usual_warmup(self) -> int:
        return min(10, self.num_iterations // 10) if self.has_value_model else 0

    def check_inputs(self) -> None:
        require(
            self.ptx_coef == 0 or bool(self.inputs.get("text")),
            "ptx_coef",
            self.ptx_coef,
            "0, or inputs.text too",
        )
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
        if self.inputs.get("value_model") and not self.has_value_model:
            raise ConfigError(
                f"inputs.value_model: expected none with advantage={self.advantage}, which has no"
                " value model"
            )
        if self.value_from is not None and self.inputs.get("value_model"):
            raise ConfigError(
                "value_from: expected null beside inputs.value_model, which the value model starts"
                f" from, got {self.value_from!r}"
            )
        if self.value_from == "reward_model" and count == 0:
            raise ConfigError(
                "value_from: expected policy or null, because no inputs.reward_model is given"
            )
        warmup = (
            self._usual_warmup()
            if self.value_warmup_iterations is None
            else self.value_warmup_iterations
        )
        if self.update == "policy" and warmup == 0 and self.value_start(self.inputs) == "policy":
            raise ConfigError(
                "update: expected joint, or a value_warmup_iterations above 0: the value model"
                " starts from the policy with a head of zeros, and update=policy never trains it"
            )

    @property
    def in_groups(self) -> bool:
        """Whether a response is compared with the others to its prompt."""
        return self.advantage in ("group", "leave_one_out")

    @property
    def has_value_model(self) -> bool:
        return self.advantage == GAE

    def value_start(self, inputs: Mapping[str, Any]) -> str:
        """Return the input of the value model's start: value_model, reward_model or policy."""
        if self.value_from is not None:
            return self.value_from
        return next(
            (name for name in ("value_model", "reward_model") if inputs.get(name)), "policy"
        )

    def trained(self, inputs: Mapping[str, Any]) -> tuple[Trained, ...]:
        if self.lora.rank is not None:
            return ()
        value = (Trained(self.value_start(inputs), "scalar"),) if self.has_value_model else ()
        return Trained("policy", "lm"), *value

    @property
    def ptx_rows(self) -> int:
        """The rows of pretraining text per optimizer step."""
        return round(self.minibatch_size * self.ptx_examples_per_episode)


_CHOICES: dict[str, tuple[str | None, ...]] = {
    "kl_form": ("reward", "k2", "k3"),
    "schedule": ("constant", "linear", "cosine"),
    "value_from": (None, "reward_model", "policy"),
    "update": ("joint", "policy"),
    "advantage": (GAE, "group", "leave_one_out", "batch"),
    "loss_mean": ("tokens", "responses", "constant"),
    "sampling_precision": PRECISIONS,
}


def _no_value_model(advantage: str) -> str:
    return f"no value with advantage={advantage}, which has no value model"
