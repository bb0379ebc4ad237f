"""The few figures of a run that fit a terminal, as one table. The report has the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from align.configs import SPLITS, STAGES, BestOfN, StageConfig
from align.report import best_of_n
from align.report.tables import (
    Metrics,
    Table,
    evaluations,
    figure,
    interval,
    number,
    opponents,
    scorer,
    without_empty,
)
from align.store.artifacts import Artifact

if TYPE_CHECKING:
    from align.report.gather import Made

# Measures of a task, by preference: the first one that it has is shown.
_OF_TASKS = ("accuracy", "acc", "exact_match", "f1", "prompt_strict")
# Suffixes of metrics that belong to another one.
_ENDS = ("_low", "_high", "_chance", "_chance_high", "_few")


def models_table(made: Sequence[Made]) -> Table:
    """Return a row for each model that answered prompts: its score, its wins and its cost.

    `seconds` is the time of all steps that made the model, including the steps that made its
    inputs.
    """
    by_key = {each.key: each for each in made}
    answered = [each for each in evaluations(made) if "prompts" in each.artifact.metrics]
    scorers = {scorer(each.artifact.metrics) for each in answered} - {""}
    score = f"{scorers.copy().pop()} score" if len(scorers) == 1 else "score"
    rows = []
    for each in answered:
        m, inputs = each.artifact.metrics, dict(each.inputs)
        wins = []
        for opponent in opponents(each, by_key):
            if shown := interval(m, opponent.head):
                wins.append((opponent.made.name, shown))
        other, rate = wins[0] if wins else ("", "")
        rows.append(
            [
                by_key[inputs["model"]].name,
                number(m, f"{scorer(m)}/score", marked=True),
                scorer(m) if len(scorers) > 1 else "",
                rate.replace(" %", ""),
                other,
                number(m, "kl", 2),
                number(m, "response_tokens", 1),
                f"{_seconds(inputs['model'], by_key):,.0f}",
            ]
        )
        rows += [
            ["", "", "", rate.replace(" %", ""), other, "", "", ""] for other, rate in wins[1:]
        ]
    return without_empty(
        Table(["model", score, "by", "wins, %", "over", "KL", "tokens", "seconds"], rows)
    )


def _seconds(key: str, by_key: Mapping[str, Made]) -> float:
    """Return the time in seconds that an artifact and its whole lineage took."""
    needed, found = [key], dict[str, float]()
    while needed:
        each = by_key[needed.pop()]
        if each.key not in found:
            found[each.key] = each.artifact.manifest["seconds"]
            needed += [parent for _, parent in each.inputs]
    return sum(found.values())


def tasks_table(made: Sequence[Made]) -> Table:
    """Return a row for each task that a model was scored on, with the gain over the baseline."""
    by_key = {each.key: each for each in made}
    rows = []
    for each in evaluations(made):
        m, inputs = each.artifact.metrics, dict(each.inputs)
        baseline = by_key[inputs["baseline"]].name if "baseline" in inputs else ""
        for head, measure in _tasks(m).items():
            gain = figure(m, f"{head}/gain/{measure}", measure, "gain/")
            items = f" (n={m[f'{head}/items']:,.0f})" if f"{head}/items" in m else ""
            rows.append(
                [
                    f"{head.removeprefix('tasks/')} {measure}{items}",
                    by_key[inputs["model"]].name,
                    figure(m, f"{head}/{measure}", measure, ""),
                    gain,
                    baseline if gain else "",
                ]
            )
    return without_empty(Table(["task", "model", "figure", "gain", "over"], rows))


def _tasks(metrics: Metrics) -> dict[str, str]:
    """Return the measure to show for each whole task. The parts of tasks are only in the report."""
    found: dict[str, list[str]] = {}
    for name in metrics:
        head, _, measure = name.rpartition("/")
        is_whole = head.startswith("tasks/") and "/" not in head.removeprefix(
            "tasks/"
        ).removeprefix("lm_eval/")
        if is_whole and f"{name}_low" in metrics:
            found.setdefault(head, []).append(measure)
    return {
        head: next((name for name in _OF_TASKS if name in measures), measures[0])
        for head, measures in found.items()
    }


def metrics_table(artifact: Artifact) -> Table:
    """Return all metrics of one step, the most important first, with their intervals."""
    m = artifact.metrics
    main = [name for name, _ in _headline(artifact) if name in m]
    rows = []
    for name in dict.fromkeys([*main, *m]):
        if name.endswith(_ENDS) and any(
            name.removesuffix(end) in m for end in _ENDS if name.endswith(end)
        ):
            continue
        rows.append([name, figure(m, name, name.rpartition("/")[2], "") or short_number(m[name])])
    return Table(["metric", "value"], rows)


def short_number(value: float) -> str:
    """Format `1,234`, `0.831`, `1.2e-05`: whole numbers in full, others in about three digits."""
    if float(value).is_integer() and abs(value) < 1e9:
        return f"{value:,.0f}"
    if abs(value) >= 1000:
        return f"{value:,.0f}" if abs(value) < 1e9 else f"{value:.3g}"
    return f"{value:.3f}" if abs(value) >= 0.01 else f"{value:.3g}"


def main_figures(artifact: Artifact) -> str:
    """Return the result of one step in a few words."""
    m = artifact.metrics
    if artifact.stage == BestOfN.STAGE:
        return best_of_n.main_figures(m)
    if artifact.kind == "evaluation" and not _headline(artifact):
        return ", ".join(_of_evaluation(m))
    rows = [
        f"{short_number(m[f'rows/{split}'])} {split}" for split in SPLITS if f"rows/{split}" in m
    ]
    named = [f"{shown} {short_number(m[name])}" for name, shown in _headline(artifact) if name in m]
    return ", ".join(named or rows)


def _headline(artifact: Artifact) -> tuple[tuple[str, str], ...]:
    """Return the metrics that the artifact's stage shows first, each with its short name."""
    return STAGES.get(artifact.stage, StageConfig).HEADLINE


def _of_evaluation(m: Metrics) -> list[str]:
    found = []
    if scorer(m):
        found.append(f"{scorer(m)} {short_number(m[f'{scorer(m)}/score'])}")
    won = next(
        (name for name in ("win_rate", "prompted_base/win_rate", "judge/win_rate") if name in m),
        None,
    )
    if won is not None:
        found.append(f"wins {100 * m[won]:.1f} %")
    if not found:
        for head, measure in list(_tasks(m).items())[:1]:
            found.append(
                f"{head.removeprefix('tasks/')} {measure} {short_number(m[f'{head}/{measure}'])}"
            )
        more = len(_tasks(m)) - 1
        if more > 0:
            found.append(f"{more} more task{'s' * (more > 1)}")
    if not found and "pretrain_loss" in m:
        found.append(f"pretrain_loss {short_number(m['pretrain_loss'])}")
    return found
