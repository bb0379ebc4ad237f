"""Compare a finished run with the bands of its account, pipelines/NAME/expected.yaml.

    python benchmarks/account.py quickstart [--store artifacts]        # or: make account NAME=quickstart

Reads the newest artifact of each step that has bands. The exit code is 0 if every figure is in its band, 1 if one is
not, and 2 if a step was not run or does not report the figure.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import NamedTuple

import yaml

from align.store.artifacts import ArtifactStore, store_folder

PIPELINES = Path(__file__).parent.parent / "pipelines"


class Line(NamedTuple):
    """One figure of an account; `value` is None if nothing reports it."""

    step: str
    metric: str
    value: float | None
    low: float
    high: float

    @property
    def is_inside(self) -> bool:
        return self.value is not None and self.low <= self.value <= self.high


def compare(store: ArtifactStore, pipeline: str, bands: dict[str, dict[str, list[float]]]) -> list[Line]:
    """Return a line for each band of an account."""
    lines = []
    for step, expected in bands.items():
        name = f"{pipeline}/{step}"
        metrics = store.find(name).metrics if store.versions(name) else {}
        lines += [Line(step, metric, metrics.get(metric), *band) for metric, band in expected.items()]
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pipeline", choices=sorted(folder.parent.name for folder in PIPELINES.glob("*/expected.yaml")))
    parser.add_argument("--store", help="else $ALIGN_STORE, else artifacts")
    options = parser.parse_args()
    bands = yaml.safe_load((PIPELINES / options.pipeline / "expected.yaml").read_text())
    lines = compare(ArtifactStore(store_folder(options.store)), options.pipeline, bands)
    for line in lines:
        value = "missing" if line.value is None else f"{line.value:.4g}"
        verdict = "" if line.is_inside else "  <- outside" if line.value is not None else "  <- run this step first"
        print(f"{line.step:<16} {line.metric:<32} {value:>9}  [{line.low:g}, {line.high:g}]{verdict}")
    if any(line.value is None for line in lines):
        return 2
    return 0 if all(line.is_inside for line in lines) else 1


if __name__ == "__main__":
    sys.exit(main())
