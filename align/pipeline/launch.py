"""Launch the members of a sweep through Hydra's launchers.

This module adds what the launchers lack:

* Members that run at the same time share the cores.
* A killed member does not stop the others. On their own, joblib ends its whole pool if one of its
  processes is killed, and submitit stops waiting for the other members.
* A stop signal reaches the running members, and no other member starts.
* Members on this machine end with the process that runs the sweep, however that process ends.
* Jobs that wait in SLURM's queue are cancelled if the sweep is stopped or fails.
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
# A file in the sweep's folder with the number of the stop signal. No member starts once it exists.
STOPPED = "stopped"
SWEEPING = "sweep.lock"  # a file there; the sweep's process holds a lock on it as long as it lives
_STOP_CODES = {128 + number for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
_SUBMITTED = "_submitted.pkl"  # submitit writes JOBID_submitted.pkl for each job
_QUEUE_SECONDS = 60.0  # between two calls of squeue to report why jobs wait
_FIRST_QUEUE_SECONDS = 5.0  # before the first such call, and between two looks while jobs end


class MemberTask:
    """The function that a launcher runs for each member.

    It runs the task, except for members that have ended already, and after a stop.

    Attributes:
        ended: exit codes by number of members that have ended. A pool that is launched again does
            not run them again.
        at_once: how many members run at the same time.
        kind: the kind of launcher: basic, joblib, local or slurm.
    """

    def __init__(self, task: Task, folder: Path):
        self.task, self.folder = task, folder
        self.ended: dict[int, int] = {}
        self.at_once = 1
        self.kind = "basic"

    def __call__(self, config: DictConfig) -> int:
        number = HydraConfig.get().job.num
        if number in self.ended:
            return self.ended[number]
        # submitit's process is a grandchild of the sweep's process, so it watches the sweep's lock.
        # joblib's processes are children and watch their parent: see `_in_a_pool`.
        if self.kind == "local":
            _end_with_sweep(self.folder)
        code = stop_code(self.folder)
        if code is None:
            try:
                with (
                    _stoppable(),
                    _numbered(number) if self.at_once > 1 else contextlib.nullcontext(),
                ):
                    code = self.task(config)
            except Preempted as error:
                code = error.exit_code
        if self.kind in ("joblib", "local") and not _is_held(self.folder / SWEEPING):
            # The sweep is gone, and a process of loky (joblib's pool) would wait for more work.
            os._exit(code)
        return code


def stop_code(folder: Path) -> int | None:
    """Return the exit code of members that do not start because of a stop; None if no stop."""
    try:
        return 128 + int((folder / STOPPED).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError:  # the file is being written: it is still empty
        return STOPPED_CODE


@functools.cache  # once per process, because a process may run several members
def _end_with_sweep(folder: Path) -> None:
    end_when(lambda: not _is_held(folder / SWEEPING))


def _is_held(lock: Path) -> bool:
    """Return whether some process holds a lock on the file. A lock ends when its process ends."""
    try:
        with lock.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        pass
    return False


class Prepared(NamedTuple):
    """A member whose config was composed and checked.

    Attributes:
        threads: `hardware.threads` of its config.
        num_processes: processes of each of its steps.
        to_do: whether any step is left to run.
    """

    threads: int | None
    num_processes: int
    to_do: bool


class Launcher:
    """A launcher for Hydra's sweeper that wraps the launcher of the config.

    Args:
        inner: Hydra's basic, joblib or submitit launcher.
        settings: its config, `hydra.launcher`.
        task: the task that `inner` was set up with.
        prepare: a function that composes and checks every member. It is called before the first
            member starts.
    """

    def __init__(
        self,
        inner: Any,
        settings: DictConfig,
        task: MemberTask,
        prepare: Callable[[], dict[int, Prepared]],
    ):
        self.inner, self.settings, self.task, self.prepare = inner, settings, task, prepare
        self.kind = (
            str(settings.get("_target_")).rpartition(".")[2].removesuffix("Launcher").lower()
        )
        self.members: dict[int, Prepared] = {}
        self.sharing = 1  # members that compute at the same time

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Run a batch of members. The return value of each is its exit code."""
        members = {
            initial_job_idx + i: list(overrides) for i, overrides in enumerate(job_overrides)
        }
        if not self.members:
            self.members = self.prepare()
            # The first of several batches is the largest. All batches get its share of the cores,
            # so that all members run alike.
            self.task.at_once = members_at_once(self.kind, self.settings, len(members))
            self.sharing = max(
                1, min(self.task.at_once, sum(member.to_do for member in self.members.values()))
            )
            self._tell()
        if self.task.at_once > 1:
            members = {
                number: self._with_share(number, overrides) for number, overrides in members.items()
            }
        self.task.kind = self.kind
        runs = {"joblib": self._in_a_pool, "local": self._each_by_itself, "slurm": self._in_slurm}
        run = runs.get(self.kind, self._in_this_process)
        with _sweeping(self.task.folder), _stop_reaches(self.task.folder, self.kind):
            returned = run(members)
        code = stop_code(self.task.folder)
        if code is None:
            return returned
        # Members get SIGTERM for any stop. The sweep reports the signal that it got itself.
        return [_returned(code) if each.return_value in _STOP_CODES else each for each in returned]

    def _in_this_process(self, members: dict[int, list[str]]) -> list[JobReturn]:
        return list(self.inner.launch(list(members.values()), min(members)))

    def _tell(self) -> None:
        told, where = f"-- {len(self.members)} members", self.settings.get("submitit_folder")
        if self.task.at_once > 1:
            shares = [
                share for number in self.members if (share := self._share(number)) is not None
            ]
            told += f", {self.task.at_once} at once"
            told += f", {min(shares)} of {cores()} cores for each process" if shares else ""
        if where is not None:
            told += f"; what they print: {Path(where).parent}"
        if self.task.at_once > 1 or where is not None:
            print(told, file=sys.stderr, flush=True)

    def _share(self, number: int) -> int | None:
        """Return an equal share of the cores for each process of a member.

        None if the member sets `hardware.threads` itself.
        """
        threads, num_processes, _ = self.members[number]
        return max(1, cores() // (self.sharing * num_processes)) if threads is None else None

    def _with_share(self, number: int, overrides: list[str]) -> list[str]:
        share = self._share(number)
        return overrides if share is None else [*overrides, f"hardware.threads={share}"]

    def _in_a_pool(self, members: dict[int, list[str]]) -> list[JobReturn]:
        """Run members in joblib's pool.

        If the pool breaks, run the members that were cut off one at a time. Then run the members
        that are left in a new pool.
        """
        first, codes = min(members), self.task.ended
        _start_resource_tracker()
        self.inner.joblib |= {"initializer": end_with_parent, "initargs": (os.getpid(),)}
        for _ in members:
            try:
                return list(self.inner.launch(list(members.values()), first))
            except BrokenProcessPool:
                known = self._settled(members)
            cut = [
                number
                for number, fate in known.items()
                if fate.state == "killed" and number not in codes
            ]
            codes |= {number: fate.code for number, fate in known.items() if number not in cut}
            stop = stop_code(self.task.folder)
            if stop is not None:
                return [_returned(codes.get(number, stop)) for number in members]
            if not cut:
                continue  # the killed process ran no member: start the pool again
            names = ", ".join(map(str, cut))
            told = (
                "-- a member's process was killed (out of memory?) and joblib ended its pool:"
                f" {names} cut off; "
            )
            print(
                told + ("each" if len(cut) > 1 else "it") + " goes on by itself",
                file=sys.stderr,
                flush=True,
            )
            for number in cut:  # one at a time: the member at fault then breaks no other
                codes[number] = self._alone(members[number], number).return_value
        raise AlignError(
            "joblib's processes are killed before a member begins in them; try launcher=basic"
        )

    def _settled(self, members: dict[int, list[str]]) -> dict[int, Fate]:
        """Wait until the processes of a broken pool are gone, and return the started members."""
        while True:
            known = {
                number: fate
                for number, fate in fates(self.task.folder).items()
                if number in members
            }
            if all(fate.state != "running" for fate in known.values()):
                return known
            time.sleep(0.05)

    def _each_by_itself(self, members: dict[int, list[str]]) -> list[JobReturn]:
        """Run each member as its own submitit job, as many at the same time as the cores allow."""
        # Ctrl-C or a closed terminal would end submitit's process that runs the member. A child
        # inherits blocked signals, so they are blocked here. The member gets SIGTERM from this
        # process instead.
        blocked = (signal.SIG_BLOCK, [signal.SIGINT, signal.SIGHUP])
        with ThreadPoolExecutor(
            self.task.at_once, initializer=signal.pthread_sigmask, initargs=blocked
        ) as pool:
            return list(pool.map(self._alone, members.values(), members.keys()))

    def _alone(self, overrides: list[str], number: int) -> JobReturn:
        returned: JobReturn
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
            print(
                f"-- {number}: {fate.state if fate else 'not begun'}", file=sys.stderr, flush=True
            )
        return returned

    def _in_slurm(self, members: dict[int, list[str]]) -> list[JobReturn]:
        """Run each member as a SLURM job. Jobs that are left at the end are cancelled."""
        if shutil.which("sbatch") is None or shutil.which("srun") is None:
            raise ConfigError(
                "launcher=slurm: sbatch and srun are not on this machine; use"
                " launcher=submitit_local"
            )
        folder = Path(self.settings.submitit_folder)
        while "%" in folder.name or "%" in str(folder.parent):
            folder = folder.parent
        queue = Queue(folder)
        try:
            with queue.telling():
                try:
                    return list(self.inner.launch(list(members.values()), min(members)))
                except Exception as error:
                    if not type(error).__module__.startswith("submitit."):
                        raise
                    if not queue.jobs():
                        told = " ".join(str(error).split())
                        raise StoreError(
                            f"launcher=slurm: SLURM did not take the jobs: {told}"
                        ) from error
                    queue.wait()  # submitit stops waiting if a job is killed; the others still run
        except _Cancelled:
            queue.cancel()
            with contextlib.suppress(_Cancelled):  # a second signal: do not wait
                queue.wait()
        finally:
            queue.cancel()
        known, stop = fates(self.task.folder), stop_code(self.task.folder)
        codes = {number: fate.code for number, fate in known.items() if fate.state != "running"}
        return [
            _returned(codes.get(number, KILLED if stop is None else stop)) for number in members
        ]


class _Cancelled(BaseException):
    """A stop of the sweep while it waits for SLURM.

    Not an `Exception`, because submitit catches those and goes on.
    """


class Queue:
    """The jobs that a sweep put into SLURM's queue.

    Args:
        folder: the folder in which submitit leaves a file for each job.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._before = set(self._submitted())  # jobs of an earlier batch

    def _submitted(self) -> list[str]:
        return sorted(
            path.name.removesuffix(_SUBMITTED) for path in self._folder.rglob(f"*{_SUBMITTED}")
        )

    def jobs(self) -> list[str]:
        return [job for job in self._submitted() if job not in self._before]

    def left(self) -> dict[str, tuple[str, str]]:
        """Return SLURM's state of each job that has not ended, and its reason, by job id."""
        jobs = self.jobs()
        if not jobs:
            return {}
        command = ["squeue", "--noheader", "--format=%i|%T|%r", f"--jobs={','.join(jobs)}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        rows = [line.split("|") for line in done.stdout.splitlines()]
        return {row[0].strip(): (row[1], row[2].strip()) for row in rows if len(row) == 3}

    def wait(self) -> None:
        """Wait until no job is left."""
        while self.left():
            time.sleep(_FIRST_QUEUE_SECONDS)

    def cancel(self) -> None:
        """Cancel the jobs that are left. Running jobs get SIGTERM from SLURM and save."""
        if left := self.left():
            subprocess.run(["scancel", *left], capture_output=True, check=False)
            print(f"-- cancelled in SLURM: {', '.join(left)}", file=sys.stderr, flush=True)

    @contextlib.contextmanager
    def telling(self) -> Iterator[None]:
        """Print in the background why a job waits, each time the reason changes."""
        over = threading.Event()

        def tell() -> None:
            told: dict[str, str] = {}
            pause = _FIRST_QUEUE_SECONDS
            while not over.wait(pause):
                pause = _QUEUE_SECONDS
                waiting = {
                    job: why for job, (state, why) in self.left().items() if state == "PENDING"
                }
                for job, why in waiting.items():
                    if told.get(job) != why:
                        print(
                            f"-- {job} waits in SLURM's queue: {why}", file=sys.stderr, flush=True
                        )
                told = waiting

        threading.Thread(target=tell, daemon=True).start()
        try:
            yield
        finally:
            over.set()


def members_at_once(kind: str, settings: DictConfig, count: int) -> int:
    """Return how many of `count` members share this machine.

    joblib: `n_jobs`. submitit on this machine: one process for each `cpus_per_task` cores. SLURM:
    1, because a member gets its own cores from the cluster.
    """
    if kind == "joblib":
        jobs = int(settings.n_jobs)
        return min(count, jobs if jobs > 0 else max(1, cores() + 1 + jobs))
    if kind == "local":
        return min(count, max(1, cores() // (settings.cpus_per_task or 1)))
    return 1


def _start_resource_tracker() -> None:
    """Start loky's process that removes temporary files, so that SIGHUP does not end it.

    It ignores SIGTERM and Ctrl-C. A closed terminal would end it, and the one that loky starts
    then prints a traceback for every file that it does not know.
    """
    from joblib.externals.loky.backend.resource_tracker import ensure_running

    # The new process inherits the mask.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGHUP])
    try:
        ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _returned(code: int) -> JobReturn:
    returned = JobReturn(status=JobStatus.COMPLETED)
    returned.return_value = code
    return returned


# -- stopping --------------------------------------------------------------------------------------


@contextlib.contextmanager
def _sweeping(folder: Path) -> Iterator[None]:
    """Hold the lock by which members see that the sweep's process is alive."""
    lock = folder / SWEEPING
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def _stop_reaches(folder: Path, kind: str) -> contextlib.AbstractContextManager[None]:
    """Pass a stop signal on to the running members of a sweep, and start no other member."""

    def stop(number: int, frame: object) -> None:
        (folder / STOPPED).write_text(str(number), encoding="utf-8")
        with contextlib.suppress(OSError):  # after a lost connection there is no terminal
            print("\nstopping the members that run at their next step", file=sys.stderr, flush=True)
        if kind == "slurm":
            raise _Cancelled
        for fate in fates(folder).values():
            if fate.state == "running" and fate.pid and fate.pid != os.getpid():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(fate.pid, signal.SIGTERM)

    return on_stop(stop)


def _stoppable() -> contextlib.AbstractContextManager[None]:
    """Let a stop signal end a member between steps and while it waits for another process."""
    heard: set[int] = set()

    def stop(number: int, frame: object) -> None:
        # Ctrl-C comes from the terminal, then SIGTERM from the sweep's process. The second signal
        # must not interrupt the handling of the first. The same signal again may.
        if not heard or number in heard:
            heard.add(number)
            raise stopped(number)

    return on_stop(stop)


# -- telling members apart -------------------------------------------------------------------------


class Numbered:
    """Standard error with the member's number before every line.

    It is not a terminal, so progress is printed as plain lines.
    """

    def __init__(self, stream: TextIO, number: int):
        self._stream, self._head, self._line = stream, f"{number}| ", ""

    def write(self, text: str) -> int:
        *lines, self._line = (self._line + text).split("\n")
        if lines:  # write only whole lines, so that lines of two members do not mix
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
    with contextlib.redirect_stderr(Numbered(sys.stderr, number)):
        yield
