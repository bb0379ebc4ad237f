"""What a running stage may touch besides its config and inputs: its folder, device, log, checkpoints and siblings.

A stage runs in one process or in several (`hardware.num_processes`), each with a `Job` of its own. Rank 0 alone writes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from align.configs import RunConfig
from align.errors import ConfigError
from align.runtime.progress import Progress
from align.runtime.signals import Stop
from align.runtime.tracking import NoTracker, Tracker
from align.store.artifacts import STEPS, Artifact, read_json_lines, write_json

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from align.training.activations import Again


T = TypeVar("T")

_GRACE_SECONDS = 30.0  # from SIGTERM on, in which a step may still end; SLURM's usual KillWait
_MICRO_BATCH_TOKENS = {"cpu": 1024, "cuda": 4096}  # of one pass: few enough to need little memory, enough to be fast
_SAVES_APART = 20  # times what the last checkpoint took: saving then costs at most a twentieth of the time
Metrics = dict[str, float]


class Inputs(dict[str, tuple[Artifact, ...]]):
    """The artifacts a stage was given, by the name of the input; an optional one that was not given is not there."""

    def one(self, name: str) -> Artifact:
        (artifact,) = self[name]
        return artifact

    def folders(self, name: str) -> list[Path]:
        return [artifact.path for artifact in self[name]]


class _Log:
    """A file that grows: its size and sha256, for which only what is new is read; that much is on disk then."""

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
        self._known_logs: dict[str, _Log] = {}
        self._sent: dict[str, int] = {}  # bytes of each table when the tracker got it
        self._last_step = 0
        self._save_seconds = 0.0  # that the last checkpoint took
        self._step_begun, self._step_seconds = self._saved, 0.0  # of the step before

    # -- telling -------------------------------------------------------------------------------------------------

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def micro_batch_tokens(self) -> int:
        """Tokens of one forward and backward pass."""
        return self.hardware.micro_batch_tokens or _MICRO_BATCH_TOKENS[self.device.type]

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
        return read_json_lines(self.metrics_file)

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

    def append(self, name: str, step: int, rows: Sequence[dict[str, Any]]) -> None:
        """Add rows of one step to <name>.jsonl; send the tracker the whole table so far, at the last step and before.

        A tracker's table cannot grow. Sent with every step, a long run's would take space as the square of its steps;
        so it is sent when it has grown by a quarter.
        """
        if not self.is_main or not rows:
            return
        file = self.out / f"{name}.jsonl"
        with file.open("a", encoding="utf-8") as out:
            out.writelines(json.dumps({"step": step, **row}, ensure_ascii=False, default=str) + "\n" for row in rows)
        size = file.stat().st_size
        if step != self._last_step and size < 1.25 * self._sent.get(name, 0):
            return
        self._sent[name] = size
        every = read_json_lines(file)
        columns = list(dict.fromkeys(column for row in every for column in row))
        self._tracker.table(name, columns, [[row.get(column) for column in columns] for row in every])

    def steps(self, total: int, start: int = 0, unit: str = "steps") -> Iterator[int]:
        """`range(start, total)` with progress, rate and time left."""
        self._last_step = total
        if self.is_main:
            write_json(self.work / STEPS, {"total": total, "unit": unit})
        with self._progress.over(total, start, unit) as advance:
            for step in range(start, total):
                self._step_begun = time.monotonic()
                yield step
                self._step_seconds = time.monotonic() - self._step_begun
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
            self._save(step, state)
            if self._any(self._stop.signal is not None):
                raise self._stop.error()

    def stop_if_asked(self) -> None:
        """Call it in the middle of a long step: a process that was asked to stop does so here, or ends the step first.

        The step is ended where that takes at most `_GRACE_SECONDS` from the signal on, as long as the step before took.
        Otherwise the last checkpoint is what counts.

        Raises:
            Preempted: the process was asked to stop.
        """
        asked = self._stop.asked_at
        must = asked is not None and self._step_ends() > asked + _GRACE_SECONDS
        if self._any(must):
            self.barrier()
            raise self._stop.error()

    def _step_ends(self) -> float:
        """When the step is expected to end; now, where no step has ended yet to go by."""
        return max(time.monotonic(), self._step_begun + self._step_seconds)

    def wants_checkpoint(self) -> bool:
        """True when it is time to save, or the process is to stop; the same in all processes of the step."""
        due = time.monotonic() - self._saved >= self._interval()
        return self._any(due or self._stop.signal is not None)

    def _interval(self) -> float:
        """Seconds between checkpoints: as asked, or more where saving takes long. 0 is one after every step."""
        asked = self.hardware.checkpoint_seconds
        return 0.0 if asked == 0 else max(asked, _SAVES_APART * self._save_seconds)

    def _save(self, step: int, state: Callable[[], Any]) -> None:
        """Save now. The random state of every process and the lengths of all logs go with it."""
        begun = time.monotonic()
        random_states = self.gather([_random_state(self.device)])
        if self.is_main:
            from align.store.checkpoints import save_checkpoint

            whole = {"state": state(), "random": random_states, "world_size": self.world_size}
            logs = {f"{self.out.name}/{name}": log.until_now() for name, log in self._logs().items()}
            whole["logged"] = {name: size for name, (size, _) in logs.items()}
            save_checkpoint(self.work / "checkpoints", step, whole, logs)
        self.barrier()
        self._saved = time.monotonic()
        self._save_seconds = self._saved - begun

    def resume(self) -> tuple[int, Any] | None:
        """(step, state) as last saved, with all logs cut back to it and the random state restored; None if fresh.

        A damaged checkpoint is set aside and the one before is taken. Both are said.
        """
        from align.store.checkpoints import load_checkpoint, set_damaged_aside

        folder = self.work / "checkpoints"
        damaged = set_damaged_aside(folder) if self.is_main else []
        self.barrier()  # the others look when it is done
        for line in damaged:
            self.info(line)
        found = load_checkpoint(folder)
        if found is None:
            if damaged:
                self.info("there is no older checkpoint: beginning again")
            self._cut_logs({})  # of a process that was gone before it saved
            return None
        step, whole = found
        self.require_world_size(whole["world_size"])
        self._cut_logs(whole["logged"])
        random_state = whole["random"][self.rank]
        _set_random_state(random_state, self.device)
        self.info(f"going on from {step}")
        if ("cuda" in random_state) != (self.device.type == "cuda"):
            self.info("it was begun on another kind of device, so what is random on this one begins anew")
        return step, whole["state"]

    def require_world_size(self, begun_with: int) -> None:
        """Raise `ConfigError` where a step was begun with another number of processes."""
        if begun_with != self.world_size:
            raise ConfigError(
                f"hardware.num_processes: this step was begun with {begun_with}, got {self.world_size}; "
                f"use {begun_with}, or remove {self.work} to begin it again"
            )

    def _logs(self) -> dict[str, _Log]:
        """The files that grow with every step, by name: metrics, events, samples."""
        for file in sorted(self.out.glob("*.jsonl")):
            self._known_logs.setdefault(file.name, _Log(file))
        return self._known_logs

    def _cut_logs(self, sizes: dict[str, int]) -> None:
        """Forget what was logged after a checkpoint, which holds the size of each log."""
        if not self.is_main:
            return
        for file in self.out.glob("*.jsonl"):
            size = sizes.get(f"{self.out.name}/{file.name}")
            if size is None:
                file.unlink()
            else:
                os.truncate(file, size)

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

    def limit_activations(
        self, model: PreTrainedModel, precision: str, longest: int, again: Again | None = None
    ) -> None:
        """Turn activation checkpointing on as `hardware.activation_checkpointing` says, and say so where it is auto.

        Args:
            longest: tokens of the longest sequence, which is a pass by itself where it is above micro_batch_tokens.
            again: see `align.training.activations`; for models whose adapters are switched.
        """
        from align.training.activations import limit_activations

        line = limit_activations(
            model,
            self.hardware.activation_checkpointing,
            max(self.micro_batch_tokens, longest),
            self.autocast(precision),
            again=again or contextlib.nullcontext,
            num_processes=self.world_size,
        )
        if line:
            self.info(line)

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
    local = int(os.environ.get("LOCAL_RANK", "0"))  # set by run_ranks, one GPU a process
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
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"])
