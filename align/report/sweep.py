"""The results of a sweep: a row for each member, means over seeds, and the Pareto front."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from align.configs import learns_from_rewards
from align.evals.intervals import mean_and_half
from align.report.tables import Table
from align.store.artifacts import Artifact
from align.store.sweep_records import Record

OBJECTIVES = (
    "gold/score",
    "win_rate",
    "judge/win_rate",
    "reward/score",
    "objective/score",
    "eval/loss",
    "loss",
)
_LOWER_IS_BETTER = {"kl", "perplexity", "bits_per_byte", "hallucination", "ece", "missing_eos"}
_SHOWN = (
    *(
        "gold/score",
        "greedy/gold/score",
        "reward/score",
        "win_rate",
        "greedy/win_rate",
        "judge/win_rate",
        "kl",
    ),
    "response_tokens",
    *(
        "pretrain_loss",
        "fact_recall",
        "objective/score",
        "objective/kl",
        "heldout/score",
        "gold_accuracy",
        "accuracy",
    ),
    *("eval/loss", "loss"),
)


class Run(NamedTuple):
    """A member that is done."""

    number: int
    knobs: dict[str, str]  # without seeds
    seed: str
    metrics: dict[str, float]
    split: str = ""  # of the prompts of its evaluation; "" if nothing was evaluated
    evaluated: frozenset[str] = frozenset()  # names of the metrics from that evaluation


class Setting(NamedTuple):
    """One setting of the knobs, with the runs of all its seeds."""

    knobs: dict[str, str]
    runs: list[Run]

    @property
    def name(self) -> str:
        """The knobs in one line."""
        return " ".join(f"{short(name)}={value}" for name, value in self.knobs.items())

    def mean(self, name: str) -> tuple[float, float]:
        """Return the mean over seeds, and half of its 95 % interval."""
        values = [run.metrics[name] for run in self.runs if name in run.metrics]
        return mean_and_half(values) if values else (math.nan, math.nan)


def runs_of(records: Sequence[Record]) -> list[Run]:
    """Return the members that are done, with the metrics of their last evaluation and of PPO.

    PPO's metrics are those of its last iteration. An evaluation on validation prompts is preferred
    to one on test prompts, because members are chosen by it. Without an evaluation the metrics are
    those of the last artifact.
    """
    runs = []
    for record in records:
        if record.state != "done" or not record.made:
            continue
        made = list(record.made.values())
        evaluations = [a for a in made if a.kind == "evaluation"]
        chosen_by = [a for a in evaluations if _split(a) == "validation"] or evaluations
        last = chosen_by[-1] if chosen_by else made[-1]
        trained = next((a.metrics for a in reversed(made) if learns_from_rewards(a.stage)), {})
        # PPO's own gold score is of its rollouts, not of an evaluation's prompts.
        metrics = {name: v for name, v in trained.items() if name != "gold/score"} | last.metrics
        knobs = {name: value for name, value in record.knobs.items() if not _is_seed(name)}
        seed = " ".join(value for name, value in record.knobs.items() if _is_seed(name))
        split = _split(last) if chosen_by else ""
        runs.append(
            Run(
                record.number,
                knobs,
                seed,
                metrics,
                split,
                frozenset(last.metrics if chosen_by else ()),
            )
        )
    return runs


def _split(evaluation: Artifact) -> str:
    return evaluation.manifest["config"].get("split", "test")


def settings_of(runs: Sequence[Run]) -> list[Setting]:
    found: dict[tuple[str, ...], Setting] = {}
    for run in runs:
        found.setdefault(tuple(run.knobs.values()), Setting(run.knobs, [])).runs.append(run)
    return list(found.values())


def are_alike(runs: Sequence[Run], objective: str) -> bool:
    """Return True if all runs, two or more, have the same objective."""
    return len(runs) > 1 and all(
        run.metrics[objective] == runs[0].metrics[objective] for run in runs
    )


def members_table(records: Sequence[Record]) -> Table:
    by_number = {run.number: run for run in runs_of(records)}
    shown = shown_metrics(list(by_number.values()))
    knobs = list(records[0].knobs)
    rows = []
    for record in records:
        metrics = by_number[record.number].metrics if record.number in by_number else {}
        state = f"{record.state}: {record.error.splitlines()[0]}" if record.error else record.state
        state += f" at try {record.tries}" if record.tries > 1 and not record.error else ""
        values = [_value(metrics[name]) if name in metrics else "" for name in shown]
        made = next((artifact.ref for artifact in reversed(record.made.values())), "")
        rows.append([str(record.number), *record.knobs.values(), *values, made, state])
    return Table(["member", *map(short, knobs), *shown, "made", "state"], rows)


def settings_table(runs: Sequence[Run]) -> Table | None:
    """Return the means over seeds; None if no setting has two seeds."""
    settings = settings_of(runs)
    if all(len(setting.runs) == 1 for setting in settings):
        return None
    shown = shown_metrics(runs)
    rows = []
    for setting in settings:
        means = [setting.mean(name) for name in shown]
        values = [
            "" if math.isnan(m) else _value(m) + ("" if math.isnan(h) else f" +- {_value(h)}")
            for m, h in means
        ]
        rows.append([*setting.knobs.values(), str(len(setting.runs)), *values])
    return Table([*map(short, settings[0].knobs), "seeds", *shown], rows)


def shown_metrics(runs: Sequence[Run]) -> list[str]:
    """Return the metrics that get a column: at most nine known ones, else the first six."""
    every = dict.fromkeys(name for run in runs for name in run.metrics)
    names = [name for name in every if not name.endswith(("_low", "_high", "_chance", "_few"))]
    return [name for name in _SHOWN if name in names][:9] or names[:6]


def objective_of(runs: Sequence[Run], wanted: str | None) -> str | None:
    """Return the wanted metric, else the first known one, that all members have; else None."""
    return next(
        (
            name
            for name in (wanted, *OBJECTIVES)
            if name and all(name in run.metrics for run in runs)
        ),
        None,
    )


def lower_is_better(objective: str) -> bool:
    name = objective.rpartition("/")[2]
    return name in _LOWER_IS_BETTER or name.endswith("loss")


def splits_of(runs: Sequence[Run], objective: str | None) -> set[str]:
    """Return the splits of the prompts behind the objective.

    Members with different splits cannot be ranked by it.
    """
    return {run.split for run in runs if objective in run.evaluated and "prompts" in run.metrics}


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return the indices of the points (cost, worth) that no other point beats, by cost.

    A point beats another if its cost is not higher and its worth is not lower. Of equal points the
    first one stays.
    """
    best, front = -math.inf, []
    for i in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        if points[i][1] > best:
            best = points[i][1]
            front.append(i)
    return front


def short(knob: str) -> str:
    return knob.removeprefix("steps.")


def _is_seed(knob: str) -> bool:
    return knob.rpartition(".")[2] == "seed"


def _value(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 100 else f"{value:,.0f}"
