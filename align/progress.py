"""Progress of long work: a live bar on a terminal, a plain line now and then elsewhere. All on standard error."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.text import Text

_PLAIN_SECONDS = 15.0  # between plain lines
_SHOWN = ("loss", "eval/loss", "accuracy", "objective/score", "objective/kl", "gold/score")
_SHOWN_FROM = "reward/"  # PPO's: every part of the reward, but for
_NOT_SHOWN = "reward/length"  # the response's tokens


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
        """Remember the numbers worth a look for the next line; a part of the reward may be missing in an iteration."""
        parts = [name for name in metrics if name.startswith(_SHOWN_FROM) and name != _NOT_SHOWN]
        self._latest |= {name: metrics[name] for name in (*_SHOWN, *parts) if name in metrics}

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
            TextColumn(f"{unit}  {{task.fields[rate]}} "),
            *([TimeRemainingColumn(compact=True), TextColumn("left ")] if known else []),
        )
        begun = time.monotonic()
        with _BarWithLines(*columns, console=self._console, transient=True) as bar:
            task = bar.add_task("", total=total, completed=start, rate="")
            done = start

            def advance(count: int) -> None:
                nonlocal done
                done += count
                rate = _rate(done - start, begun)
                bar.lines = _wrapped(self._numbers(), self._console.width - len(_INDENT))
                bar.update(task, completed=done, rate=_pace(rate))

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
                line = f"  {self._label}: {done:,}{of} {unit}  {_pace(rate)}  {left}{'  '.join(self._numbers())}"
                print(line.rstrip(), file=sys.stderr, flush=True)

        return advance

    def _numbers(self) -> list[str]:
        """The latest numbers as `score 1.2`: PPO's names need no heading beside each other."""
        short = {name: name.removeprefix("objective/").removeprefix(_SHOWN_FROM) for name in self._latest}
        return [f"{short[name]} {value:.3g}" for name, value in self._latest.items()]


class _BarWithLines(Bar):
    """A bar with lines of text under it, where beside it most of them would be cut off on a narrow terminal."""

    lines: tuple[str, ...] = ()

    def get_renderables(self) -> Iterator[RenderableType]:
        yield from super().get_renderables()
        for line in self.lines:
            yield Text(_INDENT + line, no_wrap=True, overflow="ellipsis")


_INDENT = "    "


def _wrapped(words: list[str], width: int) -> tuple[str, ...]:
    """The words in as few lines as hold them whole."""
    lines: list[str] = []
    for word in words:
        if lines and len(lines[-1]) + 2 + len(word) <= width:
            lines[-1] += f"  {word}"
        else:
            lines.append(word)
    return tuple(lines)


def _rate(done: int, begun: float) -> float:
    return max(done, 1e-9) / max(time.monotonic() - begun, 1e-9)


def _pace(rate: float) -> str:
    """`120/s`, `4.2/s`; what takes longer than a second as `12.3 s each`."""
    if rate < 1:
        return f"{1 / rate:,.1f} s each"
    return f"{rate:,.0f}/s" if rate >= 100 else f"{rate:.1f}/s"


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
