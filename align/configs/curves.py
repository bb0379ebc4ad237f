"""The charts of a stage's log, as the report draws them."""

from __future__ import annotations

from typing import NamedTuple


class Curve(NamedTuple):
    """One chart.

    Attributes:
        metrics: their names in metrics.jsonl; those that were not logged are left out.
        prefix: instead of `metrics` every name that begins so, if there are several.
        without: names that `prefix` leaves out.
        against: the metric of the horizontal axis, and its label; None: the stage's own axis.
    """

    title: str
    metrics: tuple[str, ...] = ()
    prefix: str = ""
    without: tuple[str, ...] = ()
    against: tuple[str, str] | None = None


LOSS = Curve("loss, nats a token", ("loss", "eval/loss"))
LEARNING_RATE = Curve("learning rate", ("learning_rate",))
GRADIENT = Curve("gradient norm", ("grad_norm",))
