"""`align sweep`: what the members of a sweep did, as a table and as a page. Needs no torch."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from align.errors import ConfigError, StoreError
from align.report.sweep import (
    Run,
    are_alike,
    lower_is_better,
    members_table,
    objective_of,
    runs_of,
    settings_of,
    settings_table,
    shown_metrics,
    splits_of,
)
from align.report.tables import Table, without_empty
from align.runtime.console import Parser, print_sentence, print_table, table_lines, wide_console
from align.store.artifacts import ArtifactStore, store_folder
from align.store.sweep_records import Record, read_sweep, sweeps

_WIDE = 120  # characters that a table with artifacts' keys needs


def main(arguments: list[str]) -> int:
    parser = Parser(prog="align sweep", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    show = verbs.add_parser("show", help="a table of its members, and a page with plots")
    show.add_argument("folder", nargs="?", help="the sweep's; default: the newest in the store")
    show.add_argument(
        "--objective",
        metavar="METRIC",
        help="what the plots are about; default: the gold score, or the like",
    )
    show.add_argument(
        "--json", action="store_true", help="JSON alone on standard output, and no page"
    )
    ls = verbs.add_parser("ls", help="the sweeps of the store")
    for verb in (show, ls):
        verb.add_argument("--store", metavar="FOLDER", help="default: $ALIGN_STORE, or artifacts")
    options = parser.parse_args(arguments)
    options.store = store_folder(options.store)
    given = Path(options.folder) if options.verb == "show" and options.folder else None
    if given is not None and not given.exists():
        given = Path(options.store) / "sweeps" / given  # only its name was given
    # The folder of a sweep is in the same store as the artifacts of its members.
    store = ArtifactStore(
        options.store if given is None or given.parent.name != "sweeps" else given.parent.parent
    )
    found = sweeps(store)
    if not found and given is None:
        raise StoreError(
            f"{store.root}: no sweeps here yet; give a run several values and -m, or say where with"
            " --store"
        )
    if options.verb == "ls":
        for folder in found:
            records = read_sweep(store, folder)
            done = sum(record.state == "done" for record in records)
            print(f"{folder}  {done} of {len(records)} done  {' '.join(records[0].knobs)}")
        return 0
    _show(store, given or found[-1], options)
    return 0


def _show(store: ArtifactStore, folder: Path, options: argparse.Namespace) -> None:
    records = read_sweep(store, folder)
    if options.json:
        by_number = {run.number: run.metrics for run in runs_of(records)}
        rows = [
            {
                "member": r.number,
                "knobs": r.knobs,
                "state": r.state,
                "error": r.error,
                "made": {name: artifact.ref for name, artifact in r.made.items()},
                "metrics": by_number.get(r.number),
            }
            for r in records
        ]
        print(json.dumps(rows, indent=1))
        return
    compare(folder, records, options.objective)


def compare_ended(folder: Path) -> None:
    """Print the comparison at the end of a sweep; nothing if its folder is outside a store."""
    if folder.parent.name == "sweeps" and (folder / "members").is_dir():
        compare(folder, read_sweep(ArtifactStore(folder.parent.parent), folder), None)


def compare(folder: Path, records: Sequence[Record], wanted: str | None) -> None:
    """Print the members of a sweep, the best first, and means over seeds; write the page.

    Args:
        wanted: the metric to rank by; None: the first known metric that all members have.

    Raises:
        ConfigError: some member lacks the wanted metric.
    """
    runs, console = runs_of(records), wide_console()
    objective = objective_of(runs, wanted) if runs else None
    if wanted and objective != wanted:
        if not runs:
            raise ConfigError(
                f"--objective {wanted}: no member is done yet; leave it out to see how each ended"
            )
        known = ", ".join(sorted({name for run in runs for name in run.metrics}))
        raise ConfigError(f"--objective {wanted}: not every member has it; they have: {known}")
    runs = _ranked(runs, objective)
    _print_members(console, records, runs, objective)
    if (means := settings_table(runs)) is not None:
        console.print("\nMeans over seeds, and half of their 95 % intervals")
        print_table(console, *_narrowed(means, runs, objective, console.width))
    if len(runs) > 1:
        console.print()
        print_sentence(console, _about_ranking(records, runs, objective))
    if runs:
        from align.report.sweep_page import write_page

        console.print(f"page: {write_page(folder, records, objective)}", soft_wrap=True)


def _ranked(runs: Sequence[Run], objective: str | None) -> list[Run]:
    """Sort runs by their setting's mean over seeds, the best first; then by their own figure.

    The order is unchanged without an objective, or if the runs were evaluated on different splits.
    """
    if objective is None or len(splits_of(runs, objective)) > 1:
        return list(runs)
    sign = 1.0 if lower_is_better(objective) else -1.0
    settings = sorted(settings_of(runs), key=lambda setting: sign * setting.mean(objective)[0])
    return [
        run
        for setting in settings
        for run in sorted(setting.runs, key=lambda run: sign * run.metrics[objective])
    ]


def _about_ranking(records: Sequence[Record], runs: Sequence[Run], objective: str | None) -> str:
    """Say what the members are ranked by, and whether the first one's figure can be trusted."""
    if objective is None:
        return "Not ranked: the members have no known metric in common; --objective names one."
    splits = splits_of(runs, objective)
    if len(splits) > 1:
        return (
            f"Not ranked: the members' {objective} is of different splits"
            f" ({', '.join(sorted(splits))})."
        )
    if are_alike(runs, objective):
        return f"Not ranked: {objective} is the same for all."
    better = "lower is better" if lower_is_better(objective) else "higher is better"
    if splits != {"test"}:
        return f"Ranked by {objective}{' on validation prompts' if splits else ''}, {better}."
    step = next(
        (
            name
            for record in records
            for name, a in reversed(record.made.items())
            if a.kind == "evaluation"
        ),
        "",
    )
    in_pipeline = any(knob.startswith("steps.") for record in records for knob in record.knobs)
    knob = f"steps.{step.partition('/')[2]}.split=validation" if in_pipeline else "split=validation"
    return (
        f"Ranked by {objective} on test prompts, {better}. The first one's figure is too good, as"
        f" it was chosen by these prompts; to choose by others: {knob}."
    )


def _print_members(
    console: Console, records: Sequence[Record], runs: Sequence[Run], objective: str | None
) -> None:
    """Print the members that are done by rank, then the others.

    Errors go below the table, because they are long.
    """
    places = {run.number: place for place, run in enumerate(runs)}
    ordered = sorted(records, key=lambda record: places.get(record.number, len(records)))
    bare = [record._replace(error="") for record in ordered]
    print_table(console, *_narrowed(members_table(bare), runs, objective, console.width))
    errors: dict[str, list[str]] = {}
    for record in records:
        if record.error:
            errors.setdefault(record.error.splitlines()[0], []).append(str(record.number))
    for error, numbers in errors.items():
        plural = "s" * (len(numbers) > 1)
        print_sentence(console, f"Member{plural} {', '.join(numbers)} failed: {error}", "red")


def _narrowed(table: Table, runs: Sequence[Run], objective: str | None, width: int) -> Table:
    """Remove columns until the table fits the width.

    The page shows all metrics. The objective is never removed.
    """
    table = without_empty(table)
    spare = [name for name in shown_metrics(runs) if name != objective]
    while ("made" in table.columns or spare) and not _fits(table, width):
        left_out = "made" if "made" in table.columns else spare.pop()
        kept = [i for i, name in enumerate(table.columns) if name != left_out]
        table = Table(
            [table.columns[i] for i in kept], [[row[i] for i in kept] for row in table.rows]
        )
    return table


def _fits(table: Table, width: int) -> bool:
    if width < _WIDE and "made" in table.columns:
        return False
    heads = [lines for lines, style in table_lines(table.columns, table.rows, width) if style]
    return len(heads) == 1
