"""One of our stages, a turn at a time: the side of a race that `_race.our_side` starts.

The stage itself runs, as `align STAGE` runs it: the lines in between only wait for a turn. A turn is what the stage's
`job.steps` counts. Its answer has the metrics that the stage logged for it, `seconds`, `cpu_seconds`, and
`before_seconds` and `before_cpu_seconds`, of the work before the first turn that the stage showed progress for.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from _child import Clock, answer, rss

from align.configs import HardwareConfig, RunConfig, stage_class
from align.pipeline.worker import run_stage
from align.runtime.job import Inputs, Job
from align.runtime.precision import bf16_is_fast
from align.store.artifacts import Artifact


class Turns(Job):
    """A job that waits for a line before each step, and says afterwards what it took."""

    import_rss_bytes = 0

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self._before = {"before_seconds": 0.0, "before_cpu_seconds": 0.0}

    def steps(self, total: int, start: int = 0, unit: str = "steps") -> Iterator[int]:
        answer({"ready": True})
        for step in range(start, total):
            if not sys.stdin.readline():
                return
            clock = Clock()
            yield step
            own = {
                **clock.read(),
                **self._before,
                "peak_rss_bytes": rss("VmHWM"),
                "import_rss_bytes": self.import_rss_bytes,
            }
            answer(self.log.read_metrics()[-1] | own)

    @contextlib.contextmanager
    def progress(self, total: int | None, unit: str) -> Iterator[Callable[[int], None]]:
        clock = Clock()
        with super().progress(total, unit) as advance:
            yield advance
        for name, taken in clock.read().items():
            self._before[f"before_{name}"] += taken


def main() -> None:
    settings = json.loads(Path(sys.argv[1]).read_text())
    config = stage_class(settings["stage"])(**settings["knobs"])
    config.fill_in(bf16_is_fast("auto"))
    importlib.import_module(config.MODULE or f"align.stages.{config.STAGE}")
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "out").mkdir()
        # No checkpoints: the peer writes none.
        job = Turns(config.STAGE, Path(folder), RunConfig(hardware=HardwareConfig(checkpoint_seconds=1e9)))
        job.import_rss_bytes = rss("VmRSS")
        inputs = Inputs(
            {
                name: (Artifact("bench", "0" * 64, kind, Path(place)),)
                for name, (kind, place) in settings["inputs"].items()
            }
        )
        run_stage(config, inputs, job)


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    main()
