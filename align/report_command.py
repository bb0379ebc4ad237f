"""`align report`: one page that says whether it worked, from manifests and logs alone. Needs no torch."""

from __future__ import annotations

from pathlib import Path

from align.artifacts import existing_store
from align.console import Parser
from align.errors import ConfigError


def main(arguments: list[str]) -> int:
    parser = Parser(prog="align report", description=__doc__)
    parser.add_argument(
        "refs", nargs="+", metavar="REF", help="PIPELINE (the latest of its steps), PIPELINE/STEP[:vN] or STAGE@KEY"
    )
    parser.add_argument("--store", metavar="FOLDER", help="default: $ALIGN_STORE, or artifacts")
    parser.add_argument(
        "--out", metavar="FILE.html", help="default: STORE/reports/REF.html; a .md file comes beside it"
    )
    options = parser.parse_args(arguments)
    store = existing_store(options.store)
    if options.out and not options.out.endswith(".html"):
        raise ConfigError(f"--out: expected a file whose name ends in .html, got {options.out}")
    from align.report.page import file_name, write_report

    out = Path(options.out) if options.out else store.root / "reports" / file_name("+".join(options.refs))
    write_report(store, options.refs, out, title=", ".join(options.refs))
    print(out)
    return 0
