"""The figures that decide: each evaluated model's score, win rate and result in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from align.evals.intervals import FEW, is_few
from align.report.gather import Made
from align.report.tables import Metrics, evaluations, interval, number, opponents, scorer
from align.report.verdict import Tone, judge_in_training


class Decided(NamedTuple):
    """One model, and one of its comparisons if it has any.

    Attributes:
        win_rate: the win rate as text, with its interval; "" without a comparison.
        low, rate, high: the win rate and the bounds of its interval, from 0 to 1; 0 without a
            comparison.
        result: the result in a few words.
    """

    model: str
    score: str
    over: str
    its_score: str
    win_rate: str
    low: float
    rate: float
    high: float
    result: str
    tone: Tone


def decided(made: Sequence[Made]) -> list[Decided]:
    """Return a row for each comparison of each evaluation of answers, the last evaluation first.

    An evaluation that compares nothing has one row.
    """
    by_key = {each.key: each for each in made}
    rows = []
    for each in reversed(evaluations(made)):
        metrics, inputs = each.artifact.metrics, dict(each.inputs)
        if "prompts" not in metrics:
            continue
        judge = scorer(metrics)
        model, score = by_key[inputs["model"]].name, _with_interval(metrics, f"{judge}/score")
        compared = False
        for other, head, is_prompted in opponents(each, by_key):
            if not interval(metrics, head):
                continue
            compared = True
            result, tone = _result(metrics, f"{head}win_rate", judge_in_training(each, by_key))
            rows.append(
                Decided(
                    model=model,
                    score=score,
                    over=f"{other.name}, prompted" if is_prompted else other.name,
                    its_score=_with_interval(
                        metrics, f"{head if is_prompted else 'baseline/'}{judge}/score"
                    ),
                    win_rate=interval(metrics, head),
                    low=metrics[f"{head}win_rate_low"],
                    rate=metrics[f"{head}win_rate"],
                    high=metrics[f"{head}win_rate_high"],
                    result=result,
                    tone=tone,
                )
            )
        if not compared:
            rows.append(Decided(model, score, "", "", "", 0.0, 0.0, 0.0, "", "neutral"))
    return rows


def _result(metrics: Metrics, name: str, trained_judge: str) -> tuple[str, Tone]:
    if trained_judge:
        return "no evidence: PPO was trained against this judge", "warning"
    if is_few(metrics, name) or is_few(metrics, "win_rate"):
        return f"too few prompts to tell, fewer than {FEW}", "warning"
    low, high = metrics[f"{name}_low"], metrics[f"{name}_high"]
    if low == high or low <= 0.5 <= high:
        return "no difference beyond chance", "neutral"
    return ("better, beyond chance", "good") if low > 0.5 else ("worse, beyond chance", "bad")


def _with_interval(metrics: Metrics, name: str) -> str:
    shown = number(metrics, name, marked=True)
    if not shown or f"{name}_low" not in metrics:
        return shown
    return f"{shown} [{metrics[f'{name}_low']:,.3f}, {metrics[f'{name}_high']:,.3f}]"
