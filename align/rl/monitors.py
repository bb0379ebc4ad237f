"""Signs that PPO goes wrong, read off its metrics; each is told when it begins, and every 20 iterations that it lasts.

Where a limit is from another project it says so; the others are judged on healthy runs of the quickstart.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

Metrics = dict[str, float]

_WINDOW = 10  # iterations that a mean is taken over
_WINDOWS = 3  # that a rule compares at most
_QUIET = 20  # iterations before the same rule speaks again


class Event(NamedTuple):
    step: int
    name: str
    message: str


class _Series:
    """The first and the last values of one metric: all that rules read, so that a long run takes no more memory."""

    def __init__(self) -> None:
        self.first: list[float] = []
        self.last: deque[float] = deque(maxlen=_WINDOW * _WINDOWS)

    def add(self, value: float) -> None:
        if len(self.first) < _WINDOW:
            self.first.append(value)
        self.last.append(value)


class Health:
    """Look at each iteration's metrics in turn.

    Args:
        kl_goal: nats a response; None where the KL has no goal.
        warmup: iterations in which the value model may still be bad.
        corrected: True where the loss is weighed against the sampler's gap.
        episodes: of a rollout; None where nobody said.
    """

    def __init__(self, kl_goal: float | None, warmup: int, corrected: bool = False, episodes: int | None = None):
        self._kl_goal, self._warmup, self._corrected, self._episodes = kl_goal, warmup, corrected, episodes
        self._series: dict[str, _Series] = {}
        self._pairs: deque[tuple[float, float]] = deque(maxlen=_WINDOW * _WINDOWS)  # learned score, held-out score
        self._now: Metrics = {}
        self._looked = self._kl_seen = 0
        self._spoke: dict[str, int] = {}

    def look(self, step: int, metrics: Metrics) -> list[Event]:
        """What is to be said after one more iteration, `step` by its number in the log."""
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
        for name, rule in _RULES.items():
            message = rule(self)
            if message is not None and step - self._spoke.get(name, -_QUIET) >= _QUIET:
                self._spoke[name] = step
                events.append(Event(step, name, message))
        return events

    # -- reading -------------------------------------------------------------------------------------------------

    def _recent(self, name: str) -> float | None:
        """Mean of the last window, once there is one."""
        series = self._series.get(name)
        return None if series is None or len(series.last) < _WINDOW else _mean([*series.last][-_WINDOW:])

    def _first(self, name: str) -> float | None:
        """Mean of the first window, once it is past."""
        series = self._series.get(name)
        return None if series is None or len(series.last) <= _WINDOW else _mean(series.first)

    # -- rules ---------------------------------------------------------------------------------------------------

    def kl_blowup(self) -> str | None:
        """Above twice its goal for 20 iterations [verl's and TRL's guides watch the same]; without one, 10 a window."""
        if self._kl_goal is not None:
            last = [*self._series["objective/kl"].last] if "objective/kl" in self._series else []
            if len(last) >= 20 and min(last[-20:]) > 2 * self._kl_goal:
                return f"the KL has been above twice its goal of {self._kl_goal:g} for 20 iterations"
            return None
        recent, first = self._recent("objective/kl"), self._first("objective/kl")
        if recent is None or first is None or recent < max(10.0, 5 * first):
            return None
        return f"the KL is {recent:.1f} nats a response; raise kl_coef, or give kl_goal"

    def negative_kl(self) -> str | None:
        """Its mean is at least 0; below -0.05 in a window the samples are not the policy's [TRL, issue 1005]."""
        recent = self._recent("objective/kl")
        if recent is None or recent >= -0.05:
            return None
        return f"the KL is {recent:.2f} on average, which no distribution has: are samples and log-probs of one model?"

    def wrong_reference(self) -> str | None:
        """Before the first update, the policy is its reference: a KL there above 0.05 nats is of two models [ours].

        Rounding in bf16 differs by less than 0.01 nats a token, where NeMo RL stops for a gap of two engines; other
        models are tenths of nats apart.
        """
        series = self._series.get("objective/kl")
        tokens = self._now.get("response_tokens")
        if self._kl_seen != 1 or series is None or tokens is None:
            return None
        (kl,) = series.first
        if abs(kl) <= max(0.05, 0.01 * tokens):
            return None
        return f"the KL is {kl:.2f} nats a response before the first update: the reference is not the policy's start"

    def entropy_collapse(self) -> str | None:
        """Below 30 % of what it was; or below 0.05 nats a token, where a token in a hundred is not the likeliest."""
        recent, first = self._recent("policy/entropy"), self._first("policy/entropy")
        if recent is not None and recent < 0.05:
            return f"entropy is {recent:.3f} nats a token: nothing else is tried; raise temperature"
        if recent is None or first is None or recent >= 0.3 * first:
            return None
        return f"entropy fell from {first:.2f} to {recent:.2f} nats a token: responses become all alike"

    def length_hacking(self) -> str | None:
        """Half as long again, and the longer of a rollout's responses are those that score; or length is the score.

        A correlation above 0.85 leaves less than 28 % of the score's variance to anything but length [ours].
        """
        recent, first = self._recent("response_tokens"), self._first("response_tokens")
        correlation = self._recent("objective/score_length_correlation")
        if correlation is not None and correlation > 0.85:
            return (
                f"the score is mostly length (correlation {correlation:.2f}): longer responses are all that is learned"
            )
        if recent is None or first is None or correlation is None or recent < 1.5 * first or correlation < 0.7:
            return None
        return f"responses grew from {first:.0f} to {recent:.0f} tokens and the longer score higher ({correlation:.2f})"

    def cut_off(self) -> str | None:
        """More than half of the responses do not end by themselves."""
        recent = self._recent("response/ended")
        if recent is None or recent >= 0.5:
            return None
        return f"only {recent:.0%} of the responses end by themselves; raise max_new_tokens"

    def clip_fraction(self) -> str | None:
        """More than 40 % of the tokens clipped."""
        recent = self._recent("ppo/clip_fraction")
        if recent is None or recent <= 0.4:
            return None
        return f"{recent:.0%} of the tokens are clipped; lower learning_rate or num_epochs"

    def approx_kl(self) -> str | None:
        """An update moves the policy by more than 0.1 nats a token."""
        recent = self._recent("ppo/approx_kl")
        if recent is None or recent <= 0.1:
            return None
        return f"updates move the policy by {recent:.2f} nats a token; lower learning_rate or give stop_kl_per_token"

    def explained_variance(self) -> str | None:
        """No better than a constant, which explains 0, when the value model has had time to learn."""
        recent = self._recent("value/explained_variance")
        if recent is None or self._looked <= self._warmup + 2 * _WINDOW or recent >= 0.01:
            return None
        what = "nothing" if recent > -0.01 else "less than nothing"
        return f"the value model explains {what} ({recent:.2f}); raise value_learning_rate or warm it up"

    def sampling_gap(self) -> str | None:
        """The sampler is not the trainer's model: above 0.01 nats a token (k3) [NeMo RL stops there]."""
        recent = self._recent("policy/sampling_kl")
        if recent is None or recent <= 0.01 or self._corrected:
            return None
        return f"the sampler's log-probs are {recent:.3f} nats a token (k3) from the trainer's; give importance_cap"

    def drowned_by_text(self) -> str | None:
        """Less than 5 % of the policy's steps come from PPO, the rest from the pretraining text [ours]."""
        recent = self._recent("ptx/policy_share")
        if recent is None or recent >= 0.05:
            return None
        return f"PPO is {recent:.1%} of the policy's gradient and pretraining text the rest; lower ptx_coef"

    def reward_hacking(self) -> str | None:
        """Over three windows the score that PPO learns from rises and a held-out one's falls [Gao et al. 2022].

        The held-out score is that of a reward model which PPO does not learn from; without one, the gold score where
        the prompts' world has one. The reward model's score is compared; where functions alone say what a response is
        worth, their sum is. Both have to differ from the first window to the third by three standard errors: means of
        ten rollouts go up and down by chance.
        """
        if len(self._pairs) < _WINDOW * _WINDOWS:
            return None
        trained, held_out = zip(*self._pairs, strict=True)
        mine, theirs = _windows(trained), _windows(held_out)
        if not (mine[0] < mine[1] < mine[2] and theirs[0] > theirs[1] > theirs[2]):
            return None
        if not (_is_beyond_chance(trained) and _is_beyond_chance(held_out)):
            return None
        whose = "that of a reward model that PPO does not see" if "heldout/score" in self._now else "the gold score"
        return (
            f"the score rose to {mine[2]:.2f} while {whose} fell from "
            f"{theirs[0]:.2f} to {theirs[2]:.2f}: the policy learns the mistakes of what it is scored by"
        )

    def unscored(self) -> str | None:
        """Episodes to which no reward function applies: their advantage is 0."""
        missing = self._now.get("unscored")
        if missing is None:
            return None
        left_out = "the rollout is skipped" if missing == 1 else "they are left out"
        return f"{missing:.0%} of the episodes have no score, for every reward function gave None: {left_out}"

    def flat_reward(self) -> str | None:
        """What is scored tells no response from another [ours].

        A reward model's score is a log-odds (Bradley and Terry 1952): 0.01 apart is 50.2 % to 49.8 %. Functions have
        units of their own, so theirs have to be equal.
        """
        model, functions = self._recent("deviation/model"), self._recent("deviation/functions")
        if model is None and functions is None:
            return None
        if (model or 0.0) > 0.01 or (functions or 0.0) > 0:
            return None
        return "all responses of a rollout score the same: there is nothing to learn from what they are scored by"

    def few_episodes(self) -> str | None:
        """Fewer than 8 in a rollout: advantages are normalised over it, and their mean is off by 1 / sqrt(n) [ours]."""
        if self._episodes is None or self._episodes >= 8:
            return None
        return f"a rollout of {self._episodes} says little of what is better; raise rollout_batch_size (64 is usual)"

    def not_finite(self) -> str | None:
        """A metric that is no number; what is learned from is looked at before each step."""
        bad = [name for name, value in self._now.items() if not math.isfinite(value)]
        return f"{', '.join(bad)}: not a finite number" if bad else None


_RULES: dict[str, Callable[[Health], str | None]] = {
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
        Health.few_episodes,
        Health.not_finite,
    )
}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _is_beyond_chance(series: Sequence[float]) -> bool:
    """Whether the first and the last of three windows differ by more than three standard errors of their means."""
    first, last = series[:_WINDOW], series[-_WINDOW:]
    error = math.sqrt((statistics.variance(first) + statistics.variance(last)) / _WINDOW)
    return abs(_mean(last) - _mean(first)) > 3 * error


def _windows(series: Sequence[float]) -> list[float]:
    """Means of the last three windows, the oldest first."""
    return [_mean(series[len(series) - (k + 1) * _WINDOW : len(series) - k * _WINDOW]) for k in (2, 1, 0)]
