"""What a person reads at the end of a command: the plan, the headline table, samples side by side."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from align.artifacts import ArtifactStore
from align.configs import PRECISIONS
from align.console import short, wide_console
from align.costs import Cost
from align.evals.intervals import few_warning, is_few
from align.pipeline import Outcome
from align.plan import Step
from align.report import tables
from align.sweeps import Member

_NUM_SAMPLES = 5
_PLAN_WIDTH = 120  # characters that a plan with its reasons takes


def show_plan(steps: Sequence[Step], costs: Mapping[str, Cost], as_json: bool, member: Member | None) -> None:
    if as_json:
        _print_json([step.described() | costs[step.label]._asdict() for step in steps], member)
        return
    console = wide_console()
    is_narrow = console.width < _PLAN_WIDTH  # then reasons stand below the table, each on lines of its own
    table = Table(box=None, pad_edge=False)
    for column in ("step", "stage", "key", "", "weights", "FLOPs", *([] if is_narrow else ["why"])):
        right = column in ("weights", "FLOPs")
        table.add_column(
            column, overflow="fold", no_wrap=column != "why", justify="right" if right else "left", highlight=False
        )
    reasons = Table(box=None, pad_edge=False, show_header=False)
    for step in steps:
        cost, state = costs[step.label], "cached" if step.cached else "run"
        numbers = short(cost.parameters), f"{cost.flops:.2g}" if cost.flops else ""
        if is_narrow:
            table.add_row(step.name, step.stage, step.key[:8], state, *numbers)
            if step.reason:
                reasons.add_row(Text(step.name), Text(step.reason))
        else:
            table.add_row(step.label, step.stage, step.key[:12], state, *numbers, Text(step.reason))
    todo = sum(not step.cached for step in steps)
    console.print(table)
    if reasons.row_count:
        console.print("\nwhy", style="bold")
        console.print(reasons)
        console.print()
    chosen = {precision: [step.name for step in steps if _precision(step) == precision] for precision in PRECISIONS}
    chosen = {precision: names for precision, names in chosen.items() if names}
    for precision, names in chosen.items():
        where = f": {', '.join(names)}" if len(chosen) > 1 else ""
        console.print(f"precision {precision}{where}", markup=False, highlight=False)
    console.print(f"{todo} to run, {len(steps) - todo} cached")


def _precision(step: Step) -> str | None:
    return getattr(step.config, "precision", None)


def _print_json(rows: list[dict[str, Any]], member: Member | None) -> None:
    """A list; of a sweep, one line a member, with its overrides."""
    print(json.dumps(rows, indent=1) if member is None else json.dumps({"overrides": member.overrides, "steps": rows}))


def show_outcomes(
    outcomes: Sequence[Outcome],
    store: ArtifactStore,
    as_json: bool,
    tracked: bool,
    member: Member | None,
    report: Path | None,
) -> None:
    """The end of a run: headline table and samples where there are evaluations, and where everything is."""
    ran = sum(not outcome.cached for outcome in outcomes)
    if as_json:
        _print_json([outcome.described() for outcome in outcomes], member)
        return
    console = Console()
    evaluations = [o for o in outcomes if o.artifact.kind == "evaluation"]
    answered = [o for o in evaluations if "prompts" in o.artifact.metrics]
    if answered:
        console.print(_headline(answered))
        console.print(_samples(answered))
    scored = [(o.step.name, *_players(o), o.artifact.metrics) for o in evaluations]
    for title, figures in (("What the answers are like", tables.manners(scored)), ("Tasks", tables.tasks(scored))):
        if figures.rows:
            console.print(_figures(title, figures))
    if not evaluations:
        last = outcomes[-1]
        numbers = "  ".join(f"{name} {value:.4g}" for name, value in last.artifact.metrics.items())
        console.print(f"{last.step.label}:v{last.version}  {numbers}", soft_wrap=True, markup=False, highlight=False)
    console.print(f"{ran} run, {len(outcomes) - ran} cached, {sum(o.seconds for o in outcomes):.1f} s")
    if report is not None:
        console.print(f"report:    {report}", soft_wrap=True, markup=False, highlight=False)
    console.print(f"artifacts: {store.root}   (align artifacts --store {store.root} ls)", soft_wrap=True)
    if tracked and ran:
        folder = Path(os.environ.get("WANDB_DIR") or store.root) / "wandb"
        unsent = f"   (wandb sync {folder}/offline-run-*)" if any(folder.glob("offline-run-*")) else ""
        console.print(f"W&B runs:  {folder}{unsent}", soft_wrap=True)


def report_on_run(outcomes: Sequence[Outcome], store: ArtifactStore, name: str, member: Member | None) -> Path | None:
    """The report on a pipeline's run, where something was evaluated; written anew where something was made.

    That of a sweep's member is kept with the sweep.
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
        return None  # the sweep that made it has its page
    if made or not out.exists():
        write_report(store, [f"{o.step.label}:v{o.version}" for o in evaluations], out, title)
    return out


def _headline(evaluations: Sequence[Outcome]) -> Table:
    """One row an evaluation: scores sampled and greedy, win rate against its baseline, KL, length, pretraining loss."""
    scorers = dict.fromkeys(tables.scorer(o.artifact.metrics) for o in evaluations)
    score = ", ".join(name for name in scorers if name)
    table = Table(
        title="Evaluation on held-out prompts, sampled at temperature 1 and greedily",
        caption="Wins over the model below, a tie counting half, and their 95 % interval."
        + (f"\n{tables.FEW_NOTE}" if any(_has_few(o.artifact.metrics) for o in evaluations) else ""),
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        title_justify="left",
        caption_justify="left",
    )
    columns = ("model", f"{score}\nT=1", "\ngreedy", "wins %\nT=1", "wins %\ngreedy", "ties\nT=1", "KL\nnats")
    for column in (*columns, "tokens", "text\nloss"):
        table.add_column(column, justify="left" if column == "model" else "right", no_wrap=True)
    for outcome in evaluations:
        m, inputs = outcome.artifact.metrics, outcome.step.inputs
        over = f"\nover {_step_name(inputs['baseline'][0].ref)}" if "baseline" in inputs else ""
        table.add_row(
            _step_name(inputs["model"][0].ref) + over,
            tables.number(m, f"{tables.scorer(m)}/score", marked=True),
            tables.number(m, f"greedy/{tables.scorer(m)}/score", marked=True),
            _interval(m, ""),
            _interval(m, "greedy/"),
            tables.percent(m, "ties", 0),
            tables.number(m, "kl", 2),
            tables.number(m, "response_tokens", 1),
            tables.number(m, "pretrain_loss", marked=True),
        )
    return table


def _step_name(ref: str) -> str:
    return ref.partition("/")[2] or ref


def _interval(metrics: dict[str, float], prefix: str) -> str:
    names = [f"{prefix}{name}" for name in ("win_rate", "win_rate_low", "win_rate_high")]
    if not all(name in metrics for name in names):
        return ""
    rate, low, high = (100 * metrics[name] for name in names)
    mark = tables.FEW_MARK if is_few(metrics, f"{prefix}win_rate") else ""
    return f"{rate:.1f}{mark}\n{low:.1f}-{high:.1f}"


def _has_few(metrics: Mapping[str, float]) -> bool:
    return few_warning(metrics) is not None


def _players(outcome: Outcome) -> tuple[str, str]:
    """The model's name, and the baseline's or nothing."""
    inputs = outcome.step.inputs
    return _step_name(inputs["model"][0].ref), _step_name(inputs["baseline"][0].ref) if "baseline" in inputs else ""


def _figures(title: str, scores: tables.Table) -> Table:
    """What is of all items, with 95 % intervals; the report has the parts of a task."""
    table = Table(
        title=title,
        caption="With 95 % intervals; * is beyond chance." + (f"\n{tables.FEW_NOTE}" if tables.has_few(scores) else ""),
        box=SIMPLE_HEAD,
        title_justify="left",
        caption_justify="left",
        pad_edge=False,
    )
    for column in scores.columns:
        table.add_column(column, overflow="fold")
    for row in scores.rows:
        if title == "Tasks" and "/" in row[0].removeprefix("lm_eval/"):
            continue
        table.add_row(*(cell.replace("[", r"\[") for cell in row))
    return table


def _samples(evaluations: Sequence[Outcome]) -> Table:
    """The answers of every evaluated model to the same prompts, sampled at temperature 1."""
    table = Table(title="Samples at temperature 1", title_justify="left", show_lines=True)
    table.add_column("prompt", overflow="fold")
    answers: dict[str, dict[str, str]] = {}
    for outcome in evaluations:
        name = outcome.step.inputs["model"][0].ref
        table.add_column(_step_name(name), overflow="fold")
        for row in outcome.artifact.rows("samples"):
            answers.setdefault(row["prompt"], {})[name] = row["response"]
    names = [outcome.step.inputs["model"][0].ref for outcome in evaluations]
    for prompt, by_model in list(answers.items())[:_NUM_SAMPLES]:
        table.add_row(*(_plain(text) for text in (prompt, *(by_model.get(name, "") for name in names))))
    return table


def _plain(text: str, limit: int = 160) -> str:
    """Model text, with nothing in it that the terminal or the table would take as a command."""
    shown = "".join(c if c.isprintable() else " " for c in text)
    return (shown if len(shown) <= limit else shown[: limit - 3] + "...").replace("[", r"\[")
