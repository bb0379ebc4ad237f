"""Render a sweep as one HTML page.

It shows the best setting, the objective against each knob, and every member.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup

from align.report.charts import SERIES, Chart
from align.report.page import templates, write_whole
from align.report.sweep import (
    Run,
    Setting,
    are_alike,
    lower_is_better,
    members_table,
    pareto,
    runs_of,
    settings_of,
    settings_table,
    short,
    splits_of,
)
from align.report.sweep_charts import Spot, knob_chart, parallel_chart, pareto_chart
from align.report.tables import Table
from align.report.verdict import Line
from align.store.sweep_records import Record

_COSTS = ("kl", "objective/kl")
_OVER_SEEDS = "Faint: members; bars: 95 % intervals of the mean over seeds."
_OVER_PROMPTS = (
    "One seed for each value; bars: its 95 % interval over prompts, which says nothing about other"
    " seeds."
)
_UNKNOWN = "One seed for each value: how much seeds differ is not known."


def write_page(folder: Path, records: Sequence[Record], objective: str | None) -> Path:
    """Write `sweep.html` into the folder of the sweep; return its path."""
    runs = runs_of(records)
    members = _linked(members_table(records), folder)
    page = (
        templates()
        .get_template("sweep.html.jinja")
        .render(
            title=f"sweep {folder.name}",
            verdict=verdict(records, objective),
            deciding=_deciding(members, len(records[0].knobs), objective),
            members=members,
            means=settings_table(runs),
            objective=objective,
            charts=charts(runs, objective) if objective else [],
        )
    )
    out = folder / "sweep.html"
    write_whole(out, page)
    return out


def verdict(records: Sequence[Record], objective: str | None) -> list[Line]:
    """Say which setting is best and whether that is beyond chance; then how the members ended."""
    lines = []
    runs = runs_of(records)
    settings = [
        setting
        for setting in settings_of(runs)
        if objective and not math.isnan(setting.mean(objective)[0])
    ]
    splits = splits_of(runs, objective)
    if objective is None:
        lines.append(Line("No metric that all members have can rank them.", "neutral"))
    elif len(splits) > 1:
        said = (
            f"Not ranked: the members' {objective} is of different splits"
            f" ({', '.join(sorted(splits))})."
        )
        lines.append(Line(said, "warning"))
    elif len(settings) > 1:
        lines.append(_best(settings, objective))
        if splits == {"test"} and not are_alike(runs, objective):
            said = (
                "Chosen on test prompts, so the best one's figure is too good; split=validation in"
                " the evaluation "
            )
            lines.append(Line(f"{said}chooses on others.", "warning"))
    ends = Counter(record.state for record in records)
    lost = sum(number for state, number in ends.items() if state in ("failed", "stopped", "killed"))
    lines.append(
        Line(
            f"{len(records)} members:"
            f" {', '.join(f'{number} {state}' for state, number in ends.items())}.",
            "warning" if lost else "neutral",
        )
    )
    return lines


def _best(settings: Sequence[Setting], objective: str) -> Line:
    """Compare the best setting, by its mean over seeds, with the second best."""
    sign = -1.0 if lower_is_better(objective) else 1.0
    first, second = sorted(settings, key=lambda setting: -sign * setting.mean(objective)[0])[:2]
    (mean, half), (other, other_half) = first.mean(objective), second.mean(objective)
    if mean == other:
        return Line(
            f"No setting is best: the first two have the same {objective}, {mean:.3f}.", "neutral"
        )
    seeds = min(len(first.runs), len(second.runs))
    behind = f"{second.name} with {_value(other, other_half)}"
    said = f"Best by {objective}: {first.name} with {_value(mean, half)}, before {behind}"
    if seeds < 2:
        return Line(f"{said}. One seed each: another seed may change the order.", "warning")
    if abs(mean - other) > half + other_half:
        return Line(
            f"{said}: the intervals over seeds do not overlap, so this is beyond chance.", "good"
        )
    return Line(
        f"{said}: the intervals over seeds overlap, so chance may explain the difference.",
        "neutral",
    )


def _value(mean: float, half: float) -> str:
    return f"{mean:.3f}" if math.isnan(half) else f"{mean:.3f} ± {half:.3f}"


def _linked(members: Table, folder: Path) -> Table:
    """Return the members' table with the state beside the number.

    The number links to the page of the member, if that exists.
    """
    rows = []
    for number, *values, state in members.rows:
        own = f"{number}.html"
        link = (
            Markup('<a href="{}">{}</a>').format(own, number) if (folder / own).exists() else number
        )
        rows.append([link, state, *values])
    return Table(["member", "state", *members.columns[1:-1]], rows)


def _deciding(members: Table, num_knobs: int, objective: str | None) -> Table:
    """Return the columns that decide: number, state, knobs, the objective, the win rate and KL."""
    wanted = (objective, "win_rate", *_COSTS)
    kept = [i for i, column in enumerate(members.columns) if i < 2 + num_knobs or column in wanted]
    return Table(
        [members.columns[i] for i in kept], [[row[i] for i in kept] for row in members.rows]
    )


def charts(runs: Sequence[Run], objective: str) -> list[Chart]:
    """Draw the objective against each knob, the Pareto front, and parallel coordinates.

    The front is of the objective and KL.
    """
    settings = settings_of(runs)
    knobs = list(runs[0].knobs)
    found = [_knob_chart(knob, settings, objective) for knob in knobs]
    if not knobs:
        spots = [_spot(run.seed, [run], objective) for run in runs]
        found.append(knob_chart("seed", objective, {"": spots}, _note(spots, [1])))
    cost = next((name for name in _COSTS if all(name in run.metrics for run in runs)), None)
    if cost is not None and objective != cost and len(settings) > 1:
        sign = -1.0 if lower_is_better(objective) else 1.0
        means = [(setting.mean(cost), setting.mean(objective)) for setting in settings]
        points = [(x, y) for (x, _), (y, _) in means]
        front = pareto([(x, sign * y) for x, y in points])
        halves = [(x, y) for (_, x), (_, y) in means]
        found.append(
            pareto_chart(objective, points, halves, front, [setting.name for setting in settings])
        )
    if len(knobs) > 1:
        axes = [short(knob) for knob in knobs] + [name for name in (cost, objective) if name]
        rows: list[list[str | float]] = [
            [*run.knobs.values(), *(run.metrics[name] for name in (cost, objective) if name)]
            for run in runs
        ]
        found.append(parallel_chart(axes, rows, lower_is_better(objective)))
    return found


def _knob_chart(knob: str, settings: Sequence[Setting], objective: str) -> Chart:
    """Draw a line for each setting of the other knobs.

    If there are more settings than colours, draw one line through the means over them.
    """
    lines: dict[str, list[Spot]] = {}
    for setting in settings:
        others = " ".join(
            f"{short(name)}={value}" for name, value in setting.knobs.items() if name != knob
        )
        lines.setdefault(others, []).append(_spot(setting.knobs[knob], setting.runs, objective))
    if len(lines) <= len(SERIES):
        spots = [spot for own in lines.values() for spot in own]
        return knob_chart(
            short(knob), objective, lines, _note(spots, [len(setting.runs) for setting in settings])
        )
    by_value: dict[str, list[Run]] = {}
    for setting in settings:
        by_value.setdefault(setting.knobs[knob], []).extend(setting.runs)
    means = [
        _spot(value, own, objective)._replace(half=math.nan) for value, own in by_value.items()
    ]
    note = "Faint: members; the line joins the means over all settings of the other knobs."
    return knob_chart(short(knob), objective, {"": means}, note)


def _spot(value: str, runs: list[Run], objective: str) -> Spot:
    """Return the mean over runs with its interval over seeds.

    One run alone has its interval over prompts.
    """
    mean, half = Setting({}, runs).mean(objective)
    ends = [f"{objective}_low", f"{objective}_high"]
    if len(runs) == 1 and all(name in runs[0].metrics for name in ends):
        half = (runs[0].metrics[ends[1]] - runs[0].metrics[ends[0]]) / 2
    return Spot(value, mean, half, [run.metrics[objective] for run in runs])


def _note(spots: Sequence[Spot], seeds: Sequence[int]) -> str:
    if max(seeds) > 1:
        return _OVER_SEEDS
    return _UNKNOWN if all(math.isnan(spot.half) for spot in spots) else _OVER_PROMPTS
