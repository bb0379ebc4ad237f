"""Render a report as one HTML file that loads nothing, and as Markdown."""

from __future__ import annotations

import base64
import functools
import hashlib
import os
import re
import secrets
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from align.configs import STAGES, StageConfig
from align.configs.curves import Curve
from align.report import best_of_n, tables
from align.report.charts import DASHES, SERIES, Chart, line_chart, reliability_chart
from align.report.deciding import decided
from align.report.diagnosis import advice, diagnose
from align.report.gather import Made, gather_with_unfinished
from align.report.lineage import draw
from align.report.meanings import Entry, meaning
from align.report.reward_tables import accuracies, by_length_and_style
from align.report.running import Logged, Unfinished, strangers
from align.report.verdict import verdict
from align.store.artifacts import ArtifactStore, is_number

RELOAD_SECONDS = 5  # between two reloads of a page that is being rewritten
SIGNS = {
    "good": ("✓", "Good"),
    "bad": ("✕", "Bad"),
    "warning": ("!", "Check"),
    "neutral": ("•", "Note"),
}
# The order of charts: the last stage of the recipe first.
_ORDER = {stage: -place for place, stage in enumerate(STAGES)}
# Columns of the headline table that the deciding figures already show, besides the scores.
_DECIDING = ("wins",)


class Charts(NamedTuple):
    """The charts of one step."""

    step: str
    pictures: list[Chart]


def write_report(
    store: ArtifactStore, refs: Sequence[str], out: Path, title: str, follows: bool = False
) -> None:
    """Write the report on `refs` to the HTML file `out`, and as Markdown beside it.

    Args:
        follows: the page is written again and again, so it reloads itself.

    Raises:
        StoreError: a reference matches neither an artifact nor a step that has begun.
    """
    left_out = strangers(store)
    made, steps = gather_with_unfinished(store, refs, left_out)
    html, markdown = render(title, made, steps, follows, left_out)
    out.parent.mkdir(parents=True, exist_ok=True)
    for path, text in ((out, html), (out.with_suffix(".md"), markdown)):
        write_whole(path, text)


def write_whole(path: Path, text: str) -> None:
    """Write a file atomically, so that nobody reads half of it.

    Two processes may write it at the same time.
    """
    temporary = path.with_name(f".{os.getpid()}-{secrets.token_hex(4)}.new")
    try:
        temporary.write_text(text, encoding="utf-8", errors="replace")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def file_name(title: str) -> str:
    return re.sub(r"[^\w.=+-]", "-", title)[:150] + ".html"


def render(
    title: str,
    made: Sequence[Made],
    steps: Sequence[Unfinished] = (),
    follows: bool = False,
    left_out: Sequence[str] = (),
) -> tuple[str, str]:
    """Return (HTML, Markdown) of what `gather` found, and of `steps` that are not finished.

    Args:
        left_out: a line on each thing in the store that the report leaves out.
    """
    environment = templates()
    created = [each.artifact.manifest["created"] for each in made]
    logged: list[Logged] = [*steps, *made]
    diagnoses = diagnose(made, steps)
    facts: dict[str, Any] = {
        "title": title,
        "made_at": time.strftime("%Y-%m-%d %H:%M", time.localtime(max(created))) if created else "",
        "unfinished": steps,
        "left_out": [*left_out, *(line for each in logged for line in each.left_out)],
        "diagnoses": [each.line for each in diagnoses],
        "advice": advice(diagnoses),
        "verdict": verdict(made),
        "decided": decided(made),
        "headline": tables.headline(made),
        "matrix": tables.matrix(made),
        "tasks": tables.tasks(tables.scored(made)),
        "manners": tables.manners(tables.scored(made)),
        "learned": tables.learned(made),
        "best_of_n": [(each.name, best_of_n.table(each)) for each in best_of_n.of_stage(made)],
        "reward_models": tables.reward_models(made),
        "samples": samples(made),
        "accuracies": accuracies(made),
        "by_length": by_length_and_style(made),
        "episodes": tables.episodes(logged),
        "events": tables.events(logged),
        "changes": tables.changes(made),
        "costs": tables.costs(made),
    }
    figures = [
        facts[name]
        for name in (
            *("headline", "matrix", "tasks", "manners", "learned", "reward_models"),
            *("accuracies", "by_length"),
        )
    ]
    figures += [table for _, table in facts["best_of_n"]]
    facts["few_note"] = tables.FEW_NOTE if any(map(tables.has_few, figures)) else ""
    html = environment.get_template("page.html.jinja").render(
        **facts,
        details=_details(facts["headline"]),
        lineage=draw(made) if made else "",
        curves=curves(logged),
        script=_own("page.js"),
        calibration=calibration(made),
        reload_seconds=RELOAD_SECONDS if follows else 0,
        written=time.strftime("%H:%M:%S") if steps or follows else "",
        written_at=round(time.time()),
    )
    return html, environment.get_template("page.md.jinja").render(**facts)


def samples(made: Sequence[Made]) -> list[tables.Sample]:
    """Return the answers of all models to the same prompts, chosen ones among them."""
    names = {each.key: each.name for each in made}
    found = {sample.prompt: list(sample.answers) for sample in tables.samples(made)}
    for each in best_of_n.of_stage(made):
        for prompt, answers in best_of_n.answers(each, names):
            known = found.setdefault(prompt, [])
            known += [pair for pair in answers if pair[0] not in {name for name, _ in known}]
    return [tables.Sample(prompt, answers) for prompt, answers in found.items()]


def _details(headline: tables.Table) -> tables.Table:
    """Return the headline table without the columns that the deciding figures show."""
    kept = [
        i
        for i, column in enumerate(headline.columns)
        if column not in _DECIDING and column != "score" and not column.endswith(" score")
    ]
    # Reversed: the order of the deciding figures.
    rows = [[row[i] for i in kept] for row in reversed(headline.rows)]
    return tables.Table([headline.columns[i] for i in kept], rows)


class Words:
    """The names that one page explains.

    A template asks for the entry of each name. At its end it lists all that it asked for.
    """

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}

    def explain(self, name: str) -> Entry | None:
        """Return the entry of a name and note it for the glossary; None if the name is unknown."""
        entry = meaning(str(name))
        if entry is not None:
            self._entries[entry.anchor] = entry
        return entry

    def glossary(self) -> list[Entry]:
        """Return all entries that were asked for, sorted."""
        return sorted(self._entries.values())


class Ids:
    """A filter that makes the ids in each picture unique on a page.

    It is needed because charts of two steps may be alike.
    """

    def __init__(self) -> None:
        self._count = 0

    def __call__(self, picture: Markup) -> Markup:
        self._count += 1
        return Markup(re.sub(r'(\bid="|url\(#|href="#)', rf"\1p{self._count}-", str(picture)))


def templates() -> Environment:
    """Return the templates of this folder, for one page. Values in HTML are escaped."""
    environment = Environment(
        loader=PackageLoader("align.report", ""),
        autoescape=lambda name: ".html" in str(name),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"cell": _markdown_cell, "with_own_ids": Ids(), "csp": _hashed}
    environment.globals |= {
        "words": Words(),
        "signs": SIGNS,
        "dashes": DASHES,
        "style": _own("style.css"),
    }
    return environment


@functools.cache
def _own(name: str) -> Markup:
    """Return a file of this folder, to be put into a page unescaped."""
    return Markup((Path(__file__).parent / name).read_text(encoding="utf-8"))


def _hashed(text: str) -> str:
    """Return the hash of a style or script for a content security policy.

    It is computed from our own file, not from the page, which may have text from a store.
    """
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def curves(logged: Sequence[Logged]) -> list[Charts]:
    """Draw the charts that each step's stage declares, without metrics that were not logged."""
    found = []
    for each in sorted(logged, key=lambda each: _ORDER.get(each.stage, 0)):
        stage = STAGES.get(each.stage, StageConfig)
        pictures = [
            picture for curve in stage.CURVES for picture in _drawn(each, curve, stage.AXIS)
        ]
        if pictures:
            state = f" ({each.state})" if isinstance(each, Unfinished) else ""
            found.append(Charts(f"{each.name}{state}", pictures))
    return found


def _drawn(each: Logged, curve: Curve, axis: str) -> list[Chart]:
    """Draw one curve: no chart if nothing was logged, several if it has more lines than colours."""
    if curve.prefix:
        logged = dict.fromkeys(
            name for row in each.log for name in row if name.startswith(curve.prefix)
        )
        names = [name for name in logged if name not in curve.without]
        parts = [names[start : start + len(SERIES)] for start in range(0, len(names), len(SERIES))]
        shown = parts if len(names) > 1 else []
        return [
            line_chart(
                curve.title,
                axis,
                {_part(name, curve.prefix): _points(each, "step", name) for name in part},
            )
            for part in shown
        ]
    along, label = curve.against or ("step", axis)
    series = {name: _points(each, along, name) for name in curve.metrics}
    if not any(series.values()):
        return []
    scattered = curve.against is not None and not curve.joined
    return [line_chart(curve.title, label, series, scattered)]


def _part(metric: str, prefix: str) -> str:
    """Return the name of a part of the reward; a function keeps the name that its user gave it."""
    name = metric.removeprefix(prefix)
    return "reward model" if name == "model" else name


def calibration(made: Sequence[Made]) -> list[Chart]:
    """Draw a reliability chart for each reward model, and one for each task with its models."""
    names = {each.key: each.name for each in made}
    of_rewards = {each.key for each in tables.reward_evaluations(made)}
    found: dict[str, dict[str, dict[float, tuple[float, float, int]]]] = {}
    for each in made:
        inputs = dict(each.inputs)
        for row in each.calibration:
            if row["answers"] <= 0:
                continue
            if each.stage == "reward" or each.key in of_rewards:
                place, who = f"{each.name}: pairs of answers", each.name
                if row["model"] != "model":  # the same model at its temperature
                    who = f"{each.name} {row['model']}"
            elif row["model"] in inputs:
                place, who = row["task"], names[inputs[row["model"]]]
            else:  # align writes no such row
                continue
            of_models = found.setdefault(place, {})
            one = (row["confidence"], row["accuracy"], row["answers"])
            if of_models.get(who, {}).get(row["low"], one) != one:
                who = f"{who} ({each.name})"
            of_models.setdefault(who, {})[row["low"]] = one
    charts = {
        place: {who: list(bins.values()) for who, bins in by.items()} for place, by in found.items()
    }
    return [reliability_chart(place, series) for place, series in charts.items()]


def _points(each: Logged, x: str, y: str) -> list[tuple[float, float]]:
    return [(row[x], row[y]) for row in each.log if is_number(row.get(x)) and is_number(row.get(y))]


def _markdown_cell(text: object) -> str:
    """Escape text for a cell of a Markdown table: it must not end the cell or act as markup."""
    shown = (
        " ".join(str(text).split()).replace("\\", "\\\\").replace("&", "&amp;").replace("<", "&lt;")
    )
    for mark in "|*_`[]#~!$":
        shown = shown.replace(mark, f"\\{mark}")
    return shown
