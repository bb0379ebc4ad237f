"""Make pages while MkDocs builds the site: knobs, metrics, data cards, accounts of pipelines.

MkDocs calls `on_files` once and `on_page_markdown` for each page (see "Hooks" in its user guide).
The generated pages come from the code, so they cannot fall behind it.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from dataclasses import Field, is_dataclass
from inspect import cleandoc
from pathlib import Path
from typing import Any

import yaml
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

import align.configs
from align.configs import (
    STAGES,
    HardwareConfig,
    RunConfig,
    StageConfig,
    TrackerConfig,
)
from align.configs.knobs import default_of, knobs_in_order
from align.report.meanings import glossary

ROOT = Path(__file__).resolve().parent.parent
# Files outside docs/ that are pages of the site, too: path in the repository -> path in the site.
BORROWED = {
    **{
        f"pipelines/{file.parent.name}/README.md": f"pipelines/{file.parent.name}.md"
        for file in ROOT.glob("pipelines/*/README.md")
    },
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "CHANGELOG.md": "changelog.md",
}
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s#]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages and those that live outside docs/."""
    for path, text in pages():
        files.append(File.generated(config, path, content=text))
    for source, path in BORROWED.items():
        files.append(File.generated(config, path, abs_src_path=str(ROOT / source)))
    for picture in ROOT.glob("pipelines/*/*.svg"):
        files.append(File.generated(config, f"pipelines/{picture.name}", abs_src_path=str(picture)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point links between files of the repository to the pages of the site."""
    source = {path: source for source, path in BORROWED.items()}.get(
        page.file.src_uri, f"docs/{page.file.src_uri}"
    )

    def changed(match: re.Match[str]) -> str:
        picture, label, target, anchor = match.groups()
        if re.match(r"[a-z]+:", target):
            return match.group(0)
        place = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        path = site_path(place)
        if not place.startswith("docs/") and not (ROOT / place).exists():
            raise PluginError(f"{source}: a link to {target}, which does not exist")
        if path is None:  # a file of the repository that the site does not show
            return label
        here = posixpath.dirname(page.file.src_uri) or "."
        return f"{picture}[{label}]({posixpath.relpath(path, here)}{anchor or ''})"

    outside_code = re.split(r"(^```.*?^```$)", markdown, flags=re.MULTILINE | re.DOTALL)
    return "".join(
        part if part.startswith("```") else LINK.sub(changed, part) for part in outside_code
    )


def site_path(path: str) -> str | None:
    """The page of a file of the repository; None if it has none."""
    if path in BORROWED:
        return BORROWED[path]
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    if re.fullmatch(r"pipelines/\w+/\w+\.svg", path):
        return f"pipelines/{posixpath.basename(path)}"
    if re.fullmatch(r"data_cards/\w+\.md", path):
        return "reference/cards.md"
    return None


def pages() -> Iterator[tuple[str, str]]:
    """Path and text of each generated page."""
    for stage, config in STAGES.items():
        yield f"reference/knobs/{stage}.md", stage_page(stage, config)
    yield "reference/knobs/run.md", run_page()
    yield "reference/metrics.md", metrics_page()
    yield "reference/cards.md", cards_page()


def stage_page(stage: str, config: type[StageConfig]) -> str:
    """What a stage takes and makes, and its knobs."""
    parts = [
        f"# {stage}",
        code_blocks(cleandoc(config.__doc__ or "")),
        inputs_table(config),
        f"Makes: {getattr(config, 'OUTPUT', 'what `record` or `kind` says')}.",
        "## Knobs",
        knobs_table(config),
    ]
    for knob, (title, group) in config.GROUPS.items():
        parts += [f"## {title.capitalize()}", knobs_table(group, f"{knob}.")]
    parts += ["Settings that every stage takes are on [their own page](run.md).", sources()]
    return "\n\n".join(part for part in parts if part)


def code_blocks(docstring: str) -> str:
    """The docstring, with its example commands as blocks of code."""
    return re.sub(
        r"((?:^(?:align|python) .*\n?(?:^ +.*\n?)*)+)",
        r"```text\n\1\n```\n",
        docstring,
        flags=re.MULTILINE,
    )


def inputs_table(config: type[StageConfig]) -> str:
    rows = [(slot, kind, "yes") for slot, kind in config.INPUTS.items()]
    rows += [(slot, kind, "no") for slot, kind in config.OPTIONAL.items()]
    if not rows:
        return ""
    lines = [f"| `inputs.{slot}` | {kind} | {needed} |" for slot, kind, needed in rows]
    return "\n".join(["| input | kind of artifact | required |", "|---|---|---|", *lines])


def run_page() -> str:
    parts = [
        "# Settings of a run",
        "Every command that runs a step takes these. Only `seed` changes a result.",
        knobs_table(RunConfig),
        "## Hardware",
        knobs_table(HardwareConfig, "hardware."),
        "## Tracker",
        knobs_table(TrackerConfig, "tracker."),
        sources(),
    ]
    return "\n\n".join(parts)


def knobs_table(config: Any, prefix: str = "") -> str:
    """A row for each knob: name, default, meaning with unit and source."""
    rows = ["| knob | default | meaning, unit, [source] |", "|---|---|---|"]
    for each in knobs_in_order(config):
        if "comment" in each.metadata:
            meaning = each.metadata["comment"].replace("None:", "null:")
            rows.append(f"| `{prefix}{each.name}` | {default(each, config)} | {in_cell(meaning)} |")
    return "\n".join(rows)


def default(each: Field[Any], config: Any) -> str:
    """A knob's default, as YAML writes it."""
    value = default_of(each, config)
    if is_dataclass(value):
        return "see below"
    if value is None:
        return "null"
    written = str(value).lower() if isinstance(value, bool) else str(value)
    return f"`{in_cell(written)}`" if written else "empty"


def in_cell(text: str) -> str:
    """Text that does not end its cell or begin a tag."""
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


def sources() -> str:
    """Where defaults come from, as the configs say it."""
    said = cleandoc(align.configs.__doc__ or "").partition("Sources: ")[2]
    return f'!!! info "Sources"\n    {" ".join(said.split())}'


def metrics_page() -> str:
    rows = [f"| {in_cell(entry.word)} | {in_cell(entry.text)} |" for entry in glossary()]
    head = (
        "# Metrics\n\nThe report explains these names on hover. A metric may have a prefix:"
        " `greedy/win_rate` is the win rate of greedy answers, `baseline/gold/score` the score of"
        " the baseline.\n"
    )
    return "\n".join([head, "| name | meaning |", "|---|---|", *rows])


def cards_page() -> str:
    """Every card in data_cards/: its text, its licence, and where its files are."""
    parts = [
        "# Data cards",
        (
            "A card names a published data set, its licence and its files. `source=card:NAME` reads"
            " it. `data_root=FOLDER` says where the files are; `local` lists their paths below that"
            " folder."
        ),
    ]
    for file in sorted(ROOT.glob("data_cards/*.md")):
        _, front, text = file.read_text().split("---\n", 2)
        card = yaml.safe_load(front)
        body = re.sub(r"^# .*\n", "", text, count=1, flags=re.MULTILINE)
        facts = [f"* {key}: {in_cell(str(value))}" for key, value in card.items()]
        parts.append(f"## {file.stem}\n\n{body.strip()}\n\n" + "\n".join(facts))
    return "\n\n".join(parts)
