"""Run one step's stage, in this process or as one rank of several.

With `hardware.num_processes` above 1, torchrun starts this module once a rank; each reads the same request, and rank 0
leaves the metrics behind.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import importlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

from align.artifacts import Artifact, ArtifactStore, write_json
from align.configs import RunConfig, StageConfig, stage_class
from align.configs.typed import typed
from align.cores import cores
from align.errors import AlignError, StoreError, naming_the_world
from align.job import Inputs, Job, Metrics, emulates_bf16
from align.memory import reuse_freed_memory
from align.seeds import derive_seed
from align.stop import Stop
from align.tracking import NoTracker, Tracked, Tracker, make_tracker


def run_stage(config: StageConfig, inputs: Inputs, job: Job) -> Metrics:
    """Import the stage and run it, torch's random stream set by the stage's name and seed alone.

    Afterwards the number of threads and the random streams are as they were.
    """
    import torch

    threads = torch.get_num_threads()
    on_gpu = job.device.type == "cuda" or torch.cuda.is_initialized()  # else the question alone would start CUDA
    gpus = range(torch.cuda.device_count()) if on_gpu else range(0)
    with torch.random.fork_rng(devices=gpus), _numpy_stream():
        try:
            if job.hardware.threads is not None:
                torch.set_num_threads(job.hardware.threads)
            return _run_stage(config, inputs, job)
        finally:
            torch.set_num_threads(threads)


@contextlib.contextmanager
def _numpy_stream() -> Iterator[None]:
    """lm-eval seeds numpy's stream of the process."""
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
        job.info("this CPU has no bf16 arithmetic, so precision=bf16 will be many times slower than fp32")
    torch.manual_seed(derive_seed(getattr(config, "seed", 0), config.STAGE))
    with contextlib.redirect_stdout(sys.stderr):  # what a library prints is not ours to give out
        return importlib.import_module(f"align.stages.{config.STAGE}").run(config, inputs, job)


def run_ranks(
    config: StageConfig, inputs: Inputs, tracked: Tracked, work: Path, settings: RunConfig, stop: Stop
) -> Metrics:
    """Run the stage under torchrun."""
    request = {
        "stage": config.STAGE,
        "config": asdict(config),
        "inputs": {slot: [[a.stage, a.key] for a in artifacts] for slot, artifacts in inputs.items()},
        "tracked": asdict(tracked),
        "settings": {**asdict(settings), "store": str(Path(settings.store).absolute())},
    }
    write_json(work / "request.json", request)
    result = work / "result.json"
    result.unlink(missing_ok=True)
    launcher = f"torch.distributed.run --standalone --nproc-per-node={settings.hardware.num_processes} -m align.worker"
    command = [sys.executable, "-m", *launcher.split(), str(work)]
    threads = settings.hardware.threads or max(1, cores() // settings.hardware.num_processes)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    with _passed_on(work / "ranks.log") as (stream, pass_on):
        ranks = subprocess.Popen(
            command,
            env=environment,
            stderr=stream,
            start_new_session=True,
            preexec_fn=_die_with_parent,  # noqa: PLW1509
        )
        told = False
        while ranks.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                ranks.wait(timeout=0.2)
            pass_on()
            if stop.signal is not None and not told:
                ranks.send_signal(signal.SIGTERM)
                told = True
    outcome = json.loads(result.read_text(encoding="utf-8")) if result.is_file() else {}
    if "metrics" in outcome:
        return outcome["metrics"]
    if stop.signal is not None:
        raise stop.error()
    code = outcome.get("exit_code", 1)
    kind = next((kind for kind in AlignError.__subclasses__() if kind.exit_code == code), AlignError)
    error = kind(outcome.get("error", f"{tracked.name}: a process ended with exit code {ranks.returncode}; see above"))
    error.exit_code = code
    raise error


@contextlib.contextmanager
def _passed_on(log: Path) -> Iterator[tuple[TextIO | None, Callable[[], None]]]:
    """A stream for the standard error of processes, and what passes it on to ours.

    That is no file in a notebook, or where a caller keeps what is printed: then they write to `log`.
    """
    try:
        sys.stderr.fileno()
    except OSError:
        with log.open("w", encoding="utf-8") as written, log.open(encoding="utf-8", errors="replace") as read:

            def pass_on() -> None:
                sys.stderr.write(read.read())

            yield written, pass_on
            pass_on()
        return
    yield None, lambda: None


def main(work: Path) -> None:
    """One rank: read the request, run, and leave the outcome."""
    _die_with_parent()
    request = json.loads((work / "request.json").read_text(encoding="utf-8"))
    settings = typed(RunConfig, request["settings"])
    with (work / "ranks.lock").open("w") as lock:
        if os.environ["RANK"] == "0":
            fcntl.flock(lock, fcntl.LOCK_EX)  # ranks whose parent was killed may still be saving
        _run_rank(work, settings, request)


def _run_rank(work: Path, settings: RunConfig, request: dict[str, Any]) -> None:
    import torch.distributed as dist

    dist.init_process_group()  # gloo for what is on the CPU, nccl for what is on a GPU
    store = ArtifactStore(settings.store)
    inputs = Inputs({slot: tuple(_input(store, *ref) for ref in refs) for slot, refs in request["inputs"].items()})
    config = typed(stage_class(request["stage"]), request["config"])
    stop = Stop()
    tracked = Tracked(**request["tracked"])
    tracker: Tracker = NoTracker()
    if dist.get_rank() == 0:
        tracker = make_tracker(settings.tracker, store.root)
        tracker.start(tracked, work)
    job = Job(tracked.name, work, settings, tracker, stop, dist.get_rank(), dist.get_world_size())
    with stop.listening(), _telling(work, job.is_main) as outcome, naming_the_world(str(store.root)):
        outcome["metrics"] = run_stage(config, inputs, job)
    tracker.finish()
    dist.destroy_process_group()


def _input(store: ArtifactStore, stage: str, key: str) -> Artifact:
    artifact = store.get(stage, key)
    if artifact is None:
        raise StoreError(f"{stage}@{key[:12]}: gone since the step was planned")
    return artifact


@contextlib.contextmanager
def _telling(work: Path, is_main: bool) -> Iterator[dict[str, Any]]:
    """Leave behind what came out, on rank 0; an error of the user's world as its line and exit code."""
    outcome: dict[str, Any] = {}
    try:
        yield outcome
    except AlignError as error:
        # Whoever has it: the others then end for want of this process, and know nothing of why.
        write_json(work / "result.json", {"error": str(error), "exit_code": error.exit_code})
        sys.exit(error.exit_code)
    if is_main:
        write_json(work / "result.json", outcome)


def _die_with_parent() -> None:
    """Ask Linux for a SIGTERM when the parent dies; elsewhere an orphan goes on, holding the step's lock."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
