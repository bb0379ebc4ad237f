"""Launch the members of a sweep through Hydra's launchers, with what those leave open.

Members that run at once share the cores. A member that is killed stops no other: joblib ends its whole pool when one
of its processes is killed, and submitit stops waiting for the others. A stop reaches those that run, and the others do
not begin.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import DictConfig

from align.cores import cores
from align.errors import AlignError
from align.stop import STOPPED_CODE, on_stop, stopped
from align.sweeps import KILLED, Fate, fates

Task = Callable[[DictConfig], int]
STOPPED = "stopped"  # a file in the sweep's folder: who has not begun shall not


class MemberTask:
    """What a launcher runs as a member: the task, but for those that have ended before and after a stop."""

    def __init__(self, task: Task, folder: Path):
        self.task, self.folder = task, folder
        self.ended: dict[int, int] = {}  # exit codes of those that a pool launched anew shall not do again
        self.at_once = 1

    def __call__(self, config: DictConfig) -> int:
        number = HydraConfig.get().job.num
        if number in self.ended:
            return self.ended[number]
        if (self.folder / STOPPED).exists():
            return STOPPED_CODE
        with _stoppable(), _numbered(number) if self.at_once > 1 else contextlib.nullcontext():
            return self.task(config)


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
        if self.kind == "joblib":
            run = self._in_a_pool
        elif self.kind == "local":
            run = self._each_by_itself
        else:
            return self.inner.launch(list(members.values()), initial_job_idx)
        with _stop_reaches(self.task.folder, by_terminal=self.kind == "joblib"):
            return run(members)

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
        for _ in members:
            try:
                return self.inner.launch(list(members.values()), first)
            except BrokenProcessPool:
                known = self._settled(members)
            cut = [number for number, fate in known.items() if fate.state == "killed" and number not in codes]
            codes |= {number: fate.code for number, fate in known.items() if number not in cut}
            if (self.task.folder / STOPPED).exists():
                return [_returned(codes.get(number, STOPPED_CODE)) for number in members]
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
        # Ctrl-C would end submitit's process over a member, and so the member: blocked here, it is blocked there.
        blocked = (signal.SIG_BLOCK, [signal.SIGINT])
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


def _stop_reaches(folder: Path, by_terminal: bool) -> contextlib.AbstractContextManager[None]:
    """Pass SIGTERM and Ctrl-C on to the members of a sweep that run on this machine; no other begins then.

    `by_terminal`: their terminal tells them of Ctrl-C already, and a second signal would end them at once.
    """

    def stop(number: int, frame: object) -> None:
        (folder / STOPPED).touch()
        print("\nstopping the members that run at their next step", file=sys.stderr, flush=True)
        for fate in fates(folder).values():
            if fate.state == "running" and fate.pid and not (by_terminal and number == signal.SIGINT):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(fate.pid, signal.SIGTERM)

    return on_stop(stop)


def _stoppable() -> contextlib.AbstractContextManager[None]:
    """Between steps, and while another process is waited for, a stop ends the member as in the middle of a step."""

    def stop(number: int, frame: object) -> None:
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
