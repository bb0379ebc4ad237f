"""What a rule of the diagnosis says of one step."""

from __future__ import annotations

from typing import Literal, NamedTuple

from align.configs import STAGES, StageConfig

Verdict = Literal["good", "bad", "cannot tell"]


def percent(share: float) -> str:
    """Format a fraction as in `48 %`."""
    return f"{100 * share:.0f} %"


def has_kl_coef(stage: str) -> bool:
    """Return whether a stage has the knob `kl_coef`, so that advice may name it."""
    return "kl_coef" in STAGES.get(stage, StageConfig).__dataclass_fields__


def train_nearer(stage: str) -> str:
    """Return how a model is trained nearer to its start, by the knobs that its stage has."""
    return f"{'raise kl_coef, or ' * has_kl_coef(stage)}lower learning_rate"


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
