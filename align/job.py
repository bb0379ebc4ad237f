"""What a running stage may touch besides its config and inputs: its folder, device, log, checkpoints and siblings.

A stage runs in one process or in several (`hardware.num_processes`), each with a `Job` of its own. Rank 0 alone writes.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from align.artifacts import Artifact
from align.configs import RunConfig
from align.errors import ConfigError
from align.progress import Progress
from align.stop import Stop
from align.tracking import NoTracker, Tracker

if TYPE_CHECKING:
    import torch

    from align.checkpoints import Frozen

T = TypeVar("T")
Metrics = dict[str, float]


class Inputs(dict[str, tuple[Artifact, ...]]):
    """The artifacts a stage was given, by the name of the input; an optional one that was not given is not there."""

    def one(self, name: str) -> Artifact:
        (artifact,) = self[name]
        return artifact

    def folders(self, name: str) -> list[Path]:
        return [artifact.path for artifact in self[name]]


class Job:
    """One process of a running stage.

    Attributes:
        out: the payload of the artifact to be; what is written here is what consumers get.
        work: notes and checkpoints, gone when the artifact is committed.
        device: where tensors go.
        hardware, data_root, store: the run's settings that a stage may read.
        rank, world_size: this process among those of the step.
    """

    def __init__(
        self,
        label: str,
        work: Path,
        settings: RunConfig,
        tracker: Tracker | None = None,
        stop: Stop | None = None,
        rank: int = 0,
        world_size: int = 1,
    ):
        self.label, self.work, self.out = label, work, work / "out"
        self.hardware, self.data_root, self.store = settings.hardware, settings.data_root, Path(settings.store)
        self.rank, self.world_size = rank, world_size
        self.device = _device(settings.hardware.device)
        self._tracker: Tracker = tracker or NoTracker()
        self._stop = stop or Stop()
        self._progress = Progress(label, silent=rank != 0)
        self._saved = time.monotonic()
        self._kept: tuple[int, Frozen | None] | None = None  # the last boundary, where it is not written

    # -- telling -------------------------------------------------------------------------------------------------

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def metrics_file(self) -> Path:
        return self.out / "metrics.jsonl"

    def info(self, message: str) -> None:
        """Say something to whoever watches."""
        self._progress.say(message)

    def log(self, metrics: Metrics, step: int) -> None:
        """Add a line to metrics.jsonl and to the tracker; `step` is the stage's own axis."""
        if not self.is_main:
            return
        self._tracker.log(metrics, step)  # first: what it finds in the file is of an earlier process
        with self.metrics_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **metrics}) + "\n")
        self._progress.show(metrics)

    def logged(self) -> list[Metrics]:
        """What `log` has written so far, of this step and, after a resume, of its earlier runs."""
        if not self.metrics_file.exists():
            return []
        return [json.loads(line) for line in self.metrics_file.read_text(encoding="utf-8").splitlines()]

    def cut_events(self, step: int) -> None:
        """Forget the events after `step`, from where the work goes on."""
        file = self.out / "events.jsonl"
        if self.is_main and file.exists():
            lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
            file.write_text("".join(line for line in lines if json.loads(line)["step"] <= step), encoding="utf-8")

    def event(self, step: int, name: str, message: str) -> None:
        """Tell of something that somebody should look at: on the console, in events.jsonl and to the tracker."""
        if not self.is_main:
            return
        self.info(f"{name}: {message}")
        self._tracker.alert(name, message)
        with (self.out / "events.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, "name": name, "message": message}) + "\n")

    def table(self, name: str, rows: Sequence[dict[str, Any]]) -> None:
        """Keep rows with equal keys as <name>.jsonl, and send them to the tracker as a table."""
        if not self.is_main or not rows:
            return
        with (self.out / f"{name}.jsonl").open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        self._tracker.table(name, list(rows[0]), [list(row.values()) for row in rows])

    def steps(self, total: int, start: int = 0, unit: str = "steps") -> Iterator[int]:
        """`range(start, total)` with progress, rate and time left."""
        with self._progress.over(total, start, unit) as advance:
            for step in range(start, total):
                yield step
                advance(1)

    @contextlib.contextmanager
    def progress(self, total: int | None, unit: str) -> Iterator[Callable[[int], None]]:
        """As `steps`, for work that comes in uneven pieces: call what it gives with the number done. No total, no time
        left.

        Raises:
            Preempted: from that call; such work begins again when it is gone on with.
        """
        with self._progress.over(total, 0, unit) as advance:

            def advance_or_stop(count: int) -> None:
                advance(count)
                if self._stop.signal is not None and self.world_size == 1:  # the others would wait for this one
                    raise self._stop.error()

            yield advance_or_stop

    # -- stopping and going on -----------------------------------------------------------------------------------

    def checkpoint(self, step: int, state: Callable[[], Any]) -> None:
        """Save what `state()` gives, if it is time; call it at every boundary where the step could go on from.

        Raises:
            Preempted: the process was asked to stop; the state is saved.
        """
        if self.wants_checkpoint():
            self.save(step, state())
            self.saved()

    def boundary(self, step: int, state: Callable[[], Any]) -> None:
        """As `checkpoint`, where a step is too long to be ended first: what is not written is kept in memory.

        `stop_if_asked`, called in the middle of the next step, writes what was kept and stops there.
        """
        if self.wants_checkpoint():
            self._kept = None
            self.save(step, state())
            self.saved()
        else:
            self._kept = None  # two copies at once would be one too many
            self._kept = (step, self._frozen(state()))

    def stop_if_asked(self) -> None:
        """In the middle of a step: the state of the last boundary is saved, and what was done since is done again.

        Raises:
            Preempted: the process was asked to stop.
        """
        if not self._any(self._stop.signal is not None):
            return
        if self._kept is not None:
            self._write(*self._kept)
        self.barrier()
        raise self._stop.error()

    def wants_checkpoint(self) -> bool:
        """True when it is time to save, or the process is to stop; the same in all processes of the step."""
        due = time.monotonic() - self._saved >= self.hardware.checkpoint_seconds
        return self._any(due or self._stop.signal is not None)

    def saved(self) -> None:
        """Call it when a checkpoint is whole: this is where a process that is to stop does.

        Raises:
            Preempted: the process was asked to stop.
        """
        self.barrier()
        self._saved = time.monotonic()
        if self._any(self._stop.signal is not None):
            raise self._stop.error()

    def save(self, step: int, state: Any) -> None:
        """Save now. The random state of every process and the length of the log go with it."""
        self._write(step, self._frozen(state))

    def _write(self, step: int, frozen: Frozen | None) -> None:
        if frozen is not None:
            from align.checkpoints import write_checkpoint

            write_checkpoint(self.work / "checkpoints", step, frozen)

    def _frozen(self, state: Any) -> Frozen | None:
        """A copy of `state` and of what belongs to it, in the first process; None in the others."""
        from align.checkpoints import freeze

        random_states = self.gather([_random_state(self.device)])
        if not self.is_main:
            return None
        whole = {
            "state": state,
            "random": random_states,
            "logged": self.logged_bytes(),
            "world_size": self.world_size,
        }
        return freeze(whole)

    def resume(self) -> tuple[int, Any] | None:
        """(step, state) as last saved, with the log cut back to it and the random state restored; None if fresh."""
        from align.checkpoints import load_checkpoint

        found = load_checkpoint(self.work / "checkpoints")
        if found is None:
            self.cut_log(0)  # of a process that was gone before it saved
            return None
        step, whole = found
        self.require_world_size(whole["world_size"])
        self.cut_log(whole["logged"])
        _set_random_state(whole["random"][self.rank], self.device)
        self.info(f"going on from {step}")
        return step, whole["state"]

    def require_world_size(self, begun_with: int) -> None:
        """Raise `ConfigError` where a step was begun with another number of processes."""
        if begun_with != self.world_size:
            raise ConfigError(
                f"hardware.num_processes: this step was begun with {begun_with}, got {self.world_size}; "
                f"use {begun_with}, or remove {self.work} to begin it again"
            )

    def logged_bytes(self) -> int:
        """How long the log is, to be cut back to on a resume."""
        return self.metrics_file.stat().st_size if self.metrics_file.exists() else 0

    def cut_log(self, size: int) -> None:
        """Forget the lines that were logged after a checkpoint of `size` bytes."""
        if self.is_main and self.metrics_file.exists():
            with self.metrics_file.open("rb+") as file:
                file.truncate(size)

    def _any(self, flag: bool) -> bool:
        """True where it is for any process of the step."""
        if self.world_size == 1:
            return flag
        import torch

        total = torch.tensor(float(flag), device=self.device)
        self.all_reduce(total)
        return bool(total)

    # -- several processes ---------------------------------------------------------------------------------------

    def share(self, items: Sequence[T]) -> list[T]:
        """This process's part of what is to be done: every `world_size`-th."""
        return list(items[self.rank :: self.world_size])

    def gather(self, items: list[T], even: bool = True) -> list[T]:
        """All processes' parts, in the order `share` took them from; not `even`: one process's after the other's."""
        if self.world_size == 1:
            return items
        import torch.distributed as dist

        parts: list[Any] = [None] * self.world_size
        dist.all_gather_object(parts, items)
        if not even:
            return [item for part in parts for item in part]
        whole: list[Any] = [None] * sum(map(len, parts))
        for rank, part in enumerate(parts):
            whole[rank :: self.world_size] = part
        return whole

    def all_reduce(self, tensor: torch.Tensor) -> None:
        """Sum over processes, in place."""
        if self.world_size > 1:
            import torch.distributed as dist

            dist.all_reduce(tensor)

    def sum_gradients(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        """Sum gradients over processes; each computed its share of a loss that is already divided by the whole."""
        if self.world_size == 1:
            return
        import torch

        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
        flat = torch.cat([g.flatten() for g in gradients])
        self.all_reduce(flat)
        for parameter, gradient in zip(parameters, flat.split([g.numel() for g in gradients]), strict=True):
            parameter.grad = gradient.view_as(parameter)

    def barrier(self) -> None:
        if self.world_size > 1:
            import torch.distributed as dist

            dist.barrier()

    def autocast(self, precision: str) -> contextlib.AbstractContextManager[Any]:
        """bf16 where the config asks for it, over fp32 weights."""
        import torch

        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


def _device(name: str) -> torch.device:
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("hardware.device: cuda was asked for and torch finds none; use auto or cpu")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    local = int(os.environ.get("LOCAL_RANK", "0"))  # set by torchrun, one GPU a process
    if local >= torch.cuda.device_count():
        raise ConfigError(f"hardware.num_processes: expected at most a process a GPU, and there are {local}")
    device = torch.device("cuda", local)
    torch.cuda.set_device(device)
    return device


def emulates_bf16(device: torch.device) -> bool:
    """True on a CPU that computes bf16 in software."""
    import torch

    known = torch.backends.mkldnn.is_available()
    return device.type == "cpu" and not (known and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _random_state(device: torch.device) -> dict[str, Any]:
    import torch

    state = {"cpu": torch.get_rng_state()}
    return state | ({"cuda": torch.cuda.get_rng_state()} if device.type == "cuda" else {})


def _set_random_state(state: dict[str, Any], device: torch.device) -> None:
    import torch

    torch.set_rng_state(state["cpu"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"])
