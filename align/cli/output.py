"""The output at the end of a command: a plan, or a run's result with its metrics in one table."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.text import Text

from align.configs import PRECISIONS
from align.pipeline.estimate import Cost
from align.pipeline.plan import Step
from align.pipeline.run import Outcome
from align.report import best_of_n, tables
from align.report.diagnosis import advice, diagnose
from align.report.gather import Made, gather
from align.report.reward_tables import accuracies
from align.report.summary import metrics_table, models_table, tasks_table
from align.report.verdict import Line, verdict
from align.runtime.console import (
    plain_console,
    print_sentence,
    print_table,
    sentence_lines,
    short,
    table_lines,
    wide_console,
)
from align.store.artifacts import ArtifactStore
from align.store.sweep_records import Member

_PLAN_WIDTH = 120  # characters that a plan with a column of reasons needs
_RUN_LINES = 30  # lines at most at the end of a run
_SENTENCE_LINES = 9  # lines at most of those for sentences
_CLOSING_LINES = 4  # the number of steps, the report, the artifacts, W&B's runs
_STYLES = {"good": "green", "bad": "red", "warning": "yellow", "neutral": ""}


def show_plan(
    steps: Sequence[Step], costs: Mapping[str, Cost], as_json: bool, member: Member | None
) -> None:
    if as_json:
        _print_json([step.described() | costs[step.label]._asdict() for step in steps], member)
        return
    console = wide_console()
    # On a narrow console the reasons go below the table, on lines of their own.
    is_narrow = console.width < _PLAN_WIDTH
    rows, reasons = [], dict[str, list[str]]()
    for step in steps:
        cost, state = costs[step.label], "cached" if step.cached else "run"
        numbers = [short(cost.parameters), f"{cost.flops:.2g}" if cost.flops else ""]
        if is_narrow:
            rows.append([step.name, step.stage, step.key[:8], state, *numbers])
            if step.reason:
                reasons.setdefault(step.reason, []).append(step.name)
        else:
            rows.append([step.label, step.stage, step.key[:12], state, *numbers, step.reason])
    columns = ["step", "stage", "key", "", "weights", "FLOPs", *([] if is_narrow else ["why"])]
    print_table(console, columns, rows)
    if reasons:
        console.print("\nwhy", style="bold")
        for reason, names in reasons.items():
            print_sentence(console, f"{', '.join(names)}: {reason}")
        console.print()
    chosen = {
        precision: [step.name for step in steps if _precision(step) == precision]
        for precision in PRECISIONS
    }
    chosen = {precision: names for precision, names in chosen.items() if names}
    for precision, names in chosen.items():
        where = f": {', '.join(names)}" if len(chosen) > 1 else ""
        print_sentence(console, f"precision {precision}{where}")
    todo = sum(not step.cached for step in steps)
    console.print(f"{todo} to run, {len(steps) - todo} cached")


def _precision(step: Step) -> str | None:
    return getattr(step.config, "precision", None)


def _print_json(rows: list[dict[str, Any]], member: Member | None) -> None:
    """Print the rows as a JSON list; in a sweep, one line for each member, with its overrides."""
    print(
        json.dumps(rows, indent=1)
        if member is None
        else json.dumps({"overrides": member.overrides, "steps": rows})
    )


def show_outcomes(
    outcomes: Sequence[Outcome],
    store: ArtifactStore,
    as_json: bool,
    tracked: bool,
    member: Member | None,
    report: Path | None,
) -> None:
    """Print the end of a run: whether it worked, one table, and where the rest is.

    It takes at most 30 lines of 80 columns.
    """
    if as_json:
        _print_json([outcome.described() for outcome in outcomes], member)
        return
    console = plain_console()
    made = gather(store, [f"{outcome.step.label}:v{outcome.version}" for outcome in outcomes])
    last = next(each for each in made if each.key == outcomes[-1].artifact.key)
    for line, style in result_lines(made, last, console.width, is_member=member is not None):
        console.print(Text(line, style=style, no_wrap=True, overflow="ignore"), crop=False)
    ran = sum(not outcome.cached for outcome in outcomes)
    console.print(
        f"{ran} run, {len(outcomes) - ran} cached, {sum(o.seconds for o in outcomes):.1f} s"
    )
    if report is not None:
        shown = report.relative_to(Path.cwd()) if report.is_relative_to(Path.cwd()) else report
        console.print(f"report:    {shown}", soft_wrap=True)
    if member is not None:  # the sweep prints the rest at its end
        return
    root = (
        store.root.relative_to(Path.cwd()) if store.root.is_relative_to(Path.cwd()) else store.root
    )
    given = "" if str(root) == "artifacts" else f" --store {root}"
    console.print(f"artifacts: align artifacts ls{given}", soft_wrap=True)
    if tracked and ran:
        folder = Path(os.environ.get("WANDB_DIR") or store.root) / "wandb"
        unsent = any(folder.glob("offline-run-*"))
        said = f"W&B runs:  wandb sync {folder}/offline-run-*" if unsent else f"W&B runs:  {folder}"
        console.print(said, soft_wrap=True)


def result_lines(
    made: Sequence[Made], last: Made, width: int, is_member: bool = False
) -> list[tuple[str, str]]:
    """Return the result of a run as (line, style) pairs, with lines of at most `width` characters.

    Args:
        made: all artifacts of the run and of their lineage; `last` is the artifact of its last
            step.
        is_member: the run is a member of a sweep. If something was evaluated, a sentence is enough,
            because the sweep ends with a table of all members.
    """
    is_evaluated = any(each.artifact.kind == "evaluation" for each in made)
    said = verdict(made)
    worrying = [Line(text, "bad") for text in advice(diagnose(made))]
    worrying += [line for line in said[1:] if line.tone in ("bad", "warning")]
    # If nothing was evaluated, there is no answer to whether it worked.
    sentences = [*(said[:1] if is_evaluated else []), *([] if is_member else worrying)]
    lines: list[tuple[str, str]] = []
    for number, line in enumerate(sentences):
        broken = sentence_lines(line.text, width)
        if number and len(lines) + len(broken) > _SENTENCE_LINES:
            left_out = len(sentences) - number
            lines.append(
                (
                    f"{left_out} more warning{'s' * (left_out > 1)}: in the report.",
                    _STYLES["warning"],
                )
            )
            break
        lines += [(text, _STYLES[line.tone]) for text in broken]
    if is_member and is_evaluated:
        return lines
    table, notes = _table(made, last)
    below = [line for note in notes for line in sentence_lines(note, width)]
    # 3: two empty lines, and the line on rows that are left out.
    room = _RUN_LINES - _CLOSING_LINES - len(lines) - len(below) - 3
    shown, left_out = _fitted(table, width, room, from_end=table.columns[0] == "model")
    if left_out:
        where = "in the report" if is_evaluated else f"align artifacts show {last.artifact.ref}"
        below += sentence_lines(f"{left_out} more row{'s' * (left_out > 1)}: {where}.", width)
    if table.rows:
        above = [("", "")] if lines else []
        lines += [*above, *shown, *((line, "dim") for line in below), ("", "")]
    return lines


def _table(made: Sequence[Made], last: Made) -> tuple[tables.Table, list[str]]:
    """Return the table to show for a run, with notes.

    It has the models, else the tasks, else the metrics of the last step.
    """
    table, tasks, notes = models_table(made), tasks_table(made), list[str]()
    rewards = accuracies(made, brief=True)
    if table.rows:
        shown = "Wins at temperature 1 with 95 % intervals, a tie counts half."
        if "wins, %" not in table.columns:
            shown = "Answers are sampled at temperature 1."
        notes.append(f"{shown} Seconds are those of all steps that a model was made by.")
        if tasks.rows:
            notes.append(
                f"Figures on {len(tasks.rows)} task{'s' * (len(tasks.rows) > 1)}: in the report."
            )
    elif tasks.rows:
        table = tasks
        notes.append("With 95 % intervals; * is beyond chance.")
    elif best_of_n.of_stage([last]):
        table = best_of_n.table(last, brief=True)
        notes.append("Expected over all subsets of n responses; 95 % intervals over prompts.")
    elif rewards.rows:
        table = rewards
        notes.append("With 95 % intervals; chance is 50 %. More figures are in the report.")
    else:
        table = metrics_table(last.artifact)
    if tables.has_few(table):
        notes.append(tables.FEW_NOTE)
    return table, notes


def _fitted(
    table: tables.Table, width: int, room: int, from_end: bool
) -> tuple[list[tuple[str, str]], int]:
    """Return the rows that fit into `room` lines, at least one, and the number left out.

    Args:
        from_end: keep the last rows instead of the first.
    """
    for count in range(len(table.rows), 0, -1):
        rows = table.rows[-count:] if from_end else table.rows[:count]
        if not rows[0][0]:  # it continues a row that is left out
            continue
        lines = [
            (line, style)
            for block, style in table_lines(table.columns, rows, width)
            for line in block
        ]
        if len(lines) <= room or count == 1:
            return lines, len(table.rows) - count
    return [], len(table.rows)


def report_on_run(
    outcomes: Sequence[Outcome], store: ArtifactStore, name: str, member: Member | None
) -> Path | None:
    """Write the report on a run and return its path; None if nothing was evaluated.

    The page is rewritten if the run made something, or if the page is missing. The report of a
    sweep's member is in the folder of the sweep. It is None if the member made nothing.
    """
    evaluations = [o for o in outcomes if o.artifact.kind == "evaluation"]
    if not evaluations:
        return None
    from align.report.page import file_name, write_report

    title = name if len(evaluations) > 1 else evaluations[0].step.label
    out = store.root / "reports" / file_name(title)
    if member is not None:
        out, title = member.folder / f"{member.number}.html", f"{name} {' '.join(member.knobs)}"
    made = not all(outcome.cached for outcome in outcomes)
    if member is not None and not made:
        return None  # the sweep that made its artifacts has the page
    if made or not out.exists():
        write_report(store, [f"{o.step.label}:v{o.version}" for o in evaluations], out, title)
    return out
