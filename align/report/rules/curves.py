"""Read a logged metric as a curve."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from typing import Any

from align.evals.trends import mean, standard_errors, variance
from align.report.finding import Finding, percent
from align.store.artifacts import is_number

# A rise of the loss at the end counts from 5 % of its lowest mean and 3 standard errors on.
_RISE, _ERRORS = 0.05, 3.0
_SPIKE = 2.0  # times the median of the last tenth
_LEAST = 40  # values of a loss, for tenths of at least 4


def values(log: Sequence[dict[str, Any]], name: str) -> list[float]:
    """Return the finite values of a metric, in the order of the log."""
    return [
        float(row[name]) for row in log if is_number(row.get(name)) and math.isfinite(row[name])
    ]


def tenths(series: Sequence[float]) -> list[Sequence[float]]:
    """Return ten equal parts of a series of at least 10 values; the first may be longer."""
    size = len(series) // 10
    cuts = [len(series) - size * part for part in range(9, 0, -1)]
    return [series[a:b] for a, b in zip([0, *cuts], [*cuts, len(series)], strict=True)]


def error_of_change(parts: Sequence[Sequence[float]]) -> float:
    """Return the standard error of the difference between the means of two equal parts.

    All parts give the variance, since a single tenth has too few values for it.

    Args:
        parts: of at least two values each.
    """
    noise = mean([variance(part) for part in parts])
    return math.sqrt(2 * noise / min(map(len, parts)))


def ends_of(series: Sequence[float]) -> tuple[float, float]:
    """Return the means of the first and of the last tenth of a series, at least of one value."""
    size = max(1, len(series) // 10)
    return mean(series[:size]), mean(series[-size:])


def loss_at_the_end(log: Sequence[dict[str, Any]]) -> Iterator[Finding]:
    """Find a training loss that rises, or has spikes, in the last tenth of the steps."""
    losses = values(log, "loss")
    if len(losses) < _LEAST:
        return
    parts = tenths(losses)
    best, last = min(parts[:-1], key=mean), parts[-1]
    low, end = mean(best), mean(last)
    if end > low + _RISE * abs(low) and standard_errors(best, last) > _ERRORS:
        yield Finding(
            "loss_rose",
            "bad",
            f"training loss rose from {low:.3g} to {end:.3g}",
            f"at most {percent(_RISE)} above its lowest tenth",
            "ours, healthy quickstarts",
            "lower learning_rate",
        )
        return
    middle = statistics.median(last)
    if middle > 0 and max(last) > _SPIKE * middle and len(last) >= _LEAST:
        yield Finding(
            "loss_spikes",
            "bad",
            f"training loss leaps to {max(last):.3g} at the end",
            f"at most {_SPIKE:g} times the median of the last tenth, {middle:.3g}",
            "ours, healthy quickstarts",
            "lower learning_rate, or give max_loss_rise",
        )
