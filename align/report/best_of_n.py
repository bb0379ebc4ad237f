"""What a report says of `best_of_n`: a table by n, a sentence, and the chosen responses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from align.configs import BestOfN
from align.evals.intervals import is_few
from align.report.tables import (
    FEW_MARK,
    Answer,
    Metrics,
    Table,
    figure,
    number,
    percent,
    without_empty,
)

if TYPE_CHECKING:
    from align.report.gather import Made

# Who may score, in the order in which they choose; the others judge, the gold scorer first.
_CHOOSERS = ("reward", "rules")
_JUDGES = ("gold", "heldout", "rules")
_ALL = ("reward", "gold", "heldout", "rules")


class Judged(NamedTuple):
    """The scorer that chose, and the first one that did not; "" if there is none."""

    chooser: str
    judge: str


def of_stage(made: Sequence[Made]) -> list[Made]:
    """Return the artifacts of `best_of_n` that have a log."""
    return [each for each in made if each.stage == BestOfN.STAGE and each.log]


def judged_by(metrics: Metrics) -> Judged:
    """Return who chose and who judged, by the names of the scores."""
    chooser = next((name for name in _CHOOSERS if f"{name}/score" in metrics), "")
    judges = (name for name in _JUDGES if f"{name}/score" in metrics and name != chooser)
    return Judged(chooser, next(judges, ""))


def main_figures(metrics: Metrics) -> str:
    """Return the result in a few words."""
    chooser, judge = judged_by(metrics)
    name = judge or chooser
    won = f", wins {percent(metrics, 'win_rate')}" if "win_rate" in metrics else ""
    return f"best of {metrics['n']:.0f}: {name} {number(metrics, f'{name}/score')}{won}"


def table(each: Made, brief: bool = False) -> Table:
    """Return a row for each n: the KL, the scores, the wins over one sample, and the length.

    Args:
        brief: leave out the intervals of the scores.
    """
    names = [name for name in _ALL if f"{name}/score" in each.log[0]]
    rows = []
    for row in each.log:
        scores = [
            number(row, f"{name}/score", marked=True)
            if brief
            else _with_interval(row, f"{name}/score")
            for name in names
        ]
        rows.append(
            [
                f"{row['step']:,.0f}",
                number(row, "kl", 2),
                *scores,
                figure(row, "win_rate", "win_rate", ""),
                number(row, "response_tokens", 1),
            ]
        )
    columns = ["n", "KL of the best", *(f"{name} score" for name in names)]
    return without_empty(Table([*columns, "wins over one sample", "tokens"], rows))


def _with_interval(metrics: Metrics, name: str) -> str:
    mean, low, high = (metrics[f"{name}{end}"] for end in ("", "_low", "_high"))
    return f"{mean:.3f} [{low:.3f}, {high:.3f}]" + FEW_MARK * is_few(metrics, name)


def sentence(each: Made, model: str) -> str:
    """Say for which n the judge's score is the highest, beside one sample and the largest n."""
    judge = judged_by(each.log[0]).judge
    if not judge:
        return (
            f"The best of n of {model} were judged only by what chose them: that its score rises"
            " with n does not show that they got better."
        )
    scores = {int(row["step"]): row[f"{judge}/score"] for row in each.log}
    best, most = max(scores, key=lambda n: scores[n]), max(scores)
    said = f"Of {model}, one sample has a {judge} score of {scores[1]:.3f}"
    said += f", and the best of {best} has {scores[best]:.3f}, the highest mean" * (best > 1)
    said += ", the highest mean" * (best == 1)
    if best < most:
        said += f"; the best of {most} has {scores[most]:.3f}"
    return f"{said}."


def answers(each: Made, models: Mapping[str, str]) -> list[tuple[str, list[tuple[str, Answer]]]]:
    """Return (prompt, answers) of each row of samples: one sample, and the best of N.

    Args:
        models: the name of each model by its key.
    """
    judge = judged_by(each.log[0])
    model, most = models[dict(each.inputs)["model"]], max(int(row["step"]) for row in each.log)
    found = []
    for row in each.samples:
        pair = []
        for head, name in (("single_", model), ("", f"{model}, best of {most}")):
            score = row.get(f"{head}{judge.judge or judge.chooser}")
            shown = f"{score:.2f}" if isinstance(score, int | float) else ""
            pair.append((name, Answer(str(row.get(f"{head}response", "")), shown)))
        found.append((str(row["prompt"]), pair))
    return found
