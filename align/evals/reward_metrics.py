"""The metrics of a reward model on comparisons, and the verdict: is it good enough for PPO?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from align.evals.calibration import calibration_error, chance_error, temperature
from align.evals.intervals import FEW, few, is_few
from align.evals.preferences import (
    Counts,
    Scored,
    Shares,
    best_of,
    credit,
    kendall_tau,
    length_bin,
    length_rule,
    pair_credit,
    style_cells,
    ties_score,
)

CHANCE = 0.5  # of a pair
# An interval that is wider than this and holds the threshold says nothing; a narrower one says that
# the model is not above it [ours].
TOO_WIDE = 0.1
BINS = ("chosen_shorter", "about_equal", "chosen_longer")
_LARGEST = 700.0  # its exponential is still a finite float


def reward_metrics(
    head: str, rankings: Sequence[Scored], longer: Sequence[bool], num_bootstrap: int, seed: int
) -> dict[str, float]:
    """Return every measure of `rankings`; names begin with `head`.

    Fractions have 95 % intervals over prompts.

    Args:
        longer: for each ranking, whether the length rule says that the longer response wins, or
            the shorter one.
    """
    shares = Shares([ranking.prompt for ranking in rankings], num_bootstrap, seed)
    by_length = [length_rule(own, says) for own, says in zip(rankings, longer, strict=True)]
    right = [pair_credit(ranking.scores, ranking) for ranking in rankings]
    of_length = [
        pair_credit(own, ranking) for own, ranking in zip(by_length, rankings, strict=True)
    ]
    found = {
        f"{head}rankings": float(len(rankings)),
        f"{head}prompts": float(shares.num_prompts),
        f"{head}pairs": sum(pairs for _, pairs in right),
        f"{head}tied_labels": float(sum(map(_tied_labels, rankings))),
        f"{head}tied_scores": float(sum(map(_tied_scores, rankings))),
    }
    found |= shares.of(f"{head}accuracy", right)
    found |= shares.of(f"{head}length_accuracy", of_length)
    found |= shares.gap(f"{head}over_length", right, of_length)
    found |= _by_length(head, rankings, shares)
    found |= _of_several(head, rankings, by_length, shares)
    styles = [style_cells(ranking) for ranking in rankings]
    for name in ("easy", "normal", "hard"):
        found |= shares.of(f"{head}styles/{name}", [own.get(name, (0.0, 0.0)) for own in styles])
    return found | {f"{head}ties/{name}": v for name, v in ties_score(rankings).items()}


def _tied_labels(ranking: Scored) -> int:
    count = len(ranking.ranks)
    return count * (count - 1) // 2 - len(ranking.pairs())


def _tied_scores(ranking: Scored) -> int:
    return sum(ranking.scores[i] == ranking.scores[j] for i, j in ranking.pairs())


def _by_length(head: str, rankings: Sequence[Scored], shares: Shares) -> dict[str, float]:
    """Return the accuracy by difference in length, without length, and length's correlation.

    The length-controlled accuracy is the mean of two: on pairs whose better response is longer, and
    on pairs whose better response is shorter. So every rule of length alone gets 50 %.
    """
    bins: dict[str, list[Counts]] = {name: [] for name in BINS}
    sides: list[list[Counts]] = [[], []]
    for ranking in rankings:
        own: dict[str, Counts] = dict.fromkeys(BINS, (0.0, 0.0))
        signs: list[Counts] = [(0.0, 0.0), (0.0, 0.0)]
        for i, j in ranking.pairs():
            better, worse = ranking.lengths[i], ranking.lengths[j]
            hit = credit(ranking.scores[i], ranking.scores[j])
            name = length_bin(better, worse)
            own[name] = (own[name][0] + hit, own[name][1] + 1)
            if better != worse:
                side = int(better > worse)
                signs[side] = (signs[side][0] + hit, signs[side][1] + 1)
        for name in BINS:
            bins[name].append(own[name])
        for side in range(2):
            sides[side].append(signs[side])
    found = shares.balanced(f"{head}length_controlled_accuracy", sides)
    for name, counts in bins.items():
        found |= shares.of(f"{head}length/{name}/accuracy", counts)
        found[f"{head}length/{name}/pairs"] = sum(pairs for _, pairs in counts)
    values = [
        [(float(s), float(n)) for s, n in zip(r.scores, r.lengths, strict=True)] for r in rankings
    ]
    return found | shares.correlation(f"{head}length/correlation", values)


def _of_several(
    head: str, rankings: Sequence[Scored], by_length: Sequence[Sequence[float]], shares: Shares
) -> dict[str, float]:
    """Return the measures of rankings with three responses or more: best of K, Kendall's tau."""
    several = [len(ranking.ranks) > 2 for ranking in rankings]
    if not any(several):
        return {}
    taus: list[Counts] = [
        (kendall_tau(ranking.scores, ranking.ranks), 1.0) if many else (0.0, 0.0)
        for ranking, many in zip(rankings, several, strict=True)
    ]
    found = shares.of(f"{head}kendall_tau", taus)
    for name, values in (
        ("accuracy", [ranking.scores for ranking in rankings]),
        ("length_accuracy", by_length),
        ("chance", [[0.0] * len(ranking.ranks) for ranking in rankings]),
    ):
        picked = [best_of(own, r.ranks) for own, r in zip(values, rankings, strict=True)]
        counts: list[Counts] = [(0.0, 0.0) if hit is None else (hit, 1.0) for hit in picked]
        own = shares.of(f"{head}best_of/{name}", counts)
        found |= own if name != "chance" else {k: v for k, v in own.items() if k.endswith(name)}
        found[f"{head}best_of/rankings"] = sum(every for _, every in counts)
    return found


# -- calibration -----------------------------------------------------------------------------------


def confidences(margins: Sequence[float], at: float = 1.0) -> tuple[list[float], list[float]]:
    """Return the model's confidence in each pair, and whether it is right.

    Args:
        margins: the score of the better response minus that of the other one, in nats.
        at: the temperature.
    """
    sure = [1 / (1 + math.exp(-min(abs(margin) / at, _LARGEST))) for margin in margins]
    return sure, [credit(margin, 0.0) for margin in margins]


def margins_of(rankings: Sequence[Scored]) -> list[float]:
    return [r.scores[i] - r.scores[j] for r in rankings for i, j in r.pairs()]


def calibration_metrics(
    margins: Sequence[float], own_temperature: float | None, num_draws: int, seed: int
) -> dict[str, float]:
    """Return the calibration error, what chance gives, and the temperature that fits best here.

    Args:
        own_temperature: the one that the reward model's own training fitted on its held-out pairs;
            None if the model has none. Its error is `tempered_ece`.
    """
    sure, right = confidences(margins)
    mean, most = chance_error(sure, num_draws, seed)
    found = {
        "ece": calibration_error(sure, right),
        "ece_chance": mean,
        "ece_chance_high": most,
        **few("ece", len(margins)),
        "temperature": temperature(margins),
    }
    if own_temperature is not None:
        sure, right = confidences(margins, own_temperature)
        mean, most = chance_error(sure, num_draws, seed)
        found |= {
            "tempered_ece": calibration_error(sure, right),
            "tempered_ece_chance": mean,
            "tempered_ece_chance_high": most,
            **few("tempered_ece", len(margins)),
        }
    return found


# -- the verdict -----------------------------------------------------------------------------------


class Verdict(NamedTuple):
    """Whether a reward model is good enough for PPO.

    Attributes:
        sign: 1: it is, -1: it is not, 0: the figures cannot tell.
        text: the answer with the figures that decide and the thresholds, without a name.
    """

    sign: Literal[-1, 0, 1]
    text: str


def verdict_on(metrics: Mapping[str, float]) -> Verdict:
    """Judge a reward model by its accuracy on all comparisons.

    It is good enough if the 95 % interval of its accuracy is above chance, and the interval of its
    lead over the length rule is above 0. A reward model that is not better than length teaches PPO
    length (Singhal et al. 2023, A Long Way to Go). It is not good enough if an interval is below
    its threshold, or holds it and is at most `TOO_WIDE` wide. Otherwise, and with fewer than `FEW`
    prompts, the figures cannot tell.
    """
    accuracy, length = (_percent(metrics, name) for name in ("accuracy", "length_accuracy"))
    lead = _points(metrics, "over_length")
    figures = (
        f"accuracy {accuracy} on {metrics['pairs']:,.0f} pairs of {metrics['prompts']:,.0f}"
        f" prompts, chance 50 %, length alone {length}, lead over length {lead}"
    )
    if is_few(metrics, "accuracy"):
        return Verdict(0, f"cannot tell, fewer than {FEW} prompts: {figures}")
    sides = {
        "chance": _side(metrics, "accuracy", CHANCE),
        "length alone": _side(metrics, "over_length", 0.0),
    }
    failed = [name for name, side in sides.items() if side < 0]
    if failed:
        return Verdict(-1, f"not good enough for PPO, not above {' or '.join(failed)}: {figures}")
    unknown = [name for name, side in sides.items() if side == 0]
    if unknown:
        said = f"cannot tell whether it is above {' and '.join(unknown)}, the interval is too wide"
        return Verdict(0, f"{said}: {figures}; {_needed(metrics, unknown)}")
    return Verdict(1, f"good enough for PPO, above chance and above length alone: {figures}")


def _side(metrics: Mapping[str, float], name: str, threshold: float) -> int:
    """Return 1 if a figure is above a threshold, -1 if it is not, 0 if its interval is too wide."""
    low, high = metrics[f"{name}_low"], metrics[f"{name}_high"]
    if low > threshold:
        return 1
    return -1 if high <= threshold or high - low <= TOO_WIDE else 0


def _needed(metrics: Mapping[str, float], unknown: Sequence[str]) -> str:
    """Return how many prompts would make the intervals narrow enough.

    An interval's width falls with the square root of the number of prompts.
    """
    names = {"chance": "accuracy", "length alone": "over_length"}
    widths = [metrics[f"{names[u]}_high"] - metrics[f"{names[u]}_low"] for u in unknown]
    count = metrics["prompts"] * (max(widths) / TOO_WIDE) ** 2
    digits = max(0, len(str(int(count))) - 2)
    return f"about {math.ceil(count / 10**digits) * 10**digits:,} prompts would tell"


def _percent(metrics: Mapping[str, float], name: str) -> str:
    mean, low, high = (100 * metrics[f"{name}{end}"] for end in ("", "_low", "_high"))
    return f"{mean:.1f} % [{low:.1f}, {high:.1f}]"


def _points(metrics: Mapping[str, float], name: str) -> str:
    mean, low, high = (100 * metrics[f"{name}{end}"] for end in ("", "_low", "_high"))
    return f"{mean:+.1f} points [{low:+.1f}, {high:+.1f}]"
