"""How long work goes: a live bar on a terminal, a plain line now and then elsewhere. All on standard error."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Column

_PLAIN_SECONDS = 15.0  # between plain lines
_SHOWN = ("loss", "eval/loss", "accuracy", "objective/score", "objective/kl", "gold/score")


class Progress:
    """Progress of one step. Several stretches of work may follow each other, never at once."""

    def __init__(self, label: str, silent: bool = False):
        self._label, self._silent = label, silent
        self._console = Console(stderr=True)
        self._latest: dict[str, float] = {}

    def say(self, message: str) -> None:
        if not self._silent:
            self._console.print(f"  {self._label}: {message}", markup=False, highlight=False, soft_wrap=True)

    def show(self, metrics: dict[str, float]) -> None:
        """Remember the numbers worth a look for the next line."""
        self._latest |= {name: value for name, value in metrics.items() if name in _SHOWN}

    @contextlib.contextmanager
    def over(self, total: int | None, start: int, unit: str) -> Iterator[Callable[[int], None]]:
        """Give a function to call with the number of units done since the last call; None: nobody knows how many."""
        if self._silent:
            yield lambda count: None
        elif self._console.is_terminal:
            with self._bar(total, start, unit) as advance:
                yield advance
        else:
            yield self._plain(total, start, unit)

    @contextlib.contextmanager
    def _bar(self, total: int | None, start: int, unit: str) -> Iterator[Callable[[int], None]]:
        known = total is not None
        columns = (
            TextColumn(f"  {self._label}"),
            BarColumn(16),
            MofNCompleteColumn() if known else TextColumn("{task.completed:,.0f}"),
            TextColumn(f"{unit}  {{task.fields[rate]}}/s "),
            *([TimeRemainingColumn(compact=True), TextColumn("left ")] if known else []),
            TextColumn("{task.fields[numbers]}", table_column=Column(ratio=1, no_wrap=True)),
        )
        begun = time.monotonic()
        with Bar(*columns, console=self._console, transient=True, expand=True) as bar:
            task = bar.add_task("", total=total, completed=start, rate="", numbers="")
            done = start

            def advance(count: int) -> None:
                nonlocal done
                done += count
                rate = _rate(done - start, begun)
                bar.update(task, completed=done, rate=_short(rate), numbers=self._numbers())

            yield advance

    def _plain(self, total: int | None, start: int, unit: str) -> Callable[[int], None]:
        begun = shown = time.monotonic()
        done = start

        def advance(count: int) -> None:
            nonlocal done, shown
            done += count
            if time.monotonic() - shown >= _PLAIN_SECONDS:
                shown = time.monotonic()
                rate = _rate(done - start, begun)
                of, left = ("", "") if total is None else (f"/{total:,}", f"{_clock((total - done) / rate)} left  ")
                line = f"  {self._label}: {done:,}{of} {unit}  {_short(rate)}/s  {left}{self._numbers()}"
                print(line.rstrip(), file=sys.stderr, flush=True)

        return advance

    def _numbers(self) -> str:
        return "  ".join(f"{name} {value:.3g}" for name, value in self._latest.items())


def _rate(done: int, begun: float) -> float:
    return max(done, 1e-9) / max(time.monotonic() - begun, 1e-9)


def _short(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.1f}"


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
