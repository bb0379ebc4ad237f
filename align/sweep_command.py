"""`align sweep`: what the members of a sweep did, as a table and as a page. Needs no torch."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from rich.table import Table as RichTable

from align.artifacts import ArtifactStore, store_folder
from align.console import Parser, wide_console
from align.errors import ConfigError, StoreError
from align.report.sweep import members_table, objective_of, runs_of, settings_table
from align.report.tables import Table
from align.sweeps import read_sweep, sweeps


def main(arguments: list[str]) -> int:
    parser = Parser(prog="align sweep", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    show = verbs.add_parser("show", help="a table of its members, and a page with plots")
    show.add_argument("folder", nargs="?", help="the sweep's; default: the newest in the store")
    show.add_argument(
        "--objective", metavar="METRIC", help="what the plots are about; default: the gold score, or the like"
    )
    show.add_argument("--json", action="store_true", help="JSON alone on standard output, and no page")
    ls = verbs.add_parser("ls", help="the sweeps of the store")
    for verb in (show, ls):
        verb.add_argument("--store", metavar="FOLDER", help="default: $ALIGN_STORE, or artifacts")
    options = parser.parse_args(arguments)
    options.store = store_folder(options.store)
    given = Path(options.folder) if options.verb == "show" and options.folder else None
    if given is not None and not given.exists():
        given = Path(options.store) / "sweeps" / given  # by its name alone
    # A sweep lies in the store that holds what its members made.
    store = ArtifactStore(options.store if given is None or given.parent.name != "sweeps" else given.parent.parent)
    found = sweeps(store)
    if not found and given is None:
        raise StoreError(
            f"{store.root}: no sweeps here yet; give a run several values and -m, or say where with --store"
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
    runs = runs_of(records)
    if options.json:
        by_number = {run.number: run.metrics for run in runs}
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
    objective = objective_of(runs, options.objective) if runs else None
    if options.objective and objective != options.objective:
        known = ", ".join(sorted({name for run in runs for name in run.metrics}))
        raise ConfigError(f"--objective {options.objective}: not every member has it; they have: {known}")
    _print(members_table(records))
    means = settings_table(runs) if runs else None
    if means is not None:
        print("\nmeans over seeds, and half of their 95 % intervals")
        _print(means)
    if runs:
        from align.report.sweep_page import write_page

        print(f"\npage: {write_page(folder, records, objective)}")


def _print(table: Table) -> None:
    shown = RichTable(box=None, pad_edge=False)
    for column in table.columns:
        shown.add_column(column, overflow="fold")
    for row in table.rows:
        shown.add_row(*(cell.replace("[", r"\[") for cell in row))
    wide_console().print(shown)
