"""Rules for an evaluation that compares two models."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from align.evals.intervals import FEW, is_few
from align.evals.trends import REPEATED_RISE
from align.report.finding import Finding, percent, train_nearer
from align.report.gather import Made
from align.report.running import Logged
from align.report.tables import Metrics, Opponent, interval, opponents, side
from align.report.verdict import judge_in_training

_CONSISTENT = 0.5  # fraction of the pairs in which a judge's two orders agree


def judge_evaluation(evaluation: Made, by_key: Mapping[str, Made]) -> Iterator[Finding]:
    """Judge whether the model's answers are better than those that it is compared with."""
    metrics = evaluation.metrics
    if by_key[dict(evaluation.inputs)["model"]].stage == "prompt":
        return  # prompts are compared with prompts, and nothing was trained
    trained = judge_in_training(evaluation, by_key)
    for other in opponents(evaluation, by_key):
        yield from _wins(metrics, other, trained)
    yield from _repeats(metrics)
    if metrics.get("judge/consistent", 1.0) < _CONSISTENT:
        yield Finding(
            "judge_order",
            "cannot tell",
            f"the judge's two orders agree in {percent(metrics['judge/consistent'])} of pairs",
            f"at least {percent(_CONSISTENT)}",
            "below it, the order decides more often than the answers",
            "ask another judge",
        )


def lost_to_start(
    step: Logged, steps: Sequence[Logged], by_key: Mapping[str, Made]
) -> Iterator[Finding]:
    """Find an evaluation in which a trained model loses to the model that it started from."""
    start = dict(step.inputs).get("policy") or dict(step.inputs).get("model")
    for each in steps:
        if not isinstance(each, Made) or dict(each.inputs).get("model") != step.key:
            continue
        for other in opponents(each, by_key):
            if other.is_prompted or other.made.key != start:
                continue
            for finding in _wins(each.metrics, other, judge_in_training(each, by_key)):
                if finding.verdict == "bad":
                    yield finding._replace(
                        name="lost_to_start",
                        advice=f"train nearer to the start: {train_nearer(step.stage)}",
                    )


def _wins(metrics: Metrics, other: Opponent, trained: str) -> Iterator[Finding]:
    """Judge a win rate by its interval.

    Args:
        trained: the judge, if a model was trained against it; else "".
    """
    if not (shown := interval(metrics, other.head)):
        return
    figure = f"wins {shown} over {other.made.name}"
    beyond = side(metrics, f"{other.head}win_rate", 0.5)
    verdict = {1: "good", 0: "cannot tell", -1: "bad"}[beyond]
    threshold, advice = "its interval above 50 %", "look at the samples of the report"
    if trained:
        verdict, threshold = "cannot tell", "a judge that training did not use"
        figure, advice = f"{figure}, by {trained}", "evaluate with another judge"
    elif is_few(metrics, f"{other.head}win_rate") or is_few(metrics, "win_rate"):
        verdict, threshold = "cannot tell", f"at least {FEW} prompts"
    yield Finding(
        "wins",
        verdict,  # type: ignore[arg-type]
        figure,
        threshold,
        "95 % bootstrap interval over prompts",
        advice,
    )


def _repeats(metrics: Metrics) -> Iterator[Finding]:
    """Find answers that repeat themselves more than the baseline's."""
    after, before = (metrics.get(f"{head}response/repeated") for head in ("", "baseline/"))
    if after is None or before is None or after - before <= REPEATED_RISE:
        return
    yield Finding(
        "repeats",
        "bad",
        f"{percent(after)} of 3-grams repeat the answer, {percent(before)} for the baseline",
        f"at most {100 * REPEATED_RISE:.0f} points above the baseline",
        "ours, healthy quickstarts",
        "look at the samples of the report; train nearer to the start",
    )
