"""Signs that PPO goes wrong, read off its metrics; each is told when it begins, and every 20 iterations that it lasts.

Where a limit is from another project it says so; the others are judged on healthy runs of the quickstart.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

Metrics = dict[str, float]

_WINDOW = 10  # iterations that a mean is taken over
_QUIET = 20  # iterations before the same rule speaks again


class Event(NamedTuple):
    step: int
    name: str
    message: str


class Health:
    """Look at each iteration's metrics in turn.

    Args:
        kl_goal: nats a response; None where the KL has no goal.
        warmup: iterations in which the value model may still be bad.
        corrected: True where the loss is weighed against the sampler's gap.
    """

    def __init__(self, kl_goal: float | None, warmup: int, corrected: bool = False):
        self._kl_goal, self._warmup, self._corrected = kl_goal, warmup, corrected
        self._history: list[Metrics] = []
        self._spoke: dict[str, int] = {}

    def look(self, step: int, metrics: Metrics) -> list[Event]:
        """What is to be said after one more iteration, `step` by its number in the log."""
        self._history.append({name: value for name, value in metrics.items() if math.isfinite(value)})
        events = []
        for name, rule in _RULES.items():
            message = rule(self)
            if message is not None and step - self._spoke.get(name, -_QUIET) >= _QUIET:
                self._spoke[name] = step
                events.append(Event(step, name, message))
        return events

    # -- reading -------------------------------------------------------------------------------------------------

    def _series(self, name: str) -> list[float]:
        return [metrics[name] for metrics in self._history if name in metrics]

    def _recent(self, name: str) -> float | None:
        """Mean of the last window, once there is one."""
        series = self._series(name)
        return _mean(series[-_WINDOW:]) if len(series) >= _WINDOW else None

    def _first(self, name: str) -> float | None:
        """Mean of the first window, once it is past."""
        series = self._series(name)
        return _mean(series[:_WINDOW]) if len(series) > _WINDOW else None

    # -- rules ---------------------------------------------------------------------------------------------------

    def kl_blowup(self) -> str | None:
        """Above twice its goal for 20 iterations [verl's and TRL's guides watch the same]; without one, 10 a window."""
        series = self._series("objective/kl")
        if self._kl_goal is not None:
            if len(series) >= 20 and min(series[-20:]) > 2 * self._kl_goal:
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

    def entropy_collapse(self) -> str | None:
        """Below 30 % of what it was."""
        recent, first = self._recent("policy/entropy"), self._first("policy/entropy")
        if recent is None or first is None or recent >= 0.3 * first:
            return None
        return f"entropy fell from {first:.2f} to {recent:.2f} nats a token: responses become all alike"

    def length_hacking(self) -> str | None:
        """Half as long again, and the longer of a rollout's responses are those that score."""
        recent, first = self._recent("response_tokens"), self._first("response_tokens")
        correlation = self._recent("objective/score_length_correlation")
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
        return f"updates move the policy by {recent:.2f} nats a token; lower learning_rate or give target_kl"

    def explained_variance(self) -> str | None:
        """Worse than a constant, when the value model has had time to learn."""
        recent = self._recent("value/explained_variance")
        if recent is None or len(self._history) <= self._warmup + 2 * _WINDOW or recent >= 0:
            return None
        return f"the value model explains less than nothing ({recent:.2f}); raise value_learning_rate or warm it up"

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
        """Over three windows the score that PPO learns from rises and a held-out model's falls [Gao et al. 2022].

        The two reward models are compared; where functions alone say what a response is worth, their sum is.
        """
        learned = "reward/model" if "reward/model" in self._history[-1] else "objective/score"
        names = (learned, "heldout/score")
        both = [[metrics[name] for name in names] for metrics in self._history if all(n in metrics for n in names)]
        if len(both) < 3 * _WINDOW:
            return None
        trained, held_out = zip(*both, strict=True)
        mine, theirs = _windows(trained), _windows(held_out)
        if not (mine[0] < mine[1] < mine[2] and theirs[0] > theirs[1] > theirs[2]):
            return None
        return (
            f"the score rose to {mine[2]:.2f} while that of a reward model that PPO does not see fell from "
            f"{theirs[0]:.2f} to {theirs[2]:.2f}: the policy learns the mistakes of what it is scored by"
        )

    def unscored(self) -> str | None:
        """Episodes to which no reward function applies: their advantage is 0."""
        missing = self._history[-1].get("unscored")
        if missing is None:
            return None
        left_out = "the rollout is skipped" if missing == 1 else "they are left out"
        return f"{missing:.0%} of the episodes have no score, for every reward function gave None: {left_out}"


_RULES: dict[str, Callable[[Health], str | None]] = {
    rule.__name__: rule
    for rule in (
        Health.kl_blowup,
        Health.negative_kl,
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
    )
}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _windows(series: Sequence[float]) -> list[float]:
    """Means of the last three windows, the oldest first."""
    return [_mean(series[len(series) - (k + 1) * _WINDOW : len(series) - k * _WINDOW]) for k in (2, 1, 0)]
