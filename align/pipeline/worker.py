"""Run one step's stage in this process or in several ranks.

With `hardware.num_processes` above 1, `run_ranks` starts this module once for each rank. Each rank
reads the same request and leaves a file with its outcome. torchrun is not used: its agent takes as
long to start as a rank, hides which rank failed and why, and is one more process that can be
killed.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib
import json
import math
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from align.configs import RunConfig, StageConfig, stage_class
from align.configs.plugins import plugin_of
from align.configs.typed import typed
from align.errors import AlignError, ConfigError, HealthStop, StoreError, naming_the_world
from align.models.compute import emulates_bf16
from align.runtime.cpu import cores
from align.runtime.distributed import Rank
from align.runtime.job import Inputs, Job
from align.runtime.log import Metrics
from align.runtime.memory import reuse_freed_memory
from align.runtime.seeds import derive_seed
from align.runtime.signals import Stop, end_with_parent
from align.runtime.tracking import NoTracker, Tracked, Tracker, make_tracker
from align.runtime.user_functions import describe_error
from align.store.artifacts import Artifact, ArtifactStore, write_json

# In the step's work folder: the output of all ranks except rank 0's progress.
RANKS_LOG = "ranks.log"
# In the same folder: rank 0 holds this lock as long as it lives, even if its parent was killed.
_RANKS_LOCK = "ranks.lock"
_LISTENER = "ALIGN_LISTENER"  # environment variable: the file descriptor of rank 0's open port
_LOOK_SECONDS = 0.1  # between two looks at the ranks
# The time that other ranks have to end after one was killed. They have nothing left to save.
_KILLED_SECONDS = 3.0
# The time after a rank ended with an error. Others may still save, or send metrics to W&B.
_FAILED_SECONDS = 60.0


def run_stage(config: StageConfig, inputs: Inputs, job: Job) -> Metrics:
    """Import the stage and run it. torch's random state depends only on the stage's name and seed.

    Afterwards the number of threads and the random states are restored.
    """
    import torch

    threads = torch.get_num_threads()
    # Otherwise do not ask for GPUs: the question alone would start CUDA.
    on_gpu = job.device.type == "cuda" or torch.cuda.is_initialized()
    gpus = range(torch.cuda.device_count()) if on_gpu else range(0)
    with torch.random.fork_rng(devices=gpus), _numpy_stream():
        try:
            if job.hardware.threads is not None:
                torch.set_num_threads(job.hardware.threads)
            return _run_stage(config, inputs, job)
        except HealthStop as error:
            raise HealthStop(f"{job.label}: {error}") from None  # a run has several training steps
        finally:
            torch.set_num_threads(threads)


@contextlib.contextmanager
def _numpy_stream() -> Iterator[None]:
    """Restore numpy's global random state afterwards, because lm-eval seeds it."""
    import numpy as np

    before = np.random.get_state()
    try:
        yield
    finally:
        np.random.set_state(before)


def _run_stage(config: StageConfig, inputs: Inputs, job: Job) -> Metrics:
    import torch

    reuse_freed_memory()
    if getattr(config, "precision", "fp32") == "bf16" and emulates_bf16(job.device):
        job.log.info(
            "this CPU has no bf16 arithmetic, so precision=bf16 will be many times slower than fp32"
        )
    torch.manual_seed(derive_seed(getattr(config, "seed", 0), config.STAGE))
    with contextlib.redirect_stdout(sys.stderr):  # standard output is for align's own output only
        try:
            module = importlib.import_module(config.MODULE or f"align.stages.{config.STAGE}")
            return _as_metrics(module.run(config, inputs, job))
        except AlignError:
            raise
        except Exception as error:
            if (plugin := plugin_of(type(config))) is None:
                raise
            said = f"{describe_error(error)}; raised by the stage {config.STAGE} of {plugin.label}"
            raise ConfigError(said) from error


def _as_metrics(returned: Any) -> Metrics:
    """Return what a stage's `run` returned, or raise `TypeError` if it is no metrics."""
    if not isinstance(returned, Mapping):
        raise TypeError(f"run returned {returned!r}; expected a dictionary of names and numbers")
    for name, value in returned.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError(
                f"run returned {value!r} as the metric {name!r}; expected an int or a float"
            )
    return dict(returned)


def wait_for_ranks(work: Path, label: str) -> None:
    """Wait until rank 0 of a killed command has ended. It finishes its current step and saves."""
    lock = work / _RANKS_LOCK
    if not lock.exists():
        return
    with lock.open("r+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(
                f"  {label}: processes of a command that was killed still save; waiting",
                file=sys.stderr,
                flush=True,
            )
            fcntl.flock(file, fcntl.LOCK_EX)


def run_ranks(
    config: StageConfig,
    inputs: Inputs,
    tracked: Tracked,
    work: Path,
    settings: RunConfig,
    stop: Stop,
) -> Metrics:
    """Run the stage in several processes on this machine, and wait until all of them have ended.

    Returns:
        The metrics of the stage.

    Raises:
        AlignError: the error of the rank that failed first, or the signal that killed a rank.
    """
    request = {
        "stage": config.STAGE,
        "config": asdict(config),
        "inputs": {
            slot: [[a.stage, a.key] for a in artifacts] for slot, artifacts in inputs.items()
        },
        "tracked": asdict(tracked),
        "settings": {**asdict(settings), "store": str(Path(settings.store).absolute())},
    }
    log = work / RANKS_LOG
    log.write_text("", encoding="utf-8")
    count = settings.hardware.num_processes
    ranks: list[subprocess.Popen[bytes]] = []
    # Each start has its own folder, because ranks of a killed command may still write outcomes.
    # Rank 0 inherits an open port: a port that was only checked to be free could be taken by then.
    with (
        tempfile.TemporaryDirectory(prefix="ranks-", dir=work) as own,
        _console(Path(own)) as (console, pass_on),
        log.open("ab") as quiet,
        socket.create_server(("127.0.0.1", 0), backlog=2 * count) as port,
    ):
        folder = Path(own)
        write_json(folder / "request.json", request)
        try:
            for rank in range(count):
                ranks.append(
                    _start_rank(rank, folder, settings, port, console if rank == 0 else quiet)
                )
            _wait_for(ranks, stop, pass_on)
            codes = [process.poll() for process in ranks]
        finally:
            for process in ranks:
                process.kill()  # does nothing to a process that has ended
                process.wait()
        outcomes = [
            json.loads(file.read_text(encoding="utf-8")) for file in folder.glob("rank-*.json")
        ]
    return _metrics(tracked.name, log, codes, outcomes, stop)


def _start_rank(
    rank: int, folder: Path, settings: RunConfig, port: socket.socket, output: IO[Any]
) -> subprocess.Popen[bytes]:
    count = settings.hardware.num_processes
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(settings.hardware.threads or max(1, cores() // count)),
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port.getsockname()[1]),
    }
    # torch would make each other rank log a lost rank. `_metrics` reports it once.
    environment.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    if rank == 0:
        environment[_LISTENER] = str(port.fileno())
    # In a new session, Ctrl-C in a terminal reaches only the parent, which signals each rank once.
    return subprocess.Popen(
        [sys.executable, "-m", "align.pipeline.worker", str(folder), str(os.getpid())],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        pass_fds=(port.fileno(),) if rank == 0 else (),
        start_new_session=True,
    )


def _wait_for(
    ranks: Sequence[subprocess.Popen[bytes]], stop: Stop, pass_on: Callable[[], None]
) -> None:
    """Wait until all ranks have ended, or until some seconds after the first failure.

    The other ranks cannot continue without the failed one.
    """
    told, until = False, math.inf
    while any(process.poll() is None for process in ranks) and time.monotonic() < until:
        time.sleep(_LOOK_SECONDS)
        pass_on()
        if stop.signal is not None and not told:
            told = True
            for process in ranks:
                process.terminate()
        failed = [process.returncode for process in ranks if process.returncode]
        if failed and until == math.inf:
            until = time.monotonic() + (_KILLED_SECONDS if min(failed) < 0 else _FAILED_SECONDS)


def _metrics(
    name: str,
    log: Path,
    codes: Sequence[int | None],
    outcomes: Sequence[dict[str, Any]],
    stop: Stop,
) -> Metrics:
    """Return the metrics of the stage, or raise the first error.

    Later errors may only be caused by the loss of another rank.

    Args:
        name: the step's name.
        log: the file with the ranks' output.
        codes: the exit code of each rank; None for a rank that had to be killed.
        outcomes: the files that the ranks left.
        stop: the stop signal that this process got, if any.
    """
    outcomes = sorted(outcomes, key=lambda outcome: outcome["at"])
    for outcome in outcomes:
        if "metrics" in outcome:
            metrics: Metrics = outcome["metrics"]
            return metrics
    if stop.signal is not None:
        raise stop.error()
    for outcome in outcomes:
        if outcome["kind"] is not None:
            kinds = {kind.__name__: kind for kind in AlignError.__subclasses__()}
            raise _with_code(
                kinds.get(outcome["kind"], AlignError)(outcome["error"]), outcome["exit_code"]
            )
    killed = [(rank, -code) for rank, code in enumerate(codes) if code is not None and code < 0]
    # SIGKILL first: a rank that lost another rank may abort.
    killed.sort(key=lambda pair: pair[1] != signal.SIGKILL)
    if killed:
        rank, number = killed[0]
        names = {each.value: each.name for each in signal.Signals}
        why = " (out of memory?)" if number == signal.SIGKILL else f"; {log} has what it printed"
        said = f"rank {rank} was killed by {names.get(number, f'signal {number}')}{why}"
        raise _with_code(
            AlignError(f"{name}: {said}; give the same command to go on"), 128 + number
        )
    if outcomes:
        said = (
            f"rank {outcomes[0]['rank']}: {outcomes[0]['error']} (a bug in align, not in your input"
        )
        raise AlignError(f"{name}: {said}; {log} shows where)")
    rank, code = next((rank, code) for rank, code in enumerate(codes) if code)
    raise _with_code(
        AlignError(f"{name}: rank {rank} ended with exit code {code}; {log} has what it printed"),
        code,
    )


def _with_code(error: AlignError, code: int) -> AlignError:
    error.exit_code = code
    return error


@contextlib.contextmanager
def _console(folder: Path) -> Iterator[tuple[IO[Any], Callable[[], None]]]:
    """Yield the stream that rank 0 prints to, and a function that passes its output on.

    The stream is this process's standard error. In a notebook, in a member of a sweep or under a
    caller that captures output, `sys.stderr` is no stream of the process. Then rank 0 prints to a
    file, and this process passes the text on.
    """
    ours: IO[Any] = sys.stderr
    if ours is sys.__stderr__:
        yield ours, lambda: None
        return
    printed = folder / "rank-0.txt"
    with printed.open("wb") as written, printed.open(encoding="utf-8", errors="replace") as read:

        def pass_on() -> None:
            sys.stderr.write(read.read())

        yield written, pass_on
        pass_on()


def main(folder: Path, parent: int) -> None:
    """Run one rank: read the request, run the stage, and write the outcome."""
    end_with_parent(parent)
    work, rank = folder.parent, int(os.environ["RANK"])
    with _telling(folder, rank) as outcome, (work / _RANKS_LOCK).open("w") as lock:
        if rank == 0:
            fcntl.flock(lock, fcntl.LOCK_EX)  # the next run of this step waits in `wait_for_ranks`
        request = json.loads((folder / "request.json").read_text(encoding="utf-8"))
        outcome["metrics"] = _run_rank(work, typed(RunConfig, request["settings"]), request, rank)


def _run_rank(work: Path, settings: RunConfig, request: dict[str, Any], rank: int) -> Metrics:
    import torch.distributed as dist

    world_size = int(os.environ["WORLD_SIZE"])
    _join(rank, world_size)
    store = ArtifactStore(settings.store)
    inputs = Inputs(
        {
            slot: tuple(_input(store, *ref) for ref in refs)
            for slot, refs in request["inputs"].items()
        }
    )
    config = typed(stage_class(request["stage"]), request["config"])
    stop = Stop(silent=True)  # the parent prints the message
    tracked = Tracked(**request["tracked"])
    tracker: Tracker = NoTracker()
    if rank == 0:
        tracker = make_tracker(settings.tracker, store.root)
        tracker.start(tracked, work)
    job = Job(tracked.name, work, settings, tracker, stop, Rank(rank, world_size))
    try:
        with stop.listening():
            metrics = run_stage(config, inputs, job)
    except BaseException:
        tracker.finish(exit_code=1)
        raise
    tracker.finish()
    dist.destroy_process_group()
    return metrics


def _join(rank: int, world_size: int) -> None:
    """Join the process group of all ranks: gloo for tensors on the CPU, nccl on a GPU."""
    import torch.distributed as dist

    store = dist.TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        world_size,
        is_master=rank == 0,
        master_listen_fd=int(os.environ[_LISTENER]) if rank == 0 else None,
    )
    dist.init_process_group(store=store, rank=rank, world_size=world_size)


def _input(store: ArtifactStore, stage: str, key: str) -> Artifact:
    artifact = store.get(stage, key)
    if artifact is None:
        raise StoreError(f"{stage}@{key[:12]}: gone since the step was planned")
    return artifact


@contextlib.contextmanager
def _telling(folder: Path, rank: int) -> Iterator[dict[str, Any]]:
    """Write the outcome of this rank: the metrics of rank 0, or the error of any rank.

    The error is one that the user can fix (`AlignError`) or a bug in align (`kind` is None). The
    traceback of a bug goes to `RANKS_LOG`.
    """
    outcome: dict[str, Any] = {}
    failed: dict[str, Any] = {}
    try:
        with naming_the_world():
            yield outcome
    except AlignError as error:
        failed = {"kind": type(error).__name__, "error": str(error), "exit_code": error.exit_code}
    except Exception as error:
        with (folder.parent / RANKS_LOG).open("a", encoding="utf-8") as log:
            traceback.print_exc(file=log)
        failed = {
            "kind": None,
            "error": f"{type(error).__name__}: {' '.join(str(error).split())}",
            "exit_code": 1,
        }
    if failed or rank == 0:
        try:
            write_json(
                folder / f"rank-{rank}.json",
                {"rank": rank, "at": time.time(), **(failed or outcome)},
            )
        except OSError as error:  # a full disk, for example; then only the exit code tells the kind
            print(f"rank {rank}: {failed.get('error', error)}", file=sys.stderr, flush=True)
            sys.exit(failed.get("exit_code", StoreError.exit_code))
    if failed:
        sys.exit(failed["exit_code"])


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
