"""Charts of a sweep."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from align.report.charts import FAINT, INK, SERIES, Chart, Legend, drawn, new_chart, svg

Value = str | float


class Spot(NamedTuple):
    """The result at one value of a knob.

    Attributes:
        mean: the mean over members.
        half: half of the mean's 95 % interval; NaN if unknown.
        members: the figure of each member.
    """

    value: str
    mean: float
    half: float
    members: list[float]


def knob_chart(knob: str, objective: str, lines: Mapping[str, Sequence[Spot]], note: str) -> Chart:
    """Draw the objective against one knob: a line through the means with their intervals.

    Each member is a faint dot.

    Args:
        knob, objective: their names.
        lines: the line of each setting of the other knobs, by name; at most as many as there are
            colours.
        note: what the intervals are over.
    """
    figure, axes = new_chart(knob)
    places, ticks = axis([spot.value for spots in lines.values() for spot in spots])
    place_of = dict(
        zip((spot.value for spots in lines.values() for spot in spots), places, strict=True)
    )
    said = []
    for number, (name, spots) in enumerate(lines.items()):
        colour = SERIES[number]
        ordered = sorted(spots, key=lambda spot: place_of[spot.value])
        for spot in ordered:
            xs = [place_of[spot.value]] * len(spot.members)
            axes.scatter(xs, spot.members, s=12, color=colour, alpha=0.45, linewidths=0)
        xs = [place_of[spot.value] for spot in ordered]
        halves = [0.0 if math.isnan(spot.half) else spot.half for spot in ordered]
        means = [spot.mean for spot in ordered]
        axes.errorbar(
            xs, means, yerr=halves, color=colour, linewidth=1.6, capsize=3, marker="o", markersize=4
        )
        figures = "; ".join(
            f"{spot.mean:.3g}{_half(spot.half)} at {spot.value}" for spot in ordered
        )
        said.append(f"{name}: {figures}" if name else figures)
    axes.set_xticks(list(ticks.values()), list(map(drawn, ticks)))
    legend = [Legend(name, number) for number, name in enumerate(lines)] if len(lines) > 1 else []
    title = f"{objective} against {knob}"
    return Chart(title, svg(figure), f"{title}: {'. '.join(said)}.", legend, note, dots=True)


def pareto_chart(
    objective: str,
    points: Sequence[tuple[float, float]],
    halves: Sequence[tuple[float, float]],
    front: Sequence[int],
    names: Sequence[str],
) -> Chart:
    """Draw settings as dots of (KL, objective) with their intervals.

    A line joins the settings of the Pareto front: those that no other setting beats in both.
    """
    figure, axes = new_chart("KL, nats per response")
    best = [points[i] for i in front]
    for (x, y), (wide, high) in zip(points, halves, strict=True):
        bars = [0.0 if math.isnan(half) else half for half in (wide, high)]
        axes.errorbar(
            [x],
            [y],
            xerr=[bars[0]],
            yerr=[bars[1]],
            color=SERIES[0],
            alpha=0.6,
            linewidth=1,
            fmt="o",
            markersize=4,
        )
    axes.plot(
        [x for x, _ in best],
        [y for _, y in best],
        color=SERIES[1],
        linewidth=1.4,
        marker="o",
        markersize=4.5,
    )
    shown = range(len(points)) if len(points) <= 12 else front  # more names would overlap
    for place, i in enumerate(shown):
        above = (4, 4) if place % 2 == 0 else (4, -9)  # so that neighbours' names do not overlap
        axes.annotate(
            drawn(names[i]),
            points[i],
            xytext=above,
            textcoords="offset points",
            fontsize=7,
            color=FAINT,
        )
    title = f"{objective} against KL; the line is the Pareto front"
    said = "; ".join(
        f"{names[i]} with {points[i][1]:.3g} at {points[i][0]:.3g} nats" for i in front
    )
    return Chart(
        title,
        svg(figure),
        f"{title}: {said}.",
        [],
        "Bars: 95 % intervals over seeds, where there are several.",
    )


def parallel_chart(names: Sequence[str], rows: Sequence[Sequence[Value]], lower: bool) -> Chart:
    """Draw each member as a line across parallel axes: knobs, cost and, last, the objective.

    Args:
        lower: True if a lower objective is better. Better members have stronger lines.
    """
    figure, axes = new_chart("")
    axes.set_position((0.06, 0.04, 0.84, 0.82))
    columns = []
    for column, name in enumerate(names):
        values = [row[column] for row in rows]
        places, ticks = (
            axis([str(v) for v in values]) if isinstance(values[0], str) else _numbers(values)
        )
        low, high = min(places), max(places)
        span = (high - low) or 1.0
        columns.append([(place - low) / span for place in places])
        axes.plot([column, column], [0, 1], color=FAINT, linewidth=0.8)
        for label, place in ticks.items():
            where = (column, (place - low) / span)
            axes.annotate(
                drawn(label),
                where,
                xytext=(3, 0),
                textcoords="offset points",
                fontsize=7,
                color=INK,
                va="center",
            )
        axes.annotate(
            drawn(name), (column, 1.08), fontsize=7, color=FAINT, ha="center", annotation_clip=False
        )
    for i in range(len(rows)):
        worth = 1 - columns[-1][i] if lower else columns[-1][i]
        heights = [column[i] for column in columns]
        axes.plot(
            range(len(names)), heights, color=SERIES[0], alpha=0.12 + 0.88 * worth**2, linewidth=1.4
        )
    axes.set_axis_off()
    title = "every member; the stronger its line, the better"
    return Chart(title, svg(figure), f"{len(rows)} members across {', '.join(names)}.", [], "")


def _half(half: float) -> str:
    return "" if math.isnan(half) else f" ± {half:.2g}"


def _numbers(values: Sequence[Value]) -> tuple[list[float], dict[str, float]]:
    places = [float(value) for value in values]
    return places, {f"{place:.3g}": place for place in (min(places), max(places))}


def axis(values: Sequence[str]) -> tuple[list[float], dict[str, float]]:
    """Return the position of each value, and the ticks.

    Numbers are placed by size, or evenly in order if the gaps between them differ widely. Other
    values are placed evenly in the order in which they occur.
    """
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
