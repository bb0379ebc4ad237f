"""A sweep as one HTML page: its tables, the objective against each knob, and which settings nothing beats."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup

from align.report.page import templates, write_whole
from align.report.sweep import (
    Run,
    lower_is_better,
    members_table,
    pareto,
    runs_of,
    settings_of,
    settings_table,
    short,
)
from align.report.sweep_charts import knob_chart, parallel_chart, pareto_chart
from align.report.tables import Table
from align.sweeps import Record

_COSTS = ("kl", "objective/kl")


def write_page(folder: Path, records: Sequence[Record], objective: str | None) -> Path:
    """Write `sweep.html` into the sweep's folder."""
    runs = runs_of(records)
    page = (
        templates()
        .get_template("sweep.html.jinja")
        .render(
            title=f"sweep {folder.name}",
            members=_linked(members_table(records), folder),
            ends=", ".join(f"{n} {state}" for state, n in Counter(record.state for record in records).items()),
            means=settings_table(runs),
            objective=objective,
            charts=[Markup(chart) for chart in charts(runs, objective)] if objective else [],
        )
    )
    out = folder / "sweep.html"
    write_whole(out, page)
    return out


def _linked(members: Table, folder: Path) -> Table:
    """The members' table with how each ended beside its number, and the number a link to its own page."""
    rows = []
    for number, *values, state in members.rows:
        own = f"{number}.html"
        link = Markup('<a href="{}">{}</a>').format(own, number) if (folder / own).exists() else number
        rows.append([link, state, *values])
    return Table(["member", "state", *members.columns[1:-1]], rows)


def charts(runs: Sequence[Run], objective: str) -> list[str]:
    """The objective against each knob, the front of objective and KL, and parallel coordinates."""
    found = []
    for knob in runs[0].knobs:
        worth = [(run.knobs[knob], run.metrics[objective]) for run in runs]
        found.append(knob_chart(short(knob), objective, worth))
    cost = next((name for name in _COSTS if all(name in run.metrics for run in runs)), None)
    settings = settings_of(runs)
    if cost is not None and objective != cost and len(settings) > 1:
        sign = -1.0 if lower_is_better(objective) else 1.0
        points = [(setting.mean(cost)[0], setting.mean(objective)[0]) for setting in settings]
        front = pareto([(x, sign * y) for x, y in points])
        names = [" ".join(setting.knobs.values()) for setting in settings]
        found.append(
            pareto_chart(f"{objective} against KL; a line joins what nothing beats", objective, points, front, names)
        )
    if len(runs[0].knobs) > 1:
        axes = [short(knob) for knob in runs[0].knobs] + [name for name in (cost, objective) if name]
        rows: list[list[str | float]] = [
            [*run.knobs.values(), *(run.metrics[name] for name in (cost, objective) if name)] for run in runs
        ]
        found.append(
            parallel_chart("every member; the stronger its line, the better", axes, rows, lower_is_better(objective))
        )
    return found
