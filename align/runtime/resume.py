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

_GRACE_SECONDS = 30.0  # after SIGTERM, for the running step to end; SLURM's default KillWait
# The time between checkpoints is at least 20 times the duration of the last one. So saving takes at
# most a twentieth of the time.
_SAVES_APART = 20


class _GrowingFile:
    """The size and sha256 of a file that grows. Each call reads only what is new."""

    def __init__(self, file: Path):
        self._file, self._size, self._digest = file, 0, hashlib.sha256()

    def until_now(self) -> tuple[int, str]:
        with self._file.open("rb") as file:
            os.fsync(file.fileno())  # a power cut must not lose lines that a checkpoint refers to
            file.seek(self._size)
            while piece := file.read(1 << 20):
                self._digest.update(piece)
                self._size += len(piece)
        return self._size, self._digest.hexdigest()


class Resume:
    """The checkpoints of one step.

    Args:
        work: the step's work folder. Checkpoints are in `work/checkpoints`.
        out: the folder of the artifact's files, with the logs.
        group: the processes of the step.
        stop: the flag that a stop signal sets.
        seconds: the least time between checkpoints, in seconds; 0: one after every step. The time
            is also at least 20 times the duration of a checkpoint.
        info: a function that prints a line for the user.
    """

    def __init__(
        self,
        work: Path,
        out: Path,
        group: ProcessGroup,
        stop: Stop,
        seconds: float,
        info: Callable[[str], None],
    ):
        self._work, self._out, self._group, self._stop, self._info = work, out, group, stop, info
        self._seconds = seconds
        self._saved = time.monotonic()
        self._save_seconds = 0.0  # duration of the last checkpoint
        # The start of the current step, and the duration of the step before it.
        self._step_begun, self._step_seconds = self._saved, 0.0
        self._logs: dict[str, _GrowingFile] = {}

    # -- saving and stopping -----------------------------------------------------------------------

    def save_if_due(self, step: int, state: Callable[[], Any]) -> None:
        """Save what `state()` returns if a checkpoint is due.

        Call this wherever the step can be resumed.

        Raises:
            Preempted: a signal asked to stop. The state is saved.
        """
        if self.is_due():
            self._save(step, state)
            if self._group.any(self._stop.signal is not None):
                raise self._stop.error()

    def is_due(self) -> bool:
        """Return whether to save or to stop now. The result is the same in all processes."""
        due = time.monotonic() - self._saved >= self._interval()
        return self._group.any(due or self._stop.signal is not None)

    def stop_if_asked(self) -> None:
        """Stop in the middle of a long step if a signal asked to.

        Call this between the parts of a long step. The step continues if it is expected to end
        within `_GRACE_SECONDS` of the signal. The duration of the step before is the estimate. If
        it stops, the work since the last checkpoint is lost.

        Raises:
            Preempted: a signal asked to stop.
        """
        asked = self._stop.asked_at
        must = asked is not None and self._step_ends() > asked + _GRACE_SECONDS
        if self._group.any(must):
            self._group.barrier()
            raise self._stop.error()

    def stop_now_if_asked(self) -> None:
        """Stop work that is not saved, if a signal asked to.

        With several processes the work continues, because the others would wait for this one.

        Raises:
            Preempted: a signal asked to stop. This work restarts from zero on resume.
        """
        if self._stop.signal is not None and self._group.world_size == 1:
            raise self._stop.error()

    def begin_step(self) -> None:
        self._step_begun = time.monotonic()

    def end_step(self) -> None:
        self._step_seconds = time.monotonic() - self._step_begun

    def _step_ends(self) -> float:
        """Return the time at which the step is expected to end; now if no step has ended yet."""
        return max(time.monotonic(), self._step_begun + self._step_seconds)

    def _interval(self) -> float:
        """Return the seconds between checkpoints: as configured, or more if saving takes long."""
        return 0.0 if self._seconds == 0 else max(self._seconds, _SAVES_APART * self._save_seconds)

    def _save(self, step: int, state: Callable[[], Any]) -> None:
        """Save the state, the random state of every process, and sizes and digests of all logs."""
        begun = time.monotonic()
        random_states = self._group.gather([_random_state(self._group.device)])
        if self._group.is_main:
            from align.store.checkpoints import save_checkpoint

            whole = {
                "state": state(),
                "random": random_states,
                "world_size": self._group.world_size,
            }
            logs = {
                f"{self._out.name}/{name}": log.until_now()
                for name, log in self._growing_logs().items()
            }
            whole["logged"] = {name: size for name, (size, _) in logs.items()}
            save_checkpoint(self._work / "checkpoints", step, whole, logs)
        self._group.barrier()
        self._saved = time.monotonic()
        self._save_seconds = self._saved - begun

    def _growing_logs(self) -> dict[str, _GrowingFile]:
        """Return the logs that grow (metrics, events, samples), by name."""
        for file in sorted(self._out.glob("*.jsonl")):
            self._logs.setdefault(file.name, _GrowingFile(file))
        return self._logs

    # -- continuing --------------------------------------------------------------------------------

    def last(self) -> tuple[int, Any] | None:
        """Return the last saved (step, state); None if nothing was saved.

        The logs are cut back to that step, and the random state is restored. A damaged checkpoint
        is set aside and reported, and the one before it is used.

        Raises:
            ConfigError: the step was started with another number of processes.
        """
        from align.store.checkpoints import load_checkpoint, set_damaged_aside

        folder = self._work / "checkpoints"
        damaged = set_damaged_aside(folder) if self._group.is_main else []
        self._group.barrier()  # the other processes read only after damaged ones are renamed
        for line in damaged:
            self._info(line)
        found = load_checkpoint(folder)
        if found is None:
            if damaged:
                self._info("there is no older checkpoint: starting again")
            self._cut_logs({})  # an earlier process may have logged, but saved nothing
            return None
        step, whole = found
        self.require_world_size(whole["world_size"])
        self._cut_logs(whole["logged"])
        random_state, device = whole["random"][self._group.rank], self._group.device
        _set_random_state(random_state, device)
        self._info(f"going on from {step}")
        if ("cuda" in random_state) != (device.type == "cuda"):
            self._info(
                "it was started on another kind of device, so random numbers on this device start"
                " again"
            )
        return step, whole["state"]

    def require_world_size(self, begun_with: int) -> None:
        """Raise `ConfigError` if the step was started with another number of processes."""
        if begun_with != self._group.world_size:
            raise ConfigError(
                f"hardware.num_processes: this step was started with {begun_with}, got"
                f" {self._group.world_size}; use {begun_with}, or remove {self._work} to start it"
                " again"
            )

    def _cut_logs(self, sizes: dict[str, int]) -> None:
        """Remove what was logged after a checkpoint.

        Args:
            sizes: the size in bytes of each log at the checkpoint. Logs that are missing here are
                removed.
        """
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
