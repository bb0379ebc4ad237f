"""The knobs of `raft`. Sources: see `align/configs/__init__.py`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from align.configs.curves import Curve
from align.configs.knobs import Trained, check_ranges, knob, require
from align.configs.rollouts import RolloutConfig

_SCORES = ("objective/score", "kept/score", "heldout/score", "gold/score")


@dataclass(slots=True, kw_only=True)
class Raft(RolloutConfig):
    """Tune a policy on the best of its own responses, round after round; no value model.

    align raft policy=mine/sft reward_model=mine/reward prompts=path:prompts.jsonl
    align raft policy=mine/sft prompts=path:prompts.jsonl 'reward_functions={my_rewards:is_right:1.0}' num_kept=8 min_reward=1

    The second command keeps every right answer (rejection-sampling fine-tuning, expert iteration).
    docs/how-to/choose-an-algorithm.md says how the algorithms differ.
    """

    STAGE: ClassVar[str] = "raft"
    CURVES: ClassVar[tuple[Curve, ...]] = (
        Curve("scores", _SCORES),
        Curve(
            "scores against KL, darker is later",
            _SCORES,
            against=("objective/kl", "KL, nats per response"),
        ),
        Curve(
            "parts of the reward, before their weights",
            prefix="reward/",
            without=("reward/length", "reward/missing_eos"),
        ),
        Curve("loss on the kept responses, nats per token", ("policy/loss",)),
        Curve("KL to the reference, nats per response", ("objective/kl",)),
        Curve("response length, tokens", ("response_tokens", "kept/response_tokens")),
        Curve("entropy, nats per token", ("policy/entropy",)),
        Curve("learning rate", ("policy/learning_rate",)),
        Curve("gradient norm", ("policy/grad_norm",)),
        Curve("groups whose rewards are all equal", ("group/equal",)),
    )
    HEADLINE: ClassVar[tuple[tuple[str, str], ...]] = (
        ("objective/score", "score"),
        ("objective/kl", "KL"),
    )

    num_iterations: int = knob(
        20, "iterations: a rollout, and training on the best of its responses [RAFT]"
    )
    rollout_batch_size: int = knob(1024, "responses per rollout: prompts x group_size [ours]")
    group_size: int = knob(8, "responses sampled per prompt, K [ours]")
    num_kept: int = knob(
        1,
        "responses of a prompt to train on: those with the highest rewards; of equal rewards the"
        " ones drawn first, and equal responses count once [RAFT]",
    )
    min_reward: float | None = knob(
        None,
        "train only on responses with at least this reward; None: on the best of every prompt"
        " [RAFT; with right or wrong as reward, expert iteration keeps what is right]",
    )
    num_epochs: int = knob(1, "passes over the kept responses of each iteration [ours]")
    minibatch_size: int = knob(16, "kept responses per optimizer step [ours, as in sft]")
    learning_rate: float | None = knob(
        None, "peak learning rate; None: 2e-5, with lora.rank 2e-4 [RAFT; ours with adapters]"
    )
    warmup_iterations: int = knob(0, "iterations of linear warm-up [RAFT]")
    final_learning_rate_fraction: float = knob(
        1.0, "fraction of the peak learning rate at which the cosine ends; 1: constant [RAFT]"
    )
    temperature: float = knob(
        1.0, "temperature of sampling, and of the KL's log-probs; the loss has none [InstructGPT]"
    )
    measure_kl: bool = knob(
        True,
        "log the KL to the initial policy, and the entropy; costs two passes over each rollout and,"
        " without lora.rank, a copy of the initial policy [ours]",
    )

    def __post_init__(self) -> None:
        check_ranges(self)
        self.check_rollout()
        require(
            self.group_size >= 2 or self.min_reward is not None,
            "group_size",
            self.group_size,
            "at least 2, or min_reward too: there is nothing to choose from",
        )
        require(
            1 <= self.num_kept <= self.group_size,
            "num_kept",
            self.num_kept,
            f"a number from 1 to group_size, {self.group_size}",
        )
        require(
            self.num_kept < self.group_size or self.min_reward is not None,
            "num_kept",
            self.num_kept,
            f"less than group_size, {self.group_size}, or min_reward too: all would be kept",
        )
        require(
            self.warmup_iterations < self.num_iterations,
            "warmup_iterations",
            self.warmup_iterations,
            f"fewer than num_iterations ({self.num_iterations})",
        )
        require(
            self.lora.dropout == 0,
            "lora.dropout",
            self.lora.dropout,
            "0: dropout is off, so that the policy trains as it samples",
        )

    def fill_in(self, bf16_is_fast: bool) -> None:
        super(Raft, self).fill_in(bf16_is_fast)
        if self.learning_rate is None:
            self.learning_rate = 2e-5 if self.lora.rank is None else 2e-4

    def trained(self, inputs: Mapping[str, Any]) -> tuple[Trained, ...]:
        return (Trained("policy", "lm"),) if self.lora.rank is None else ()
