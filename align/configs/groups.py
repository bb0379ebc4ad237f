"""The knobs of `grpo` and `rloo`: the stage `ppo` with the advantages and defaults of their papers.

Sources: see `align/configs/__init__.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from align.configs.knobs import knob, shown
from align.configs.ppo import OF_VALUE_MODEL, Ppo
from align.errors import ConfigError


@dataclass(slots=True, kw_only=True)
class _WithoutValueModel(Ppo):
    """What both have in common: no value model, no average of the weights."""

    MODULE: ClassVar[str] = "align.stages.ppo"
    VERSION: ClassVar[int] = Ppo.VERSION  # the same code
    UNUSED: ClassVar[tuple[str, ...]] = ("advantage", "value_warmup_iterations", *OF_VALUE_MODEL)
    OPTIONAL: ClassVar[dict[str, str]] = {
        name: kind for name, kind in Ppo.OPTIONAL.items() if name != "value_model"
    }

    rollout_batch_size: int = knob(
        64, "responses per rollout: prompts x group_size [ours; GRPO: 1,024; RLOO: 512]"
    )
    minibatch_size: int = knob(
        64, "responses per optimizer step; as many as rollout_batch_size: one step [GRPO]"
    )
    learning_rate: float | None = knob(
        None, "peak learning rate; None: 1e-6, with lora.rank 2e-5 [GRPO, TRL; ours with adapters]"
    )
    normalize_advantages: bool = knob(
        False, "scale advantages to mean 0 and standard deviation 1 over the whole rollout [GRPO]"
    )
    missing_eos_penalty: float = knob(
        0.0, "subtracted from the reward of a response that was cut off [GRPO]"
    )
    adam_epsilon: float = knob(1e-8, "Adam: added to the root of the squared gradient's mean [TRL]")
    ema_decay: float | None = knob(
        None, "decay per optimizer step of the policy's average in ema/; None: none [GRPO]"
    )

    def __post_init__(self) -> None:
        usual = type(self).__dataclass_fields__["advantage"].default
        if self.advantage != usual:
            raise ConfigError(
                f"advantage: {self.STAGE} always has {usual}, got {shown(self.advantage)}; leave it"
                " out, or run align ppo, which takes others"
            )
        super(_WithoutValueModel, self).__post_init__()

    def fill_in(self, bf16_is_fast: bool) -> None:
        if self.learning_rate is None:
            self.learning_rate = 1e-6 if self.lora.rank is None else 2e-5
        super(_WithoutValueModel, self).fill_in(bf16_is_fast)


@dataclass(slots=True, kw_only=True)
class Grpo(_WithoutValueModel):
    """Tune a policy by comparing the responses to one prompt with each other; no value model.

    align grpo inputs.policy=mine/sft inputs.prompts=path:prompts.jsonl 'reward_functions={my_rewards:brevity:1.0}'
    align grpo ... divide_by_group_std=false loss_mean=constant                             # Dr. GRPO
    align grpo ... loss_mean=tokens clip_range_high=0.28 drop_equal_groups=true kl_coef=0   # DAPO's loss

    docs/how-to/choose-an-algorithm.md says how the algorithms differ.
    """

    STAGE: ClassVar[str] = "grpo"

    advantage: str = knob("group", "see ppo [GRPO]")
    group_size: int = knob(8, "responses sampled per prompt [TRL; GRPO: 64]")
    divide_by_group_std: bool = knob(
        True, "divide by the standard deviation of the group's rewards [GRPO; Dr. GRPO: false]"
    )
    loss_mean: str = knob(
        "responses",
        "the loss is a mean over: responses (each the mean of its tokens); the minibatch's tokens;"
        " or constant (the sum over the tokens, divided by responses x max_new_tokens) [GRPO; DAPO:"
        " tokens; Dr. GRPO: constant]",
    )
    kl_coef: float = knob(0.04, "beta: weight per nat of KL to the initial policy [GRPO]")
    kl_form: str = knob(
        "k3", "place of the KL: k2 or k3 (in the loss), or reward (in the reward) [GRPO]"
    )


@dataclass(slots=True, kw_only=True)
class Rloo(_WithoutValueModel):
    """Tune a policy with REINFORCE, each response against the mean of the others of its prompt.

    align rloo inputs.policy=mine/sft inputs.reward_model=mine/reward inputs.prompts=path:prompts.jsonl

    docs/how-to/choose-an-algorithm.md says how the algorithms differ.
    """

    STAGE: ClassVar[str] = "rloo"
    UNUSED: ClassVar[tuple[str, ...]] = (*_WithoutValueModel.UNUSED, "divide_by_group_std")

    advantage: str = knob("leave_one_out", "see ppo [RLOO]")
    group_size: int = knob(4, "responses sampled per prompt [RLOO: 2 or 4]")
    loss_mean: str = knob(
        "constant",
        "the loss is a mean over: constant (the sum over the tokens, divided by responses x"
        " max_new_tokens); responses (each the mean of its tokens); or the minibatch's tokens [RLOO,"
        " which does not divide by max_new_tokens]",
    )
    kl_coef: float = knob(0.05, "beta: weight per nat of KL to the initial policy [TRL]")
