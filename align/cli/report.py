"""`align report`: one page that says whether it worked,
from manifests and logs alone. Needs no torch.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from align.errors import ConfigError, StoreError
from align.runtime.console import Parser
from align.store.artifacts import ArtifactStore, existing_store

# The pause between two pages, as a multiple of the CPU seconds of writing one: training needs the
# cores.
_APART = 20


def main(arguments: list[str]) -> int:
    parser = Parser(prog="align report", description=__doc__)
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
    parser.add_argument(
        "--out",
        metavar="FILE.html",
        help="default: STORE/reports/REF.html; a .md file comes beside it",
    )
    parser.add_argument(
        "--follow",
        action="store_true",
        help=(
            "write the page again every few seconds, while steps run; it reloads itself; end with"
            " Ctrl-C"
        ),
    )
    options = parser.parse_args(arguments)
    store = existing_store(options.store)
    if options.out and not options.out.endswith(".html"):
        raise ConfigError(f"--out: expected a file whose name ends in .html, got {options.out}")
    from align.report.page import file_name, write_report

    title = ", ".join(options.refs)
    out = (
        Path(options.out)
        if options.out
        else store.root / "reports" / file_name("+".join(options.refs))
    )
    if options.follow:
        _follow(store, options.refs, out, title)
    else:
        write_report(store, options.refs, out, title)
        print(out)
    return 0


def _follow(store: ArtifactStore, refs: Sequence[str], out: Path, title: str) -> None:
    """Write the page repeatedly until Ctrl-C, then once more without reloading."""
    from align.report.page import RELOAD_SECONDS, write_report

    try:
        begun = time.process_time()
        write_report(store, refs, out, title, follows=True)
        print(out, flush=True)
        print(
            "open it in a browser: it reloads itself; Ctrl-C ends this", file=sys.stderr, flush=True
        )
        while True:
            time.sleep(max(RELOAD_SECONDS, _APART * (time.process_time() - begun)))
            begun = time.process_time()
            try:
                write_report(store, refs, out, title, follows=True)
            except StoreError as error:
                # A stopped step began again, or an artifact was removed meanwhile.
                print(f"{error}; the page stays as it is", file=sys.stderr, flush=True)
    except KeyboardInterrupt:
        write_report(store, refs, out, title)
        print(
            f"\n{out}: written for the last time; it does not reload itself any more",
            file=sys.stderr,
        )
