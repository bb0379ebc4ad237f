"""Rules for language models before rewards: pretraining, classifiers and supervised tuning."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from align.configs import learns_from_rewards
from align.evals.trends import LEAST_ENDED
from align.report.finding import Finding, percent
from align.report.rules.curves import loss_at_the_end, values
from align.report.running import Logged

_OVERFIT = 0.05  # fraction by which the held-out loss is above its lowest value at the end


def judge_pretrain(step: Logged, steps: Sequence[Logged]) -> Iterator[Finding]:
    """Judge a model trained on text: the held-out loss fell, the loss is calm at the end."""
    losses, held_out = values(step.log, "loss"), values(step.log, "eval/loss")
    if losses:
        end, whose = (held_out[-1], "held-out") if held_out else (losses[-1], "training")
        fell = end < losses[0]
        yield Finding(
            "held_out_loss",
            "good" if fell else "bad",
            f"{whose} loss {end:.3g}, {losses[0]:.3g} at the start",
            "below the loss of the first step",
            "a model that predicts nothing",
            "lower learning_rate, and look at the rows: align data ... --show",
        )
    yield from _overfit(held_out, published="last")
    yield from loss_at_the_end(step.log)


def judge_sft(step: Logged, steps: Sequence[Logged]) -> Iterator[Finding]:
    """Judge a supervised model: it learned, it does not overfit, it ends its turns."""
    curve = values(step.log, "eval/loss")
    if len(curve) > 1:
        before, after = curve[0], step.metrics.get("eval/loss", min(curve[1:]))
        yield Finding(
            "held_out_loss",
            "good" if after < before else "bad",
            f"held-out loss {after:.3g}, {before:.3g} before training",
            "below that of the given model",
            "a model that learned nothing",
            "lower learning_rate, and look at the rows: align data ... --show",
        )
    else:
        yield Finding(
            "held_out_loss",
            "cannot tell",
            "no held-out loss was logged",
            "below that of the given model",
            "a model that learned nothing",
            "give inputs.data validation rows",
        )
    yield from _overfit(curve[1:], published="best")
    yield from loss_at_the_end(step.log)
    yield from _ends_turns(step, steps)


def _overfit(curve: Sequence[float], published: str) -> Iterator[Finding]:
    """Find a held-out loss that rises at the end.

    Args:
        curve: held-out losses, not that before training.
        published: "best" if the weights with the lowest loss are published, else "last".
    """
    if len(curve) < 2 or curve[-1] <= (1 + _OVERFIT) * min(curve):
        return
    kept = "; the best epoch is published" if published == "best" else ""
    yield Finding(
        "overfit",
        "bad",
        f"held-out loss rose from {min(curve):.3g} to {curve[-1]:.3g}{kept}",
        f"at most {percent(_OVERFIT)} above its lowest value",
        "ours, healthy quickstarts",
        "give more rows, or train for fewer epochs",
    )


def _ends_turns(step: Logged, steps: Sequence[Logged]) -> Iterator[Finding]:
    """Judge whether a model ends its responses, by the first step that sampled from it."""
    for other in steps:
        slots = {slot for slot, key in other.inputs if key == step.key}
        ended = None
        if other.stage == "compare" and "model" in slots:
            ended = other.metrics.get("response/ended")
        elif other.stage == "evaluate" and slots & {"model", "baseline"}:
            head = "" if "model" in slots else "baseline/"
            ended = other.metrics.get(f"{head}response/ended")
        elif learns_from_rewards(other.stage) and "policy" in slots:
            # Before the first update, the policy is the given model.
            ended = next(iter(values(other.log[:1], "response/ended")), None)
        if ended is None:
            continue
        yield Finding(
            "ends_turns",
            "good" if ended >= LEAST_ENDED else "bad",
            f"{percent(ended)} of its responses end by themselves ({other.name})",
            f"at least {percent(LEAST_ENDED)}",
            "health rule cut_off",
            "show that the end of turn is learned: align data ... --show 1 --tokenizer REF",
        )
        return
