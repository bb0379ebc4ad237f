"""The charts of a stage's log, as the report draws them."""

from __future__ import annotations

from typing import NamedTuple


class Curve(NamedTuple):
    """A chart of one or more metrics.

    Attributes:
        metrics: names in metrics.jsonl; a metric that was not logged is left out.
        prefix: if set, the chart shows every metric whose name begins so, instead of `metrics`. It
            is drawn only if there are several.
        without: names that `prefix` leaves out.
        against: the metric of the horizontal axis, and its label; None: the stage's own axis.
        joined: with `against`: draw a line instead of dots, because that metric only grows.
    """

    title: str
    metrics: tuple[str, ...] = ()
    prefix: str = ""
    without: tuple[str, ...] = ()
    against: tuple[str, str] | None = None
    joined: bool = False


LOSS = Curve("loss, nats per token", ("loss", "eval/loss"))
LEARNING_RATE = Curve("learning rate", ("learning_rate",))
GRADIENT = Curve("gradient norm", ("grad_norm",))
