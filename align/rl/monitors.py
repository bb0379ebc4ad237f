"""Detect from its metrics that PPO goes wrong.

A rule reports when its condition first holds, then every 20 iterations while it still holds. A
limit that comes from another project names it; the other limits were set on healthy runs of the
quickstart.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from align.evals.trends import (
    COLLAPSED,
    GROWN,
    LEAST_ENDED,
    REPORT_EVERY,
    kl_of_rounding,
    mean,
    thirds,
    trend,
)

Metrics = dict[str, float]

_WINDOW = 10  # iterations per mean
_WINDOWS = 3  # the most windows that a rule compares
# Of reward hacking, in standard errors: a rise of the trained score, a fall of the held-out score
# over the run, and one over the last 30 iterations.
_RISE, _FALL, _LATE_FALL = 3.0, 3.5, 5.0


class Event(NamedTuple):
    step: int
    name: str
    message: str


class _Series:
    """The first and the last values of one metric.

    Rules read only these, so a long run takes no more memory.
    """

    def __init__(self) -> None:
        self.first: list[float] = []
        self.last: deque[float] = deque(maxlen=_WINDOW * _WINDOWS)

    def add(self, value: float) -> None:
        if len(self.first) < _WINDOW:
            self.first.append(value)
        self.last.append(value)


class Health:
    """The rules, applied to each iteration's metrics in turn.

    Args:
        kl_goal: nats per response; None if the KL has no goal.
        warmup: iterations in which the value model may still be bad.
        corrected: True if the loss corrects for the sampler's gap.
        episodes: per rollout; None if unknown.
        kl_advice: what to do about a high KL without a goal.
    """

    def __init__(
        self,
        kl_goal: float | None,
        warmup: int,
        corrected: bool = False,
        episodes: int | None = None,
        kl_advice: str = "raise kl_coef, or give kl_goal",
    ):
        self._kl_advice = kl_advice
        self._kl_goal, self._warmup, self._corrected, self._episodes = (
            kl_goal,
            warmup,
            corrected,
            episodes,
        )
        self._series: dict[str, _Series] = {}
        # (trained score, held-out score) of an iteration.
        self._pairs: list[tuple[float, float]] = []
        self._now: Metrics = {}
        self._looked = self._kl_seen = 0
        self._spoke: dict[str, int] = {}

    def look(self, step: int, metrics: Metrics) -> list[Event]:
        """Return the events to report after one more iteration; `step` is its number in the log."""
        self._looked += 1
        self._now = metrics
        self._kl_seen += "objective/kl" in metrics
        finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
        for name, value in finite.items():
            self._series.setdefault(name, _Series()).add(value)
        learned = "reward/model" if "reward/model" in finite else "objective/score"
        held_out = "heldout/score" if "heldout/score" in finite else "gold/score"
        if learned in finite and held_out in finite:
            self._pairs.append((finite[learned], finite[held_out]))
        events = []
        for name, rule in RULES.items():
            message = rule(self)
            if message is not None and step - self._spoke.get(name, -REPORT_EVERY) >= REPORT_EVERY:
                self._spoke[name] = step
                events.append(Event(step, name, message))
        return events

    # -- reading -----------------------------------------------------------------------------------

    def _recent(self, name: str) -> float | None:
        """Return the mean of the last window; None before the first window is full."""
        series = self._series.get(name)
        return (
            None
            if series is None or len(series.last) < _WINDOW
            else mean([*series.last][-_WINDOW:])
        )

    def _first(self, name: str) -> float | None:
        """Return the mean of the first window; None until an iteration after it."""
        series = self._series.get(name)
        return None if series is None or len(series.last) <= _WINDOW else mean(series.first)

    # -- rules -------------------------------------------------------------------------------------

    def kl_blowup(self) -> str | None:
        """Report a KL above twice its goal for 20 iterations.

        The guides of verl and TRL watch the same. Without a goal, report a window mean of at least
        10 nats per response that is also at least 5 times that of the first window.
        """
        if self._kl_goal is not None:
            last = [*self._series["objective/kl"].last] if "objective/kl" in self._series else []
            if len(last) >= 20 and min(last[-20:]) > 2 * self._kl_goal:
                return (
                    f"the KL has been above twice its goal of {self._kl_goal:g} for 20 iterations"
                )
            return None
        recent, first = self._recent("objective/kl"), self._first("objective/kl")
        if recent is None or first is None or recent < max(10.0, 5 * first):
            return None
        return f"the KL is {recent:.1f} nats per response; {self._kl_advice}"

    def negative_kl(self) -> str | None:
        """Report a mean KL below -0.05 in a window [TRL, issue 1005].

        A KL is at least 0 on average, so the samples are not the policy's.
        """
        recent = self._recent("objective/kl")
        if recent is None or recent >= -0.05:
            return None
        return (
            f"the KL is {recent:.2f} on average, which no distribution has: are samples and"
            " log-probs of one model?"
        )

    def wrong_reference(self) -> str | None:
        """Report a KL before the first update: the reference is not the initial policy [ours].

        Before the first update, the policy is its reference. The limit is what rounding explains
        (`kl_of_rounding`). Different models are tenths of nats apart.
        """
        series = self._series.get("objective/kl")
        tokens = self._now.get("response_tokens")
        if self._kl_seen != 1 or series is None or tokens is None:
            return None
        (kl,) = series.first
        if abs(kl) <= kl_of_rounding(tokens):
            return None
        return (
            f"the KL is {kl:.2f} nats per response before the first update: the reference is not"
            " the policy's start"
        )

    def entropy_collapse(self) -> str | None:
        """Report an entropy below 30 % of the first window's, or below 0.05 nats per token.

        At 0.05 nats, one token in a hundred is not the likeliest.
        """
        recent, first = self._recent("policy/entropy"), self._first("policy/entropy")
        if recent is not None and recent < 0.05:
            return (
                f"entropy is {recent:.3f} nats per token: nothing else is tried; raise temperature"
            )
        if recent is None or first is None or recent >= COLLAPSED * first:
            return None
        return (
            f"entropy fell from {first:.2f} to {recent:.2f} nats per token: responses become all"
            " alike"
        )

    def length_hacking(self) -> str | None:
        """Report that responses grow and longer ones score higher, or that length is the score.

        Responses grow if they are 1.5 times as long as in the first window, with a correlation of
        at least 0.7 between score and length. A correlation above 0.85 alone leaves less than 28 %
        of the score's variance to anything but length [ours].
        """
        recent, first = self._recent("response_tokens"), self._first("response_tokens")
        correlation = self._recent("objective/score_length_correlation")
        if correlation is not None and correlation > 0.85:
            return (
                f"the score is mostly length (correlation {correlation:.2f}): longer responses are"
                " all that is learned"
            )
        if (
            recent is None
            or first is None
            or correlation is None
            or recent < GROWN * first
            or correlation < 0.7
        ):
            return None
        return (
            f"responses grew from {first:.0f} to {recent:.0f} tokens and the longer score higher"
            f" ({correlation:.2f})"
        )

    def cut_off(self) -> str | None:
        """Report that more than half of the responses do not end on their own."""
        recent = self._recent("response/ended")
        if recent is None or recent >= LEAST_ENDED:
            return None
        return f"only {recent:.0%} of the responses end by themselves; raise max_new_tokens"

    def clip_fraction(self) -> str | None:
        """Report that more than 40 % of the tokens are clipped."""
        recent = self._recent("ppo/clip_fraction")
        if recent is None or recent <= 0.4:
            return None
        return f"{recent:.0%} of the tokens are clipped; lower learning_rate or num_epochs"

    def approx_kl(self) -> str | None:
        """Report that an update moves the policy by more than 0.1 nats per token."""
        recent = self._recent("ppo/approx_kl")
        if recent is None or recent <= 0.1:
            return None
        return (
            f"updates move the policy by {recent:.2f} nats per token; lower learning_rate or give"
            " stop_kl_per_token"
        )

    def explained_variance(self) -> str | None:
        """Report a value model that is no better than a constant, once it has had time to learn.

        A constant explains 0 of the variance.
        """
        recent = self._recent("value/explained_variance")
        if recent is None or self._looked <= self._warmup + 2 * _WINDOW or recent >= 0.01:
            return None
        what = "nothing" if recent > -0.01 else "less than nothing"
        return (
            f"the value model explains {what} ({recent:.2f}); raise value_learning_rate or warm"
            " it up"
        )

    def sampling_gap(self) -> str | None:
        """Report a sampler that is more than 0.01 nats per token (k3) from the trainer's model.

        NeMo RL stops at that limit. Nothing is reported if the loss corrects for the gap.
        """
        recent = self._recent("policy/sampling_kl")
        if recent is None or recent <= 0.01 or self._corrected:
            return None
        return (
            f"the sampler's log-probs are {recent:.3f} nats per token (k3) from the trainer's; give"
            " importance_cap"
        )

    def drowned_by_text(self) -> str | None:
        """Report that less than 5 % of the policy's steps come from PPO [ours].

        The rest comes from the pretraining text.
        """
        recent = self._recent("ptx/policy_share")
        if recent is None or recent >= 0.05:
            return None
        return (
            f"PPO is {recent:.1%} of the policy's gradient and pretraining text the rest; lower"
            " ptx_coef"
        )

    def reward_hacking(self) -> str | None:
        """Report that the trained score rises and a held-out one falls [Gao et al. 2022].

        The held-out score is that of a reward model which PPO does not train on; without one, it is
        the gold score, if the prompts' world has one. The trained score is the reward models' part;
        if functions alone score responses, it is the whole reward.

        Both must move over the thirds of the whole run, or over those of the last 30 iterations,
        which see a fall that follows a long rise. The limits are in standard errors. That for the
        last 30 is higher, because it is looked at on other data at each iteration: over 2,000
        iterations of noise a limit of 3 is passed nearly always.
        """
        if len(self._pairs) < _WINDOW * _WINDOWS:
            return None
        looks = ((self._pairs, _FALL), (self._pairs[-_WINDOW * _WINDOWS :], _LATE_FALL))
        for pairs, limit in looks:
            trained, held_out = zip(*pairs, strict=True)
            if trend(trained) > _RISE and trend(held_out) < -limit:
                break
        else:
            return None
        mine, theirs = thirds(trained), thirds(held_out)
        whose = (
            "that of a reward model that PPO does not see"
            if "heldout/score" in self._now
            else "the gold score"
        )
        return (
            f"the score rose to {mean(mine[2]):.2f} while {whose} fell from"
            f" {mean(theirs[0]):.2f} to {mean(theirs[2]):.2f}: the policy learns the mistakes of"
            " what it is scored by"
        )

    def unscored(self) -> str | None:
        """Report episodes to which no reward function applies. Their advantage is 0."""
        missing = self._now.get("unscored")
        if missing is None:
            return None
        left_out = "the rollout is skipped" if missing == 1 else "they are left out"
        return (
            f"{missing:.0%} of the episodes have no score, because every reward function gave None:"
            f" {left_out}"
        )

    def flat_reward(self) -> str | None:
        """Report that all responses of a rollout score the same [ours].

        A reward model's score is a log-odds (Bradley and Terry 1952): a difference of 0.01 is
        50.2 % to 49.8 %. Functions have their own units, so their scores must be exactly equal.
        """
        model, functions = self._recent("deviation/model"), self._recent("deviation/functions")
        if model is None and functions is None:
            return None
        if (model or 0.0) > 0.01 or (functions or 0.0) > 0:
            return None
        return (
            "all responses of a rollout score the same: there is nothing to learn from what they"
            " are scored by"
        )

    def equal_groups(self) -> str | None:
        """Report that in a recent 90 % of the groups all rewards are equal [ours].

        Such a group has no advantages, but those of a KL in the reward. DAPO's authors saw more
        and more of them during training (Yu et al. 2025, section 3.2).
        """
        recent = self._recent("group/equal")
        if recent is None or recent <= 0.9:
            return None
        return (
            f"in {recent:.0%} of the groups all responses have the same reward, which teaches"
            " nothing: choose prompts that are neither too easy nor too hard"
        )

    def few_episodes(self) -> str | None:
        """Report rollouts of fewer than 8 episodes.

        Advantages are normalized over the rollout, and their mean is off by 1 / sqrt(n) [ours].
        """
        if self._episodes is None or self._episodes >= 8:
            return None
        return (
            f"a rollout of {self._episodes} says little of what is better; raise rollout_batch_size"
            " (64 is usual)"
        )

    def not_finite(self) -> str | None:
        """Report a metric that is not a finite number.

        Losses and gradients are checked separately, before each step.
        """
        bad = [name for name, value in self._now.items() if not math.isfinite(value)]
        return f"{', '.join(bad)}: not a finite number" if bad else None


RULES: dict[str, Callable[[Health], str | None]] = {
    rule.__name__: rule
    for rule in (
        Health.kl_blowup,
        Health.negative_kl,
        Health.wrong_reference,
        Health.entropy_collapse,
        Health.length_hacking,
        Health.cut_off,
        Health.clip_fraction,
        Health.approx_kl,
        Health.explained_variance,
        Health.sampling_gap,
        Health.drowned_by_text,
        Health.reward_hacking,
        Health.unscored,
        Health.flat_reward,
        Health.equal_groups,
        Health.few_episodes,
        Health.not_finite,
    )
}
