"""Confidence intervals of means: bootstrap over items, Student's t over a few runs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

# The 97.5 % quantile of Student's t, by degrees of freedom from 1.
_STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


# With fewer items than this, a bootstrap's 95 % interval is too narrow. For example, a model that
# is right in nine of ten answers has all of 8 right in 43 of 100 cases (0.9^8), and then every
# resample gives 100 %.
FEW = 30
_SHOWN = 3  # figures named in a warning


class Interval(NamedTuple):
    """A mean and the bounds of its 95 % interval."""

    mean: float
    low: float
    high: float


def bootstrap(values: np.ndarray | Sequence[float], num_bootstrap: int, seed: int) -> Interval:
    """Return the mean of `values` [N] with its bootstrap interval.

    `low` and `high` bound 95 % of the means of N values drawn with replacement.
    """
    values = np.asarray(values, dtype=float)
    rng = np.random.default_rng(seed)
    means = [values[rng.integers(0, len(values), len(values))].mean() for _ in range(num_bootstrap)]
    low, high = np.percentile(means, [2.5, 97.5]) if means else (values.mean(), values.mean())
    return Interval(float(values.mean()), float(low), float(high))


def bootstrap_statistic(
    statistic: Callable[..., float], columns: Sequence[np.ndarray], num_bootstrap: int, seed: int
) -> Interval:
    """Return `statistic` of `columns` ([N] each) with its bootstrap interval.

    It is like `bootstrap`, for statistics that are not means. The columns' rows are drawn together.
    """
    rng = np.random.default_rng(seed)
    count = len(columns[0])
    drawn = (rng.integers(0, count, count) for _ in range(num_bootstrap))
    values = [statistic(*(column[rows] for column in columns)) for rows in drawn]
    whole = float(statistic(*columns))
    low, high = np.percentile(values, [2.5, 97.5]) if values else (whole, whole)
    return Interval(whole, float(low), float(high))


def bounds(name: str, interval: Interval) -> dict[str, float]:
    """Return an interval as metrics: NAME, NAME_low, NAME_high."""
    return {name: interval.mean, f"{name}_low": interval.low, f"{name}_high": interval.high}


def few(name: str, count: float) -> dict[str, float]:
    """Return the metric NAME_few if there are too few items for an interval, else an empty dict.

    Its value is the number of items behind the figure.
    """
    return {f"{name}_few": float(count)} if count < FEW else {}


def is_few(metrics: Mapping[str, float], name: str) -> bool:
    """Return whether `few` has marked a figure.

    This includes marks of the model's figure if `name` is the baseline's, or the difference to it.
    """
    parts = name.split("/")
    figures = [name]
    for place, part in enumerate(parts):
        if part in ("baseline", "gain"):
            figures.append("/".join(parts[:place] + parts[place + 1 :]))
    return any(figure in _noted(metrics) for figure in figures)


def _noted(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return the figures that `few` has marked, with their counts.

    A figure's own name may be `very_few`, which is not a mark.
    """
    marked = {
        name.removesuffix("_few"): count for name, count in metrics.items() if name.endswith("_few")
    }
    return {name: count for name, count in marked.items() if name in metrics}


def few_warning(metrics: Mapping[str, float]) -> str | None:
    """Return one line on all figures that `few` has marked; None if there are none."""
    marked = _noted(metrics)
    if not marked:
        return None
    shown = ", ".join(f"{name} (n={count:.0f})" for name, count in list(marked.items())[:_SHOWN])
    more = f" and {len(marked) - _SHOWN} more" if len(marked) > _SHOWN else ""
    return (
        f"fewer than {FEW} items: the 95 % intervals of {shown}{more} are too narrow; take them as"
        " a hint only"
    )


def compared(
    head: str, name: str, values: Sequence[Sequence[float]], num_bootstrap: int, seed: int
) -> dict[str, float]:
    """Return a measure's mean with its interval, a baseline's, and the difference between them.

    The same items are drawn for both, so the interval of the difference is one of paired items.

    Args:
        head: the beginning of the names; the baseline's are HEADbaseline/NAME, the differences
            HEADgain/NAME.
        values: of the model, [N]; then, if there is one, of the baseline on the same N.
    """
    arrays = [np.asarray(own, dtype=float) for own in values]
    found = few(f"{head}{name}", len(arrays[0]))
    for part, own in zip(("", "baseline/"), arrays, strict=False):
        found |= bounds(f"{head}{part}{name}", bootstrap(own, num_bootstrap, seed))
    if len(arrays) == 2:
        found |= bounds(f"{head}gain/{name}", bootstrap(arrays[0] - arrays[1], num_bootstrap, seed))
    return found


def mean_and_half(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean, and half of its 95 % interval by Student's t.

    The second number is NaN if there is only one value.
    """
    if len(values) < 2:
        return values[0], math.nan
    half = student(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return statistics.fmean(values), half


def student(freedom: int) -> float:
    """Return the 97.5 % quantile of Student's t.

    Beyond the table it is an expansion around the normal distribution's quantile (error below
    3e-4).
    """
    if freedom <= len(_STUDENT):
        return _STUDENT[freedom - 1]
    z = statistics.NormalDist().inv_cdf(0.975)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return z + sum(term / freedom**power for power, term in enumerate(terms, 1))
