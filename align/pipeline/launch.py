"""Launch the members of a sweep through Hydra's launchers, with what those leave open.

Members that run at once share the cores. A member that is killed stops no other: joblib ends its whole pool when one
of its processes is killed, and submitit stops waiting for the others. A stop reaches those that run, and the others do
not begin. Members on this machine end with the process that runs the sweep, however that one ends; what waits in
SLURM's queue is cancelled when the sweep is stopped or fails.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import DictConfig

from align.errors import AlignError, ConfigError, Preempted, StoreError
from align.runtime.cpu import cores
from align.runtime.signals import STOPPED_CODE, end_when, end_with_parent, on_stop, stopped
from align.store.sweep_records import KILLED, Fate, fates

Task = Callable[[DictConfig], int]
STOPPED = "stopped"  # a file in the sweep's folder, with the signal's number: members that have not begun shall not
SWEEPING = "sweep.lock"  # a file there that the sweep's process holds locked for as long as it is
_STOP_CODES = {128 + number for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
_SUBMITTED = "_submitted.pkl"  # submitit's file for each job, after the job's id
_QUEUE_SECONDS = 60.0  # between two questions to SLURM why jobs wait
_FIRST_QUEUE_SECONDS = 5.0


class MemberTask:
    """What a launcher runs as a member: the task, but for those that have ended before and after a stop."""

    def __init__(self, task: Task, folder: Path):
        self.task, self.folder = task, folder
        self.ended: dict[int, int] = {}  # exit codes of those that a pool launched anew shall not do again
        self.at_once = 1
        self.kind = "basic"  # of launcher

    def __call__(self, config: DictConfig) -> int:
        number = HydraConfig.get().job.num
        if number in self.ended:
            return self.ended[number]
        if self.kind == "local":  # a grandchild of the sweep's process; those of joblib are children, see `_in_a_pool`
            _end_with_sweep(self.folder)
        code = stop_code(self.folder)
        if code is None:
            try:
                with _stoppable(), _numbered(number) if self.at_once > 1 else contextlib.nullcontext():
                    code = self.task(config)
            except Preempted as error:
                code = error.exit_code
        if self.kind in ("joblib", "local") and not _is_held(self.folder / SWEEPING):
            os._exit(code)  # the sweep's process is gone, and one of loky's would wait for more to do
        return code


def stop_code(folder: Path) -> int | None:
    """The exit code of members that a stop of the sweep keeps from beginning; None while none was asked for."""
    try:
        return 128 + int((folder / STOPPED).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError:  # it is being written
        return STOPPED_CODE


@functools.cache  # once a process, which may run several members
def _end_with_sweep(folder: Path) -> None:
    end_when(lambda: not _is_held(folder / SWEEPING))


def _is_held(lock: Path) -> bool:
    """True while a process has the file locked. A lock ends with its process, wherever it stands in the tree."""
    try:
        with lock.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        pass
    return False


class Prepared(NamedTuple):
    """A member that was composed and checked."""

    threads: int | None  # that it asks for
    num_processes: int  # of each of its steps
    to_do: bool  # whether anything is left to do


class Launcher:
    """A launcher for Hydra's sweeper around the one that was asked for.

    Args:
        inner: Hydra's basic, joblib or submitit launcher.
        settings: its config, `hydra.launcher`.
        task: the one that `inner` was set up with.
        prepare: composes and checks every member. Called before the first begins.
    """

    def __init__(self, inner: Any, settings: DictConfig, task: MemberTask, prepare: Callable[[], dict[int, Prepared]]):
        self.inner, self.settings, self.task, self.prepare = inner, settings, task, prepare
        self.kind = str(settings.get("_target_")).rpartition(".")[2].removesuffix("Launcher").lower()
        self.members: dict[int, Prepared] = {}
        self.sharing = 1  # members that compute at once

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run a batch of members; what each returns is its exit code."""
        members = {initial_job_idx + i: list(overrides) for i, overrides in enumerate(job_overrides)}
        if not self.members:
            self.members = self.prepare()
            # Of several batches the first is the largest; all get its share, so that members are alike.
            self.task.at_once = members_at_once(self.kind, self.settings, len(members))
            self.sharing = max(1, min(self.task.at_once, sum(member.to_do for member in self.members.values())))
            self._tell()
        if self.task.at_once > 1:
            members = {number: self._with_share(number, overrides) for number, overrides in members.items()}
        self.task.kind = self.kind
        runs = {"joblib": self._in_a_pool, "local": self._each_by_itself, "slurm": self._in_slurm}
        run = runs.get(self.kind, self._in_this_process)
        with _sweeping(self.task.folder), _stop_reaches(self.task.folder, self.kind):
            returned = run(members)
        code = stop_code(self.task.folder)
        if code is None:
            return returned
        # Members hear of any stop as SIGTERM; the sweep ends by the signal that it was given.
        return [_returned(code) if each.return_value in _STOP_CODES else each for each in returned]

    def _in_this_process(self, members: dict[int, list[str]]) -> list[JobReturn]:
        return self.inner.launch(list(members.values()), min(members))

    def _tell(self) -> None:
        told, where = f"-- {len(self.members)} members", self.settings.get("submitit_folder")
        if self.task.at_once > 1:
            shares = [share for number in self.members if (share := self._share(number)) is not None]
            told += f", {self.task.at_once} at once"
            told += f", {min(shares)} of {cores()} cores for each process" if shares else ""
        if where is not None:
            told += f"; what they print: {Path(where).parent}"
        if self.task.at_once > 1 or where is not None:
            print(told, file=sys.stderr, flush=True)

    def _share(self, number: int) -> int | None:
        """An equal share of the cores for each process of a member; None where it says how many threads it wants."""
        threads, num_processes, _ = self.members[number]
        return max(1, cores() // (self.sharing * num_processes)) if threads is None else None

    def _with_share(self, number: int, overrides: list[str]) -> list[str]:
        share = self._share(number)
        return overrides if share is None else [*overrides, f"hardware.threads={share}"]

    def _in_a_pool(self, members: dict[int, list[str]]) -> list[JobReturn]:
        """In joblib's pool; where it breaks down, those that were cut off are tried alone, then the others go on."""
        first, codes = min(members), self.task.ended
        self.inner.joblib |= {"initializer": end_with_parent, "initargs": (os.getpid(),)}
        for _ in members:
            try:
                return self.inner.launch(list(members.values()), first)
            except BrokenProcessPool:
                known = self._settled(members)
            cut = [number for number, fate in known.items() if fate.state == "killed" and number not in codes]
            codes |= {number: fate.code for number, fate in known.items() if number not in cut}
            stop = stop_code(self.task.folder)
            if stop is not None:
                return [_returned(codes.get(number, stop)) for number in members]
            if not cut:
                continue  # it was none of ours that ran
            names = ", ".join(map(str, cut))
            told = f"-- a member's process was killed (out of memory?) and joblib ended its pool: {names} cut off; "
            print(told + ("each" if len(cut) > 1 else "it") + " goes on by itself", file=sys.stderr, flush=True)
            for number in cut:  # so that the one whose fault it is takes no other with it
                codes[number] = self._alone(members[number], number).return_value
        raise AlignError("joblib's processes are killed before a member begins in them; try launcher=basic")

    def _settled(self, members: dict[int, list[str]]) -> dict[int, Fate]:
        """The fates of those that have begun, once the processes of a broken pool are gone."""
        while True:
            known = {number: fate for number, fate in fates(self.task.folder).items() if number in members}
            if all(fate.state != "running" for fate in known.values()):
                return known
            time.sleep(0.05)

    def _each_by_itself(self, members: dict[int, list[str]]) -> list[JobReturn]:
        """Each as a job of submitit's own, as many at once as there are cores for."""
        # Ctrl-C, or a terminal that closes, would end submitit's process over a member: blocked here, they are blocked
        # there. The member hears of both from this process, as SIGTERM.
        blocked = (signal.SIG_BLOCK, [signal.SIGINT, signal.SIGHUP])
        with ThreadPoolExecutor(self.task.at_once, initializer=signal.pthread_sigmask, initargs=blocked) as pool:
            return list(pool.map(self._alone, members.values(), members.keys()))

    def _alone(self, overrides: list[str], number: int) -> JobReturn:
        try:
            (returned,) = self.inner.launch([overrides], number)
        except BrokenProcessPool:
            returned = _returned(KILLED)
        except Exception as error:
            if not type(error).__module__.startswith("submitit."):
                raise
            returned = _returned(KILLED)
        if self.kind == "local":
            fate = fates(self.task.folder).get(number)
            print(f"-- {number}: {fate.state if fate else 'not begun'}", file=sys.stderr, flush=True)
        return returned

    def _in_slurm(self, members: dict[int, list[str]]) -> list[JobReturn]:
        """Each as a job of SLURM's; what is left in its queue when this ends is cancelled."""
        if shutil.which("sbatch") is None or shutil.which("srun") is None:
            raise ConfigError("launcher=slurm: sbatch and srun are not on this machine; use launcher=submitit_local")
        folder = Path(self.settings.submitit_folder)
        while "%" in folder.name or "%" in str(folder.parent):
            folder = folder.parent
        queue = Queue(folder)
        try:
            with queue.telling():
                try:
                    return self.inner.launch(list(members.values()), min(members))
                except Exception as error:
                    if not type(error).__module__.startswith("submitit."):
                        raise
                    if not queue.jobs():
                        told = " ".join(str(error).split())
                        raise StoreError(f"launcher=slurm: SLURM did not take the jobs: {told}") from error
                    queue.wait()  # submitit stops waiting when a job was killed; the others go on
        except _Cancelled:
            queue.cancel()
            with contextlib.suppress(_Cancelled):  # asked again: at once
                queue.wait()
        finally:
            queue.cancel()
        known, stop = fates(self.task.folder), stop_code(self.task.folder)
        codes = {number: fate.code for number, fate in known.items() if fate.state != "running"}
        return [_returned(codes.get(number, KILLED if stop is None else stop)) for number in members]


class _Cancelled(BaseException):
    """The sweep is to stop while it waits for SLURM. No `Exception`: submitit goes on after those."""


class Queue:
    """The jobs that a sweep put into SLURM's queue, by the files that submitit leaves for each in `folder`."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._before = set(self._submitted())  # of an earlier batch

    def _submitted(self) -> list[str]:
        return sorted(path.name.removesuffix(_SUBMITTED) for path in self._folder.rglob(f"*{_SUBMITTED}"))

    def jobs(self) -> list[str]:
        return [job for job in self._submitted() if job not in self._before]

    def left(self) -> dict[str, tuple[str, str]]:
        """The state of each job that has not ended, and why it is in it, as SLURM says."""
        jobs = self.jobs()
        if not jobs:
            return {}
        command = ["squeue", "--noheader", "--format=%i|%T|%r", f"--jobs={','.join(jobs)}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        rows = [line.split("|") for line in done.stdout.splitlines()]
        return {row[0].strip(): (row[1], row[2].strip()) for row in rows if len(row) == 3}

    def wait(self) -> None:
        """Return when no job is left."""
        while self.left():
            time.sleep(_FIRST_QUEUE_SECONDS)

    def cancel(self) -> None:
        """Cancel the jobs that are left: SLURM sends SIGTERM to those that run, which save."""
        if left := self.left():
            subprocess.run(["scancel", *left], capture_output=True, check=False)
            print(f"-- cancelled in SLURM: {', '.join(left)}", file=sys.stderr, flush=True)

    @contextlib.contextmanager
    def telling(self) -> Iterator[None]:
        """Say meanwhile why jobs wait, whenever that changes."""
        over = threading.Event()

        def tell() -> None:
            told: dict[str, str] = {}
            pause = _FIRST_QUEUE_SECONDS
            while not over.wait(pause):
                pause = _QUEUE_SECONDS
                waiting = {job: why for job, (state, why) in self.left().items() if state == "PENDING"}
                for job, why in waiting.items():
                    if told.get(job) != why:
                        print(f"-- {job} waits in SLURM's queue: {why}", file=sys.stderr, flush=True)
                told = waiting

        threading.Thread(target=tell, daemon=True).start()
        try:
            yield
        finally:
            over.set()


def members_at_once(kind: str, settings: DictConfig, count: int) -> int:
    """How many of `count` members share this machine: joblib's n_jobs; a submitit process for each cpus_per_task.

    A member of SLURM has its cores from the cluster: it shares them with none.
    """
    if kind == "joblib":
        jobs = settings.n_jobs
        return min(count, jobs if jobs > 0 else max(1, cores() + 1 + jobs))
    if kind == "local":
        return min(count, max(1, cores() // (settings.cpus_per_task or 1)))
    return 1


def _returned(code: int) -> JobReturn:
    returned = JobReturn(status=JobStatus.COMPLETED)
    returned.return_value = code
    return returned


# -- stopping ----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _sweeping(folder: Path) -> Iterator[None]:
    """Hold the lock by which members see that the sweep's process is there."""
    lock = folder / SWEEPING
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def _stop_reaches(folder: Path, kind: str) -> contextlib.AbstractContextManager[None]:
    """Pass a stop on to the members of a sweep that run; no other begins then."""

    def stop(number: int, frame: object) -> None:
        (folder / STOPPED).write_text(str(number), encoding="utf-8")
        with contextlib.suppress(OSError):  # the terminal of a lost connection is gone
            print("\nstopping the members that run at their next step", file=sys.stderr, flush=True)
        if kind == "slurm":
            raise _Cancelled
        for fate in fates(folder).values():
            if fate.state == "running" and fate.pid and fate.pid != os.getpid():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(fate.pid, signal.SIGTERM)

    return on_stop(stop)


def _stoppable() -> contextlib.AbstractContextManager[None]:
    """Between steps, and while another process is waited for, a stop ends the member as in the middle of a step."""
    heard: set[int] = set()

    def stop(number: int, frame: object) -> None:
        # Ctrl-C comes from the terminal, then SIGTERM from the sweep's process: the second must not cut off the first.
        if not heard or number in heard:
            heard.add(number)
            raise stopped(number)

    return on_stop(stop)


# -- telling members apart ---------------------------------------------------------------------------------------


class _Numbered:
    """Standard error with the member's number before every line; no terminal, so progress is plain lines."""

    def __init__(self, stream: TextIO, number: int):
        self._stream, self._head, self._line = stream, f"{number}| ", ""

    def write(self, text: str) -> int:
        *lines, self._line = (self._line + text).split("\n")
        if lines:  # whole lines at once, so that those of two members do not run into each other
            self._stream.write("".join(f"{self._head}{line}\n" if line else "\n" for line in lines))
        return len(text)

    def flush(self) -> None:
        self._stream.flush()

    def isatty(self) -> bool:
        return False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def _numbered(number: int) -> Iterator[None]:
    with contextlib.redirect_stderr(_Numbered(sys.stderr, number)):
        yield
