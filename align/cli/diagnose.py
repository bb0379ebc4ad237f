"""`align diagnose`: which stage of a run is bad, from manifests and logs alone. Needs no torch."""

from __future__ import annotations

import json

from align.errors import HealthStop
from align.report.diagnosis import advice, as_table, of_refs
from align.report.running import strangers
from align.runtime.console import Parser, plain_console, print_sentence, print_table
from align.store.artifacts import existing_store


def main(arguments: list[str]) -> int:
    """Print a line for each step that a rule judges, then what to do first.

    Raises:
        HealthStop: with --check, a step is bad.
    """
    parser = Parser(prog="align diagnose", description=__doc__)
    parser.add_argument(
        "refs",
        nargs="+",
        metavar="REF",
        help=(
            "PIPELINE (the latest of its steps, and those that are not finished),"
            " PIPELINE/STEP[:vN] or STAGE@KEY"
        ),
    )
    parser.add_argument("--store", metavar="FOLDER", help="default: $ALIGN_STORE, or artifacts")
    parser.add_argument("--json", action="store_true", help="JSON alone on standard output")
    parser.add_argument(
        "--check", action="store_true", help="end with exit code 4 if a step is bad"
    )
    options = parser.parse_args(arguments)
    store = existing_store(options.store)
    left_out = strangers(store)
    found, others = of_refs(store, options.refs, left_out)
    bad = [each.step for each in found if each.verdict == "bad"]
    if options.json:
        print(json.dumps([each.described() for each in found], indent=1))
    else:
        console = plain_console()
        table = as_table(found)
        if table.rows:
            print_table(console, table.columns, table.rows)
            console.print()
        for line in advice(found):
            print_sentence(console, line)
        if not bad:
            print_sentence(console, "No step is bad." if found else "No rule judges these steps.")
        if others:
            print_sentence(console, f"Not judged: {', '.join(others)}.", style="dim")
        for line in left_out:
            print_sentence(console, f"Left out: {line}.")
    if options.check and bad:
        raise HealthStop(f"{', '.join(options.refs)}: bad: {', '.join(bad)}")
    return 0
