"""A report as one HTML file that loads nothing, and as Markdown."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from align.artifacts import ArtifactStore
from align.report import tables
from align.report.charts import SERIES, line_chart, reliability_chart
from align.report.gather import Made, gather
from align.report.lineage import draw
from align.report.verdict import verdict

_SCORES = ("objective/score", "heldout/score", "gold/score")
_COUNTS = ("reward/length", "reward/missing_eos")  # parts in tokens and as a share, which would flatten the others
# Of each stage: a chart's title, then the metrics in it.
_CURVES: dict[str, list[tuple[str, tuple[str, ...]]]] = {
    "pretrain": [("loss, nats a token", ("loss", "eval/loss")), ("gradient norm", ("grad_norm",))],
    "text_to_text": [
        ("loss, nats a token", ("loss", "eval/text/loss", "eval/tasks/loss")),
        ("share of answers that are right", ("eval/tasks/accuracy",)),
        ("gradient norm", ("grad_norm",)),
    ],
    "finetune": [
        ("loss on the task, nats or squared error", ("task_loss",)),
        ("loss on its text, nats a token", ("lm_loss",)),
        ("gradient norm", ("grad_norm",)),
    ],
    "sft": [("loss, nats a token", ("loss", "eval/loss")), ("gradient norm", ("grad_norm",))],
    "reward": [("loss, nats a pair", ("loss",)), ("gradient norm", ("grad_norm",))],
    "ppo": [
        ("scores", _SCORES),
        ("KL to the reference, nats a response", ("objective/kl",)),
        ("response length, tokens", ("response_tokens",)),
        ("entropy, nats a token", ("policy/entropy",)),
        ("share of tokens that are clipped", ("ppo/clip_fraction", "value/clip_fraction")),
        ("explained variance of the value model", ("value/explained_variance",)),
        ("loss on pretraining text, nats a token", ("ptx/loss",)),
    ],
}
_ORDER = {stage: place for place, stage in enumerate(("ppo", "reward", "sft", "finetune", "text_to_text", "pretrain"))}


class Charts(NamedTuple):
    """One step's."""

    step: str
    pictures: list[Markup]


def write_report(store: ArtifactStore, refs: Sequence[str], out: Path, title: str) -> None:
    """Write the report on `refs` to the HTML file `out`, and as Markdown beside it."""
    html, markdown = render(title, gather(store, refs))
    out.parent.mkdir(parents=True, exist_ok=True)
    for path, text in ((out, html), (out.with_suffix(".md"), markdown)):
        write_whole(path, text)


def write_whole(path: Path, text: str) -> None:
    """The whole file or none: whoever has it open never sees half of it."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(text, encoding="utf-8", errors="replace")
    temporary.replace(path)


def file_name(title: str) -> str:
    return re.sub(r"[^\w.=+-]", "-", title)[:150] + ".html"


def render(title: str, made: Sequence[Made]) -> tuple[str, str]:
    """(HTML, Markdown) of what `gather` found."""
    environment = templates()
    facts: dict[str, Any] = {
        "title": title,
        "made_at": time.strftime("%Y-%m-%d %H:%M", time.localtime(max(m.artifact.manifest["created"] for m in made))),
        "verdict": [line.text for line in verdict(made)],
        "headline": tables.headline(made),
        "matrix": tables.matrix(made),
        "tasks": tables.tasks(tables.scored(made)),
        "manners": tables.manners(tables.scored(made)),
        "learned": tables.learned(made),
        "reward_models": tables.reward_models(made),
        "samples": tables.samples(made),
        "episodes": tables.episodes(made),
        "events": tables.events(made),
        "changes": tables.changes(made),
        "costs": tables.costs(made),
    }
    figures = [facts[name] for name in ("headline", "matrix", "tasks", "manners", "learned", "reward_models")]
    facts["few_note"] = tables.FEW_NOTE if any(map(tables.has_few, figures)) else ""
    pictures = {"lineage": Markup(draw(made)), "curves": curves(made), "calibration": calibration(made)}
    html = environment.get_template("page.html.jinja").render(**facts, **pictures)
    return html, environment.get_template("page.md.jinja").render(**facts)


def templates() -> Environment:
    """The templates of this folder; what they put into HTML is escaped."""
    environment = Environment(
        loader=PackageLoader("align.report", ""),
        autoescape=lambda name: ".html" in str(name),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["cell"] = _markdown_cell
    return environment


def curves(made: Sequence[Made]) -> list[Charts]:
    """Each step's learning curves; of PPO also its scores against KL. Metrics that were not logged are left out."""
    found = []
    for each in sorted(made, key=lambda each: _ORDER.get(each.stage, 0)):
        pictures = []
        unit = "iteration" if each.stage == "ppo" else "step"
        for title, names in _CURVES.get(each.stage, ()):
            series = {name: _points(each, "step", name) for name in names}
            if any(series.values()):
                pictures.append(Markup(line_chart(title, unit, series)))
        if each.stage == "ppo":
            series = {name: _points(each, "objective/kl", name) for name in _SCORES}
            chart = line_chart("scores against KL, darker is later", "KL, nats a response", series, scattered=True)
            pictures.insert(1, Markup(chart))
            pictures[2:2] = _reward_parts(each)
        if pictures:
            found.append(Charts(each.name, pictures))
    return found


def _reward_parts(made: Made) -> list[Markup]:
    """The parts of PPO's reward, where it has several, in as many charts as there are colours for."""
    names = dict.fromkeys(name for row in made.log for name in row if name.startswith("reward/"))
    parts = [name for name in names if name not in _COUNTS]
    pictures = []
    for start in range(0, len(parts) if len(parts) > 1 else 0, len(SERIES)):
        shown = parts[start : start + len(SERIES)]
        series = {name.removeprefix("reward/"): _points(made, "step", name) for name in shown}
        pictures.append(Markup(line_chart("parts of the reward, before their weights", "iteration", series)))
    return pictures


def calibration(made: Sequence[Made]) -> list[Markup]:
    """How well each reward model's and each model's sureness is founded: a chart a reward model, and a task."""
    names = {each.key: each.name for each in made}
    found: dict[str, dict[str, dict[float, tuple[float, float, int]]]] = {}
    for each in made:
        inputs = dict(each.inputs)
        for row in each.calibration:
            if each.stage == "reward":
                place, who = f"{each.name}: pairs of answers", each.name
            else:
                place, who = row["task"], names[inputs[row["model"]]]
            of_models = found.setdefault(place, {})
            one = (row["confidence"], row["accuracy"], row["answers"])
            if of_models.get(who, {}).get(row["low"], one) != one:
                who = f"{who} ({each.name})"
            of_models.setdefault(who, {})[row["low"]] = one
    charts = {place: {who: list(bins.values()) for who, bins in by.items()} for place, by in found.items()}
    return [Markup(reliability_chart(place, series)) for place, series in charts.items()]


def _points(made: Made, x: str, y: str) -> list[tuple[float, float]]:
    return [(row[x], row[y]) for row in made.log if x in row and y in row]


def _markdown_cell(text: object) -> str:
    """Text that neither ends a table's cell nor is taken as markup."""
    shown = " ".join(str(text).split()).replace("\\", "\\\\").replace("&", "&amp;").replace("<", "&lt;")
    for mark in "|*_`[]#~!":
        shown = shown.replace(mark, f"\\{mark}")
    return shown
