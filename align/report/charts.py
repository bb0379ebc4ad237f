"""Draw the charts of a report as SVG.

The page gives the colours. Title and legend are text beside the picture.
"""

from __future__ import annotations

import functools
import io
import math
import re
import unicodedata
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from markupsafe import Markup

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Points = Sequence[tuple[float, float]]
Bin = tuple[float, float, int]

NOISY = 20  # points from which a line may need a running mean
_SPAN = 12  # a running mean's window is 1/12 of a line's points, at least 5
_MOST = 240  # points of a line: a chart has too few pixels for more
INK, FAINT = "#010203", "#010204"  # placeholders for the page's own colours
SERIES = [f"#0102{0x10 + i:02x}" for i in range(6)]
# The dashes of each series, so that a line can be recognised without its colour.
DASHES = (
    "",
    "7 3",
    "2 3",
    "9 3 2 3",
    "5 2",
    "1 2",
)
_VARIABLES = {INK: "var(--ink)", FAINT: "var(--faint)"} | {
    c: f"var(--series-{i})" for i, c in enumerate(SERIES)
}


class Legend(NamedTuple):
    """The entry of one line in a legend."""

    name: str
    number: int  # of its colour and dashes


class Chart(NamedTuple):
    """A picture with its texts.

    Attributes:
        summary: what the picture shows, for readers who cannot see it.
        legend: empty if there is only one line.
        note: how to read the picture; "" if that is obvious.
        dots: the legend shows dots instead of lines.
    """

    title: str
    picture: Markup
    summary: str
    legend: list[Legend]
    note: str
    dots: bool = False


def line_chart(
    title: str, x_label: str, series: Mapping[str, Points], scattered: bool = False
) -> Chart:
    """Draw one or several series of (x, y).

    Points that are not finite are left out, and so is a series without finite points. A noisy line
    is faint, with its running mean on top.

    Args:
        scattered: draw dots instead of lines; later ones are darker.
    """
    shown = []
    for number, (name, points) in enumerate(series.items()):
        finite = tuple((x, y) for x, y in points if math.isfinite(x) and math.isfinite(y))
        # A series that is left out keeps its colour: a metric has the same one in every report.
        if finite:
            shown.append((name, number, finite))
    return _line_chart(title, x_label, tuple(shown), scattered)


# A page that is rewritten every few seconds draws only what has changed.
@functools.lru_cache(maxsize=512)
def _line_chart(
    title: str,
    x_label: str,
    series: tuple[tuple[str, int, tuple[tuple[float, float], ...]], ...],
    scattered: bool,
) -> Chart:
    figure, axes = new_chart(x_label)
    said, noisy = [], False
    for name, number, points in series:
        colour, dashes = SERIES[number], _dashes(number)
        if scattered:
            for i, (x, y) in enumerate(points):
                axes.scatter(
                    x, y, s=14, color=colour, alpha=0.3 + 0.7 * i / len(points), linewidths=0
                )
        elif is_noisy(points):
            raw = thinned(points)
            axes.plot(
                [x for x, _ in raw], [y for _, y in raw], color=colour, linewidth=0.9, alpha=0.35
            )
            smooth = thinned(running_mean(points))
            xs, ys = [x for x, _ in smooth], [y for _, y in smooth]
            axes.plot(xs, ys, color=colour, linewidth=2.0, linestyle=dashes)
            noisy = True
        else:
            shown = thinned(points)
            marker = "o" if len(points) < NOISY else ""
            xs, ys = [x for x, _ in shown], [y for _, y in shown]
            axes.plot(
                xs, ys, color=colour, linewidth=1.8, linestyle=dashes, marker=marker, markersize=3
            )
        said.append(f"{name} from {points[0][1]:.3g} to {points[-1][1]:.3g}")
    legend = [Legend(name, number) for name, number, _ in series] if len(series) > 1 else []
    summary = f"{title} against {x_label}: {'; '.join(said)}."
    note = "Faint: as logged; strong: running mean." if noisy else ""
    return Chart(title, svg(figure), summary, legend, note, scattered)


def reliability_chart(title: str, series: Mapping[str, Sequence[Bin]]) -> Chart:
    """Draw how often answers of each confidence are right, over the diagonal.

    Args:
        series: for each name its bins: (confidence, accuracy, number of answers).
    """
    return _reliability_chart(title, tuple((name, tuple(bins)) for name, bins in series.items()))


@functools.lru_cache(maxsize=64)
def _reliability_chart(title: str, series: tuple[tuple[str, tuple[Bin, ...]], ...]) -> Chart:
    figure, axes = new_chart("confidence; upwards: share that is right")
    axes.plot([0, 1], [0, 1], color=FAINT, linewidth=1, linestyle=(0, (4, 3)))
    said = []
    for number, (name, bins) in enumerate(series[: len(SERIES)]):
        colour, most = SERIES[number], max(count for _, _, count in bins)
        xs, ys = [x for x, _, _ in bins], [y for _, y, _ in bins]
        axes.plot(xs, ys, color=colour, linewidth=1.6, linestyle=_dashes(number))
        axes.scatter(
            xs, ys, s=[6 + 60 * count / most for _, _, count in bins], color=colour, linewidths=0
        )
        answers = sum(count for _, _, count in bins)
        right = sum(y * count for _, y, count in bins) / answers
        sure = sum(x * count for x, _, count in bins) / answers
        said.append(
            f"{name} is {100 * sure:.0f} % sure on average and right in {100 * right:.0f} %"
        )
    axes.set_ylim(-0.03, 1.03)
    legend = [Legend(name, number) for number, (name, _) in enumerate(series[: len(SERIES)])]
    left_out = len(series) - len(legend)
    note = f"Not shown: {left_out} more, for want of colours." if left_out > 0 else ""
    return Chart(title, svg(figure), f"Calibration, {title}: {'; '.join(said)}.", legend, note)


def new_chart(x_label: str) -> tuple[Figure, Axes]:
    """Return an empty chart in the page's colours."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6, 2.5))
    FigureCanvasSVG(figure)
    axes = figure.add_axes((0.13, 0.17, 0.85, 0.74))  # same as a layout engine, in half the time
    axes.set_xlabel(drawn(x_label), fontsize=8, color=FAINT)
    axes.tick_params(labelsize=8, colors=FAINT)
    axes.yaxis.get_offset_text().set(color=FAINT, size=8)
    axes.locator_params(axis="y", nbins=6)
    axes.grid(color=FAINT, alpha=0.25, linewidth=0.6)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(FAINT)
    return figure, axes


def drawn(text: str) -> str:
    """Return text that matplotlib can draw: without lone surrogates and control characters."""
    return "".join(
        " " if unicodedata.category(letter) == "Cc" else letter
        for letter in text.encode(errors="replace").decode()
    )


def _dashes(number: int) -> tuple[int, tuple[float, ...]]:
    """Return the dashes of a series in matplotlib's form."""
    return 0, tuple(float(length) / 1.5 for length in DASHES[number].split())


def running_mean(points: Points) -> Points:
    """Return the mean over the points around each, over fewer at both ends; x is unchanged."""
    half = max(5, len(points) // _SPAN) // 2
    sums = [0.0]
    for _, y in points:
        sums.append(sums[-1] + y)
    means = []
    for i, (x, _) in enumerate(points):
        first, end = max(0, i - half), min(len(points), i + half + 1)
        means.append((x, (sums[end] - sums[first]) / (end - first)))
    return means


def is_noisy(points: Points) -> bool:
    """Return True if a running mean makes the line clearer.

    It does for at least `NOISY` points whose mean distance from it is over 1 % of their range.
    """
    if len(points) < NOISY:
        return False
    values = [y for _, y in points]
    off = [abs(y - mean) for y, (_, mean) in zip(values, running_mean(points), strict=True)]
    return sum(off) / len(off) > (max(values) - min(values)) / 100


def thinned(points: Points) -> Points:
    """Return at most `_MOST` points: means over neighbours, which keep a noisy curve's level."""
    size = math.ceil(len(points) / _MOST)
    if size <= 1:
        return points
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [(sum(x for x, _ in g) / len(g), sum(y for _, y in g) / len(g)) for g in groups]


def svg(figure: Figure) -> Markup:
    """Return the figure as SVG, without a size of its own.

    Its text is hidden from screen readers, because the page describes the picture.
    """
    import matplotlib
    from matplotlib.text import Text

    out = io.StringIO()
    for label in figure.findobj(Text):
        label.set_parse_math(False)
    # Text stays text, so it has the page's font and can be searched. A $ in it begins no formula.
    # The salt makes ids the same in every run.
    settings = {"svg.fonttype": "none", "svg.hashsalt": "align", "text.parse_math": False}
    with matplotlib.rc_context(settings), warnings.catch_warnings():  # type: ignore[arg-type]
        # The glyph is missing in matplotlib's font, which the page does not use.
        warnings.filterwarnings("ignore", "Glyph .* missing")
        figure.savefig(out, format="svg", transparent=True)
    _, start, text = out.getvalue().partition("<svg")
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, variable)
    text = re.sub(r"<metadata>.*?</metadata>", "", text, count=1, flags=re.DOTALL)
    # The page has its own style.
    text = re.sub(r"<style .*?</style>", "", text, count=1, flags=re.DOTALL)
    text = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", text)
    used = set(re.findall(r'(?:url\(#|href="#)([^")]+)', text))
    text = re.sub(r' id="([^"]+)"', lambda found: found[0] if found[1] in used else "", text)
    return Markup(
        start + re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', 'aria-hidden="true"', text, count=1)
    )
