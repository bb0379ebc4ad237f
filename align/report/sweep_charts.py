"""Charts of a sweep."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Sequence

from align.report.charts import FAINT, INK, SERIES, new_chart, svg

Value = str | float


def knob_chart(knob: str, objective: str, points: Sequence[tuple[str, float]]) -> str:
    """The objective against one knob: a dot a member, a line through the means."""
    figure, axes = new_chart(f"{objective} against {knob}", knob)
    places, ticks = _axis([value for value, _ in points])
    axes.scatter(places, [y for _, y in points], s=16, color=SERIES[0], alpha=0.55, linewidths=0)
    groups: dict[float, list[float]] = defaultdict(list)
    for place, (_, y) in zip(places, points, strict=True):
        groups[place].append(y)
    means = sorted((place, sum(ys) / len(ys)) for place, ys in groups.items())
    axes.plot([x for x, _ in means], [y for _, y in means], color=SERIES[0], linewidth=1.6)
    axes.set_xticks(list(ticks.values()), list(ticks))
    return svg(figure, f"{objective} {knob}")


def pareto_chart(
    title: str, objective: str, points: Sequence[tuple[float, float]], front: Sequence[int], names: Sequence[str]
) -> str:
    """Settings as dots, those that nothing beats joined by a line."""
    figure, axes = new_chart(title, "KL, nats a response")
    axes.scatter([x for x, _ in points], [y for _, y in points], s=20, color=SERIES[0], linewidths=0)
    best = [points[i] for i in front]
    axes.plot([x for x, _ in best], [y for _, y in best], color=SERIES[1], linewidth=1.4, marker="o", markersize=4.5)
    for (x, y), name in zip(points, names, strict=True):
        axes.annotate(name, (x, y), xytext=(4, 4), textcoords="offset points", fontsize=7, color=FAINT)
    axes.set_ylabel(objective, fontsize=8, color=FAINT)
    return svg(figure, title)


def parallel_chart(title: str, names: Sequence[str], rows: Sequence[Sequence[Value]], lower: bool) -> str:
    """A line a member across one axis a knob, the cost and the objective, which is the last."""
    figure, axes = new_chart(title, "")
    columns = []
    for column, name in enumerate(names):
        values = [row[column] for row in rows]
        places, ticks = _axis([str(v) for v in values]) if isinstance(values[0], str) else _numbers(values)
        low, high = min(places), max(places)
        span = (high - low) or 1.0
        columns.append([(place - low) / span for place in places])
        axes.plot([column, column], [0, 1], color=FAINT, linewidth=0.8)
        for label, place in ticks.items():
            axes.annotate(
                label,
                (column, (place - low) / span),
                xytext=(3, 0),
                textcoords="offset points",
                fontsize=7,
                color=INK,
                va="center",
            )
        axes.annotate(name, (column, 1.08), fontsize=7, color=FAINT, ha="center", annotation_clip=False)
    for i in range(len(rows)):
        worth = 1 - columns[-1][i] if lower else columns[-1][i]
        heights = [column[i] for column in columns]
        axes.plot(range(len(names)), heights, color=SERIES[0], alpha=0.12 + 0.88 * worth**2, linewidth=1.4)
    axes.set_axis_off()
    axes.set_title(title, loc="left", fontsize=10, color=INK, pad=22)
    return svg(figure, title)


def _numbers(values: Sequence[Value]) -> tuple[list[float], dict[str, float]]:
    places = [float(value) for value in values]
    return places, {f"{place:.3g}": place for place in (min(places), max(places))}


def _axis(values: Sequence[str]) -> tuple[list[float], dict[str, float]]:
    """Where each value stands, and the ticks: numbers by size, or in order where sizes differ widely; else in turn."""
    distinct = list(dict.fromkeys(values))
    numbers = {value: _number(value) for value in distinct}
    if any(math.isnan(number) for number in numbers.values()):
        ticks = {value: float(i) for i, value in enumerate(distinct)}
    else:
        ordered = sorted(distinct, key=lambda value: numbers[value])
        gaps = [numbers[b] - numbers[a] for a, b in itertools.pairwise(ordered)]
        even = not gaps or max(gaps) <= 4 * min(gaps)
        ticks = {value: numbers[value] if even else float(i) for i, value in enumerate(ordered)}
    return [ticks[value] for value in values], ticks


def _number(value: str) -> float:
    try:
        return float(value)
    except ValueError:
        return math.nan
