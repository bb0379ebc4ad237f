"""The tables and sentences of a report on evaluated reward models."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from align.evals.intervals import is_few
from align.evals.reward_metrics import verdict_on
from align.report.tables import FEW_MARK, Metrics, Table, reward_evaluations, without_empty

if TYPE_CHECKING:
    from align.report.gather import Made

# Column -> metric. All are fractions but the last two.
_ACCURACIES = {
    "accuracy": "accuracy",
    "length alone": "length_accuracy",
    "lead over length": "over_length",
    "length-controlled": "length_controlled_accuracy",
    "best of K": "best_of/accuracy",
    "people agree": "labelers/agreement",
    "RewardBench 2": "reward_bench_2",
    "Kendall's tau": "kendall_tau",
}
_BY_LENGTH = {
    "better is shorter": "length/chosen_shorter/accuracy",
    "about equally long": "length/about_equal/accuracy",
    "better is longer": "length/chosen_longer/accuracy",
    "easy style": "styles/easy",
    "normal style": "styles/normal",
    "hard style": "styles/hard",
    "score with length": "length/correlation",
}
_NO_FRACTIONS = ("kendall_tau", "length/correlation")
WHOLE = "all"  # the name of all datasets together


def accuracies(made: Sequence[Made], brief: bool = False) -> Table:
    """Return a row for each reward model and each dataset, and for each group of it.

    Args:
        brief: only what a terminal has room for: the columns that decide, without the interval of
            length alone, no groups, and no column for a single model.
    """
    if not brief:
        return _table(made, _ACCURACIES, with_groups=True)
    table = _table(made, dict(list(_ACCURACIES.items())[:3]), with_groups=False)
    for row in table.rows:
        row[-2] = row[-2].partition(" [")[0]
    if len({row[0] for row in table.rows}) != 1:
        return table
    return Table(table.columns[1:], [row[1:] for row in table.rows])


def by_length_and_style(made: Sequence[Made]) -> Table:
    """Return accuracies by difference in length and in style, for each dataset."""
    return _table(made, _BY_LENGTH, with_groups=False)


def _table(made: Sequence[Made], columns: Mapping[str, str], with_groups: bool) -> Table:
    names = {each.key: each.name for each in made}
    rows = []
    for each in reward_evaluations(made):
        metrics, model = each.artifact.metrics, names[dict(each.inputs)["model"]]
        for head in heads(metrics, with_groups):
            shown = [_figure(metrics, f"{head}{metric}", metric) for metric in columns.values()]
            if any(shown):
                place = head.removeprefix("data/").rstrip("/") or WHOLE
                rows.append([model, place, f"{metrics[f'{head}pairs']:,.0f}", *shown])
    return without_empty(Table(["reward model", "comparisons", "pairs", *columns], rows))


def heads(metrics: Metrics, with_groups: bool = True) -> list[str]:
    """Return the heads of an evaluation's figures: "" for all, datasets, groups.

    With one dataset, "" is left out: its figures are the dataset's.
    """
    # Sorted: a manifest has its metrics in the order of their names.
    found = sorted(name.removesuffix("length_accuracy") for name in metrics if _is_head(name))
    datasets = [head for head in found if head.count("/") == 2]
    kept = [head for head in found if with_groups or head in ("", *datasets)]
    return [head for head in kept if head or len(datasets) != 1]


def _is_head(name: str) -> bool:
    return name.endswith("length_accuracy") and not name.endswith("best_of/length_accuracy")


def _figure(metrics: Metrics, name: str, metric: str) -> str:
    """Return a figure with its interval, if it has one; fractions in percent; "" if none."""
    if name not in metrics:
        return ""
    has_interval = f"{name}_low" in metrics
    ends = ("", "_low", "_high") if has_interval else ("",)
    scale, digits = (1, 2) if metric in _NO_FRACTIONS else (100, 1)
    sign = "+" if metric in ("over_length", "length/correlation") else ""
    values = [round(scale * metrics[f"{name}{end}"], digits) + 0.0 for end in ends]
    shown = f"{values[0]:{sign}.{digits}f}" + (" %" if scale == 100 and not sign else "")
    if has_interval:
        shown += f" [{values[1]:{sign}.{digits}f}, {values[2]:{sign}.{digits}f}]"
    return shown + (FEW_MARK if is_few(metrics, name) else "")


def sentences(made: Sequence[Made]) -> Iterator[tuple[str, int]]:
    """Yield (sentence, sign) for each evaluated reward model; the sign is that of `Verdict`.

    Warnings follow with the sign 2: comparisons that it learned from, datasets in which it is
    behind length.
    """
    names = {each.key: each.name for each in made}
    for each in reward_evaluations(made):
        metrics, model = each.artifact.metrics, names[dict(each.inputs)["model"]]
        found = verdict_on(metrics)
        yield f"Reward model {model}: {found.text}.", found.sign
        if seen := metrics.get("seen_in_training", 0.0):
            yield (
                f"{100 * seen:.1f} % of the prompts that {model} was evaluated on are among those"
                " that it learned from: its figures may be too high.",
                2,
            )
        behind = [
            head.removeprefix("data/").rstrip("/")
            for head in heads(metrics, with_groups=False)
            if head and metrics[f"{head}over_length_high"] < 0
        ]
        if behind and len(heads(metrics, with_groups=False)) > 1:
            yield f"{model} orders fewer pairs than length alone on {', '.join(behind)}.", 2
