"""How a logged curve moves, and the limits that the health rules and the diagnosis share.

The health rules (`align.rl.monitors`) watch a run while it trains. The diagnosis
(`align.report.rules`) judges it at its end. A limit that both use is here, so it has one value.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

# Fraction of the responses that end before their limit. Below it, most are cut off [ours].
LEAST_ENDED = 0.5
# Fraction of its start to which the entropy, or the variety of the responses, falls when a policy
# collapses [ours].
COLLAPSED = 0.3
# Responses grow if they are this many times as long as at the start [ours].
GROWN = 1.5
# Rise of the fraction of repeated 3-grams in a response [ours; healthy quickstarts move by 0.01].
REPEATED_RISE = 0.2
# Iterations before a health rule that still holds reports again.
REPORT_EVERY = 20


def kl_of_rounding(tokens: float) -> float:
    """Return the largest KL, in nats per response, that rounding alone explains.

    It is 0.05 nats, or 0.01 nats per token if that is more. Rounding in bf16 differs by less than
    0.01 nats per token, the gap between two engines at which NeMo RL stops.

    Args:
        tokens: of a mean response.
    """
    return max(0.05, 0.01 * tokens)


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def variance(values: Sequence[float]) -> float:
    """Return the unbiased variance of at least two values."""
    center = mean(values)
    return sum((value - center) ** 2 for value in values) / (len(values) - 1)


def thirds(series: Sequence[float]) -> tuple[Sequence[float], ...]:
    size = len(series) // 3
    return series[:size], series[size:-size], series[-size:]


def trend(series: Sequence[float]) -> float:
    """Return how far a series moved from its first to its last third, in standard errors.

    0 if its middle third is not between the two. Rollouts vary by chance, as if independent.
    """
    first, middle, last = thirds(series)
    if not min(mean(first), mean(last)) < mean(middle) < max(mean(first), mean(last)):
        return 0.0
    return standard_errors(first, last)


def standard_errors(before: Sequence[float], after: Sequence[float]) -> float:
    """Return the difference of two means in its standard errors; infinite if there is no noise."""
    change = mean(after) - mean(before)
    error = math.sqrt(variance(before) / len(before) + variance(after) / len(after))
    if error == 0:
        return math.copysign(math.inf, change) if change else 0.0
    return change / error
