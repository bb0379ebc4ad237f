"""PPO's knobs. Sources as in `align/configs/__init__.py`; "an episode" is a prompt with one sampled response."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from align.configs.knobs import PRECISIONS, StageConfig, check_ranges, knob, require
from align.configs.models import LoraConfig


@dataclass(slots=True, kw_only=True)
class Ppo(StageConfig):
    """Tune a policy against a reward model, held near where it started."""

    STAGE: ClassVar[str] = "ppo"
    # 2: ema_decay is on; text is counted by the episode; 3: attention; 4: no reencode; 5: lora makes an adapter
    VERSION: ClassVar[int] = 5
    OUTPUT: ClassVar[str] = "model"
    INPUTS: ClassVar[dict[str, str]] = {"policy": "model", "reward_model": "reward_model", "prompts": "prompts"}
    OPTIONAL: ClassVar[dict[str, str]] = {"text": "documents", "heldout_reward_model": "reward_model"}
    MANY: ClassVar[tuple[str, ...]] = ("reward_model",)

    num_iterations: int = knob(500, "rollouts and their updates [InstructGPT: 256k episodes / 512]")
    rollout_batch_size: int = knob(512, "episodes a rollout [InstructGPT]")
    minibatch_size: int = knob(64, "episodes an optimizer step [InstructGPT]")
    num_epochs: int = knob(1, "passes over each rollout [InstructGPT]")
    target_kl: float | None = knob(
        None, "an iteration's passes end once a minibatch's ppo/approx_kl, nats a token, is above; None: never [ours]"
    )
    learning_rate: float = knob(5e-6, "of the policy [InstructGPT: 2.55e-6 to 2.55e-5, final value not printed]")
    value_learning_rate: float = knob(9e-6, "of the value model [InstructGPT]")
    warmup_iterations: int = knob(10, "linear from a tenth of the peak [InstructGPT]")
    schedule: str = knob("constant", "after the warm-up: constant, linear or cosine [InstructGPT; Ziegler: linear]")
    final_learning_rate_fraction: float = knob(0.0, "of the peak, where linear and cosine end [Ziegler]")
    value_from: str = knob(
        "reward_model",
        "what the value model starts from: reward_model or policy; always the policy where the reward model has a "
        "tokenizer of its own [InstructGPT]",
    )
    value_warmup_iterations: int = knob(0, "first iterations that train the value model alone [ours]")
    update: str = knob("joint", "joint, or policy: the value model stays as its warm-up left it [InstructGPT]")

    kl_coef: float = knob(0.02, "beta, per nat of KL to the first policy [InstructGPT]")
    kl_form: str = knob(
        "reward", "where the KL is: in the reward (k1, each token), or in the loss as k2 or k3 [InstructGPT]"
    )
    kl_goal: float | None = knob(None, "kl_coef adapts to reach this KL, nats a response; None: fixed [Ziegler: 6]")
    kl_horizon: float = knob(10_000.0, "episodes over which kl_coef adapts [Ziegler]")
    gamma: float = knob(1.0, "discount a token [InstructGPT: none]")
    gae_lambda: float = knob(0.95, "[Ziegler]")
    normalize_advantages: bool = knob(True, "to mean 0 and deviation 1 over the whole rollout [Ziegler]")
    clip_range: float = knob(0.2, "of the probability ratio [InstructGPT]")
    value_clip_range: float | None = knob(0.2, "of the value, in reward units; None: no clipping [Ziegler]")
    entropy_coef: float = knob(0.0, "weight of the mean entropy, nats a token, that is added to what PPO seeks [ours]")

    temperature: float = knob(1.0, "of sampling, and of every log-prob [InstructGPT]")
    top_p: float = knob(1.0, "share of the probability that is sampled; below 1 needs importance_cap [InstructGPT]")
    max_new_tokens: int = knob(64, "tokens a response [ours; InstructGPT: 1,024]")
    sampling_precision: str = knob(
        "fp32", "fp32, or bf16: faster, but samples then hang on hardware.generation_batch_size, by rounding"
    )
    importance_cap: float | None = knob(
        None, "weigh tokens by min(p_trainer / p_sampler, this), against their gap; None: no [ours; Yao et al. 2025: 2]"
    )

    ensemble_std_coef: float = knob(0.0, "of several reward models: mean less so many deviations [ours]")
    reward_functions: dict[str, float] = field(
        default_factory=dict,
        metadata={
            "comment": "MODULE:FUNCTION -> weight, of f(prompts=, completions=, **columns) -> floats [TRL]; in YAML or "
            r"as 'reward_functions={MODULE\:FUNCTION:1.0}'; it sees a process's share of a rollout, and must not "
            "draw random numbers, which no checkpoint keeps"
        },
    )
    length_coef: float = knob(0.0, "added to the reward for each response token; below 0 shortens [ours]")
    missing_eos_penalty: float = knob(1.0, "taken off the reward of a response that was cut off [ours; TRL]")
    missing_eos_reward: float | None = knob(None, "instead: the whole reward of one that was cut off [Ziegler: -1]")
    reward_clip: float | None = knob(None, "the summed reward is clipped to +- this; None: no [ours]")
    whiten_rewards: bool = knob(False, "scale a rollout's rewards to a deviation of 1, mean kept [ours; Ziegler: on]")

    ptx_coef: float = knob(
        0.0, "PPO-ptx: weight of the pretraining loss, mean nats a token; needs text [InstructGPT: 27.8]"
    )
    ptx_examples_per_episode: float = knob(8.0, "rows of text an episode [InstructGPT]")
    ptx_length: int | None = knob(None, "tokens a row of text; None: the policy's context [InstructGPT]")
    ema_decay: float | None = knob(
        0.992, "of the policy's average, an optimizer step, kept in ema/; None: none [InstructGPT]"
    )
    lora: LoraConfig = field(default_factory=LoraConfig, metadata={"comment": "see below"})
    adam_epsilon: float = knob(1e-5, "[Ziegler]")
    beta2: float = knob(0.95, "Adam [InstructGPT]")
    weight_decay: float = knob(0.0, "decoupled [ours]")
    max_grad_norm: float = knob(1.0, "global norm of each gradient [ours]")
    on_nonfinite: str = knob(
        "stop", "what a number that is not finite does: stop, or skip its minibatch (in a rollout: the rollout) [ours]"
    )
    precision: str = knob("fp32", "fp32, or bf16 autocast over fp32 weights")
    seed: int | None = knob(None, "None: the run's seed")

    def __post_init__(self) -> None:
        check_ranges(self)
        episodes = self.rollout_batch_size
        require(
            episodes % self.minibatch_size == 0,
            "minibatch_size",
            self.minibatch_size,
            f"a divisor of rollout_batch_size ({episodes})",
        )
        require(self.temperature > 0, "temperature", self.temperature, "a number above 0")
        require(0 < self.clip_range < 1, "clip_range", self.clip_range, "a number between 0 and 1")
        require(0 < self.top_p <= 1, "top_p", self.top_p, "a number above 0, at most 1")
        for name, allowed in _CHOICES.items():
            require(getattr(self, name) in allowed, name, getattr(self, name), " or ".join(allowed))
        self._check_together()

    def _check_together(self) -> None:
        """Knobs that are fine alone and wrong together."""
        require(
            self.top_p == 1 or self.importance_cap is not None,
            "top_p",
            self.top_p,
            "1, or importance_cap too: what is cut off would bend PPO's ratio",
        )
        require(
            self.kl_goal is None or (self.kl_form == "reward" and self.kl_coef > 0 and self.kl_goal > 0),
            "kl_goal",
            self.kl_goal,
            "a number above 0, with kl_form=reward and kl_coef above 0 to start from; or null",
        )
        require(
            self.kl_goal is None or self.kl_horizon > 0.2 * self.rollout_batch_size,
            "kl_horizon",
            self.kl_horizon,
            f"above a fifth of rollout_batch_size ({self.rollout_batch_size}), or one step could turn kl_coef negative",
        )
        require(
            self.missing_eos_reward is None or self.missing_eos_penalty == 0,
            "missing_eos_reward",
            self.missing_eos_reward,
            "missing_eos_penalty=0 beside it: a reward is replaced or reduced, not both",
        )
        require(
            self.value_warmup_iterations < self.num_iterations,
            "value_warmup_iterations",
            self.value_warmup_iterations,
            f"fewer than num_iterations ({self.num_iterations}), or the policy never learns",
        )
        require(
            self.ema_decay is None or 0 < self.ema_decay < 1, "ema_decay", self.ema_decay, "between 0 and 1, or null"
        )
        require(self.lora.dropout == 0, "lora.dropout", self.lora.dropout, "0: PPO's first ratio would not be 1")
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
            "at least 2, for the first token of a row is not predicted",
        )

    def check_inputs(self) -> None:
        require(self.ptx_coef == 0 or bool(self.inputs.get("text")), "ptx_coef", self.ptx_coef, "0, or inputs.text too")
        several = isinstance(self.inputs.get("reward_model"), list) and len(self.inputs["reward_model"]) > 1
        require(
            self.ensemble_std_coef == 0 or several,
            "ensemble_std_coef",
            self.ensemble_std_coef,
            "0, or several in inputs.reward_model",
        )

    @property
    def ptx_rows(self) -> int:
        """Rows of text an optimizer step."""
        return round(self.minibatch_size * self.ptx_examples_per_episode)


_CHOICES = {
    "kl_form": ("reward", "k2", "k3"),
    "schedule": ("constant", "linear", "cosine"),
    "value_from": ("reward_model", "policy"),
    "update": ("joint", "policy"),
    "on_nonfinite": ("stop", "skip"),
    "sampling_precision": PRECISIONS,
}
