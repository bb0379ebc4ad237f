"""What a rule of the diagnosis says of one step."""

from __future__ import annotations

from typing import Literal, NamedTuple

Verdict = Literal["good", "bad", "cannot tell"]


def percent(share: float) -> str:
    """Format a fraction as in `48 %`."""
    return f"{100 * share:.0f} %"


class Finding(NamedTuple):
    """One figure of a step, held against its threshold.

    Attributes:
        name: of the rule, as in `overfit`.
        figure: what was found, short enough for a line of a terminal.
        threshold: what is expected.
        source: where the threshold is from.
        advice: what to do first if the verdict is bad, as a clause that begins with a verb.
    """

    name: str
    verdict: Verdict
    figure: str
    threshold: str
    source: str
    advice: str
