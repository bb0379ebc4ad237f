"""Save a running step at its boundaries, stop it when a signal asks, and continue it exactly."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.errors import ConfigError
from align.runtime.distributed import ProcessGroup
from align.runtime.signals import Stop

if TYPE_CHECKING:
    import torch

_GRACE_SECONDS = 30.0  # from SIGTERM on, in which a step may still end; SLURM's usual KillWait
_SAVES_APART = 20  # times what the last checkpoint took: saving then costs at most a twentieth of the time


class _GrowingFile:
    """The size and sha256 of a file that grows; reads only what is new, and puts that much on disk."""

    def __init__(self, file: Path):
        self._file, self._size, self._digest = file, 0, hashlib.sha256()

    def until_now(self) -> tuple[int, str]:
        with self._file.open("rb") as file:
            os.fsync(file.fileno())  # a power cut must not take what a checkpoint vouches for
            file.seek(self._size)
            while piece := file.read(1 << 20):
                self._digest.update(piece)
                self._size += len(piece)
        return self._size, self._digest.hexdigest()


class Resume:
    """The checkpoints of one step.

    Args:
        work: the step's folder; checkpoints are in `work/checkpoints`, logs in `out`.
        seconds: at least so long between checkpoints, and 20 times what one takes; 0: one after every step.
        info: prints a line for the user.
    """

    def __init__(
        self, work: Path, out: Path, group: ProcessGroup, stop: Stop, seconds: float, info: Callable[[str], None]
    ):
        self._work, self._out, self._group, self._stop, self._info = work, out, group, stop, info
        self._seconds = seconds
        self._saved = time.monotonic()
        self._save_seconds = 0.0  # that the last checkpoint took
        self._step_begun, self._step_seconds = self._saved, 0.0  # of the step before
        self._logs: dict[str, _GrowingFile] = {}

    # -- saving and stopping -----------------------------------------------------------------------------------------

    def save_if_due(self, step: int, state: Callable[[], Any]) -> None:
        """Save what `state()` returns if it is time. Call it at every boundary at which the step could continue.

        Raises:
            Preempted: the process was asked to stop; the state is saved.
        """
        if self.is_due():
            self._save(step, state)
            if self._group.any(self._stop.signal is not None):
                raise self._stop.error()

    def is_due(self) -> bool:
        """Return whether it is time to save, or to stop; the same in all processes of the step."""
        due = time.monotonic() - self._saved >= self._interval()
        return self._group.any(due or self._stop.signal is not None)

    def stop_if_asked(self) -> None:
        """Stop in the middle of a long step if a signal asked to. Call it between the parts of such a step.

        The step is finished instead if that takes at most `_GRACE_SECONDS` from the signal on, measured by the step
        before. If it is not finished, the last checkpoint counts.

        Raises:
            Preempted: the process was asked to stop.
        """
        asked = self._stop.asked_at
        must = asked is not None and self._step_ends() > asked + _GRACE_SECONDS
        if self._group.any(must):
            self._group.barrier()
            raise self._stop.error()

    def stop_now_if_asked(self) -> None:
        """Stop work that is not saved. With several processes it goes on, for the others would wait for this one.

        Raises:
            Preempted: the process was asked to stop; this work starts from zero on resume.
        """
        if self._stop.signal is not None and self._group.world_size == 1:
            raise self._stop.error()

    def begin_step(self) -> None:
        self._step_begun = time.monotonic()

    def end_step(self) -> None:
        self._step_seconds = time.monotonic() - self._step_begun

    def _step_ends(self) -> float:
        """Return when the step is expected to end; now, if no step has ended yet to go by."""
        return max(time.monotonic(), self._step_begun + self._step_seconds)

    def _interval(self) -> float:
        """Return the seconds between checkpoints: as asked, or more if saving takes long."""
        return 0.0 if self._seconds == 0 else max(self._seconds, _SAVES_APART * self._save_seconds)

    def _save(self, step: int, state: Callable[[], Any]) -> None:
        """Save the state, the random state of every process and the lengths of all logs."""
        begun = time.monotonic()
        random_states = self._group.gather([_random_state(self._group.device)])
        if self._group.is_main:
            from align.store.checkpoints import save_checkpoint

            whole = {"state": state(), "random": random_states, "world_size": self._group.world_size}
            logs = {f"{self._out.name}/{name}": log.until_now() for name, log in self._growing_logs().items()}
            whole["logged"] = {name: size for name, (size, _) in logs.items()}
            save_checkpoint(self._work / "checkpoints", step, whole, logs)
        self._group.barrier()
        self._saved = time.monotonic()
        self._save_seconds = self._saved - begun

    def _growing_logs(self) -> dict[str, _GrowingFile]:
        """Return the files that grow with every step, by name: metrics, events, samples."""
        for file in sorted(self._out.glob("*.jsonl")):
            self._logs.setdefault(file.name, _GrowingFile(file))
        return self._logs

    # -- continuing --------------------------------------------------------------------------------------------------

    def last(self) -> tuple[int, Any] | None:
        """Return the last (step, state) saved, with the logs cut back to it and the random state restored.

        None if nothing was saved. A damaged checkpoint is set aside and the one before is taken; both are reported.
        """
        from align.store.checkpoints import load_checkpoint, set_damaged_aside

        folder = self._work / "checkpoints"
        damaged = set_damaged_aside(folder) if self._group.is_main else []
        self._group.barrier()  # the others look when it is done
        for line in damaged:
            self._info(line)
        found = load_checkpoint(folder)
        if found is None:
            if damaged:
                self._info("there is no older checkpoint: beginning again")
            self._cut_logs({})  # of a process that was gone before it saved
            return None
        step, whole = found
        self.require_world_size(whole["world_size"])
        self._cut_logs(whole["logged"])
        random_state, device = whole["random"][self._group.rank], self._group.device
        _set_random_state(random_state, device)
        self._info(f"going on from {step}")
        if ("cuda" in random_state) != (device.type == "cuda"):
            self._info("it was begun on another kind of device, so what is random on this one begins anew")
        return step, whole["state"]

    def require_world_size(self, begun_with: int) -> None:
        """Raise `ConfigError` if the step was begun with another number of processes."""
        if begun_with != self._group.world_size:
            raise ConfigError(
                f"hardware.num_processes: this step was begun with {begun_with}, got {self._group.world_size}; "
                f"use {begun_with}, or remove {self._work} to begin it again"
            )

    def _cut_logs(self, sizes: dict[str, int]) -> None:
        """Remove what was logged after a checkpoint, which holds the size of each log."""
        if not self._group.is_main:
            return
        for file in self._out.glob("*.jsonl"):
            size = sizes.get(f"{self._out.name}/{file.name}")
            if size is None:
                file.unlink()
            else:
                os.truncate(file, size)


def _random_state(device: torch.device) -> dict[str, Any]:
    import torch

    state = {"cpu": torch.get_rng_state()}
    return state | ({"cuda": torch.cuda.get_rng_state()} if device.type == "cuda" else {})


def _set_random_state(state: dict[str, Any], device: torch.device) -> None:
    import torch

    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"])
