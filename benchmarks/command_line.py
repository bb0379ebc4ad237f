"""How long the command line takes before any work begins, beside Python's own start and Hydra's.

`list_store` is `align artifacts ls` of a store with 10,000 artifacts as runs leave it, `list_copied_store` the first
look at a copy of it, in which each manifest is read and checked. To make the store takes some minutes.

python benchmarks/command_line.py [--json FILE]
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from _report import arguments, medians, report

from align.report.listing import remember
from align.store.artifacts import ArtifactStore

_HYDRA_APP = "import hydra; hydra.main(version_base=None)(lambda cfg: None)()"
_STEPS, _VERSIONS = 20, 500


def _fill(store: Path) -> None:
    """Publish 10,000 artifacts as runs do: each step's in a store of its own, all of which are put together then.

    A commit looks at each version of its store, so in one store the last thousands would take long.
    """
    for step in range(_STEPS):
        part = ArtifactStore(store / "parts" / str(step))
        for number in range(_VERSIONS):
            key = f"{step * _VERSIONS + number:064x}"
            with part.claim("sft", key) as work:
                (work / "out").mkdir()
                (work / "out" / "metrics.jsonl").write_text(f'{{"step": {number}}}\n')
                knobs, figures = {f"knob_{i}": i for i in range(40)}, {f"figure/{i}": i / 7 for i in range(30)}
                manifest = {"kind": "policy", "inputs": {}, "config": knobs, "metrics": figures}
                artifact = part.commit("sft", key, work / "out", manifest)
            name = f"many/sft_{step}"
            remember(part, name, part.publish(name, artifact))
        for kind in ("objects/sft", "names/many"):
            for folder in (part.root / kind).iterdir():
                (store / kind).mkdir(parents=True, exist_ok=True)
                folder.rename(store / kind / folder.name)
        (store / "cache").mkdir(exist_ok=True)
        with (store / "cache/listing.jsonl").open("ab") as listing:
            listing.write((part.root / "cache/listing.jsonl").read_bytes())
    shutil.rmtree(store / "parts")


def main() -> None:
    options = arguments(__doc__)

    def run(*words: str) -> None:
        subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def list_copied() -> None:
        shutil.rmtree("copied/cache", ignore_errors=True)
        run("-m", "align", "artifacts", "ls", "--store", "copied")

    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        _fill(Path("store"))
        shutil.copytree("store", "copied", ignore=shutil.ignore_patterns("cache"))
        names = (
            *("python", "hydra_help", "align_help", "plan_instructgpt", "plan_quickstart"),
            *("list_store", "list_copied_store"),
        )
        seconds = medians(
            [
                lambda: run("-c", "pass"),
                lambda: run("-c", _HYDRA_APP, "--help"),
                lambda: run("-m", "align", "--help"),
                lambda: run("-m", "align", "plan", "pipeline=instructgpt"),
                lambda: run("-m", "align", "plan", "pipeline=quickstart"),
                lambda: run("-m", "align", "artifacts", "ls", "--store", "store"),
                list_copied,
            ],
            rounds=9,
        )
    report({f"seconds/{name}": value for name, value in zip(names, seconds, strict=True)}, options.json)


if __name__ == "__main__":
    main()
