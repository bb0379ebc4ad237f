"""Charts of a report, as SVG that takes its colours from the page: the same picture on light and on dark."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Points = Sequence[tuple[float, float]]

_MOST = 240  # points of a line: more than a chart has pixels to tell apart
INK, FAINT = "#010203", "#010204"  # stand for the page's own colours
SERIES = [f"#0102{0x10 + i:02x}" for i in range(6)]
_VARIABLES = {INK: "var(--ink)", FAINT: "var(--faint)"} | {c: f"var(--series-{i})" for i, c in enumerate(SERIES)}


def line_chart(title: str, x_label: str, series: Mapping[str, Points], scattered: bool = False) -> str:
    """One chart of one or several series of (x, y); points that are not finite are left out, and series without any.

    Args:
        scattered: dots, darker the later, in place of lines.
    """
    figure, axes = new_chart(title, x_label)
    for colour, (name, points) in zip(SERIES, series.items(), strict=False):
        finite = [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]
        if not finite:
            continue  # its colour is left free, so that a metric has the same in every report
        if scattered:
            for i, (x, y) in enumerate(finite):
                axes.scatter(x, y, s=14, color=colour, alpha=0.25 + 0.75 * i / len(finite), linewidths=0)
            axes.scatter([], [], s=14, color=colour, label=name)  # the legend's dot
        else:
            shown = thinned(finite)
            axes.plot([x for x, _ in shown], [y for _, y in shown], color=colour, label=name, linewidth=1.6)
    if len(axes.get_legend_handles_labels()[1]) > 1:
        axes.legend(fontsize=8, frameon=False, labelcolor=INK)
    return svg(figure, title)


def reliability_chart(title: str, series: Mapping[str, Sequence[tuple[float, float, int]]]) -> str:
    """How often answers of a confidence are right: (confidence, accuracy, answers) of each bin, over the diagonal."""
    figure, axes = new_chart(title, "confidence")
    axes.plot([0, 1], [0, 1], color=FAINT, linewidth=1, linestyle=(0, (4, 3)))
    for colour, (name, bins) in zip(SERIES, series.items(), strict=False):
        most = max(count for _, _, count in bins)
        axes.plot([x for x, _, _ in bins], [y for _, y, _ in bins], color=colour, label=name, linewidth=1.6)
        sizes = [6 + 60 * count / most for _, _, count in bins]
        axes.scatter([x for x, _, _ in bins], [y for _, y, _ in bins], s=sizes, color=colour, linewidths=0)
    axes.set_ylim(-0.03, 1.03)
    if len(series) > 1:
        axes.legend(fontsize=8, frameon=False, labelcolor=INK)
    return svg(figure, title)


def new_chart(title: str, x_label: str) -> tuple[Figure, Axes]:
    """An empty chart in the page's colours."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6, 2.7), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.add_subplot()
    axes.set_title(title, loc="left", fontsize=10, color=INK)
    axes.set_xlabel(x_label, fontsize=8, color=FAINT)
    axes.tick_params(labelsize=8, colors=FAINT)
    axes.grid(color=FAINT, alpha=0.25, linewidth=0.6)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(FAINT)
    return figure, axes


def thinned(points: Points) -> Points:
    """At most `_MOST` points: means over neighbours, so that a noisy curve stays true to its level."""
    size = math.ceil(len(points) / _MOST)
    if size <= 1:
        return points
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [(sum(x for x, _ in g) / len(g), sum(y for _, y in g) / len(g)) for g in groups]


def svg(figure: Figure, title: str) -> str:
    """The figure as SVG, without a size of its own; `title` makes its ids, which must differ on a page."""
    import matplotlib

    out = io.StringIO()
    # Text stays text: it takes the page's font and can be searched. The salt makes ids the same in every run.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": title}):
        figure.savefig(out, format="svg", transparent=True)
    _, start, text = out.getvalue().partition("<svg")
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, variable)
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", text)
    return start + re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', 'role="img"', text, count=1)
