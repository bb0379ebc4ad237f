"""The context of a running stage: its folder, log, processes and checkpoints.

A stage runs in one process or in several (`hardware.num_processes`). Each process has its own
`Job`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from align.configs import RunConfig
from align.runtime.distributed import ALONE, ProcessGroup, Rank, choose_device
from align.runtime.log import RunLog
from align.runtime.progress import Progress
from align.runtime.resume import Resume
from align.runtime.signals import Stop
from align.runtime.tracking import Tracker
from align.store.artifacts import STEPS, Artifact, write_json

if TYPE_CHECKING:
    import torch

    from align.models.compute import Compute

# Tokens of one pass: few enough for little memory, and enough to be fast.
_MAX_TOKENS = {"cpu": 1024, "cuda": 4096}


class Inputs(dict[str, tuple[Artifact, ...]]):
    """The artifacts of a stage's inputs by input name. An optional input may be missing."""

    def one(self, name: str) -> Artifact:
        (artifact,) = self[name]
        return artifact

    def folders(self, name: str) -> list[Path]:
        return [artifact.path for artifact in self[name]]


class Job:
    """One process of a running stage.

    Attributes:
        out: the folder of the artifact's files. Everything written here becomes part of the
            artifact.
        work: the folder of notes and checkpoints. It is removed when the artifact is committed.
        hardware, data_root, store: the run's settings that a stage may read.
        group: the processes of the step.
        log: lines, metrics, events and tables.
        resume: checkpoints and stopping.
    """

    def __init__(
        self,
        label: str,
        work: Path,
        settings: RunConfig,
        tracker: Tracker | None = None,
        stop: Stop | None = None,
        rank: Rank = ALONE,
    ):
        self.label, self.work, self.out = label, work, work / "out"
        self.hardware, self.data_root, self.store = (
            settings.hardware,
            settings.data_root,
            Path(settings.store),
        )
        self.group = ProcessGroup(choose_device(settings.hardware.device), *rank)
        self._progress = Progress(label, silent=rank.number != 0)
        self.log = RunLog(self.out, self._progress, tracker, self.group.is_main)
        seconds = settings.hardware.checkpoint_seconds
        self.resume = Resume(work, self.out, self.group, stop or Stop(), seconds, self.log.info)

    @property
    def device(self) -> torch.device:
        return self.group.device

    @property
    def max_tokens(self) -> int:
        """The tokens of one forward and backward pass."""
        return self.hardware.micro_batch_tokens or _MAX_TOKENS[self.device.type]

    def compute(self, precision: str) -> Compute:
        """Return the device, the tokens per pass and the precision of this step's passes."""
        from align.models.compute import Compute

        return Compute(self.device, self.max_tokens, precision)

    def steps(self, total: int, start: int = 0, unit: str = "steps") -> Iterator[int]:
        """Yield the numbers of `range(start, total)`, and show progress, rate and time left.

        Args:
            total: the number of steps.
            start: the first step to run.
            unit: the word for steps in the output.
        """
        self.log.last_step = total
        if self.group.is_main:
            write_json(self.work / STEPS, {"total": total, "unit": unit})
        with self._progress.over(total, start, unit) as advance:
            for step in range(start, total):
                self.resume.begin_step()
                yield step
                self.resume.end_step()
                advance(1)

    @contextlib.contextmanager
    def progress(self, total: int | None, unit: str) -> Iterator[Callable[[int], None]]:
        """Yield a function to call with the number of units just done, to show progress.

        Use it for work in pieces of different sizes.

        Args:
            total: the number of units; None if unknown, then no time left is shown.
            unit: the word for units in the output.

        Raises:
            Preempted: raised by the function if a signal asked to stop. This work restarts from
                zero on resume.
        """
        with self._progress.over(total, 0, unit) as advance:

            def advance_or_stop(count: int) -> None:
                advance(count)
                self.resume.stop_now_if_asked()

            yield advance_or_stop
