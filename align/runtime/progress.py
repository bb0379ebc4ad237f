"""Progress of long work on standard error: a bar on a terminal, else a plain line at intervals."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

from rich.live import Live
from rich.text import Text

from align.runtime.console import plain_console, sentence_lines

PLAIN_SECONDS = 15.0  # between plain lines
_SHOWN = ("loss", "eval/loss", "accuracy", "objective/score", "objective/kl", "gold/score")
_SHOWN_FROM = "reward/"  # PPO: all parts of the reward are shown, except `_NOT_SHOWN`
_NOT_SHOWN = "reward/length"  # the tokens of the response


class Progress:
    """The progress of one step. A step may have several phases of work, one after the other."""

    def __init__(self, label: str, silent: bool = False):
        self._label, self._silent = label, silent
        self._console = plain_console(stderr=True)
        self._latest: dict[str, float] = {}

    def say(self, message: str) -> None:
        if self._silent:
            return
        line = f"{self._label}: {message}"
        if self._console.is_terminal:  # it would break a long line inside a word; a file does not
            line = "\n  ".join(sentence_lines(line, self._console.width - len(_INDENT)))
        self._console.print(f"  {line}", soft_wrap=True)

    def show(self, metrics: dict[str, float]) -> None:
        """Remember the most important metrics for the next line.

        A part of the reward may be missing in an iteration. Then its last value is kept.
        """
        parts = [name for name in metrics if name.startswith(_SHOWN_FROM) and name != _NOT_SHOWN]
        self._latest |= {name: metrics[name] for name in (*_SHOWN, *parts) if name in metrics}

    @contextlib.contextmanager
    def over(self, total: int | None, start: int, unit: str) -> Iterator[Callable[[int], None]]:
        """Yield a function to call with the number of units done since the last call.

        Args:
            total: the number of units; None if unknown.
            start: the units that were done before.
            unit: the word for units in the output.
        """
        if self._silent:
            yield lambda count: None
        elif self._console.is_terminal:
            with self._bar(total, start, unit) as advance:
                yield advance
        else:
            yield self._plain(total, start, unit)

    @contextlib.contextmanager
    def _bar(self, total: int | None, start: int, unit: str) -> Iterator[Callable[[int], None]]:
        """Show a bar with the numbers beside and below it, in as many lines as they need."""
        begun, done, rate = time.monotonic(), start, 0.0

        def shown() -> Text:
            bar = "" if total is None else f"{_drawn(done / total if total else 1.0)} "
            lines = self._lines(bar, done, total, unit, rate)
            return Text("\n".join(lines), no_wrap=True, overflow="ellipsis")

        def advance(count: int) -> None:
            nonlocal done, rate
            done += count
            rate = _rate(done - start, begun)

        with Live(console=self._console, get_renderable=shown, transient=True):
            yield advance

    def _plain(self, total: int | None, start: int, unit: str) -> Callable[[int], None]:
        begun = shown = time.monotonic()
        done = start

        def advance(count: int) -> None:
            nonlocal done, shown
            done += count
            if time.monotonic() - shown >= PLAIN_SECONDS:
                shown = time.monotonic()
                rate = _rate(done - start, begun)
                print(
                    "\n".join(self._lines("", done, total, unit, rate)), file=sys.stderr, flush=True
                )

        return advance

    def _lines(self, bar: str, done: int, total: int | None, unit: str, rate: float) -> list[str]:
        """Return the count, the rate, the time left and the latest metrics, as lines that fit."""
        room = self._console.width - len(_INDENT)
        count = f"{done:,}" if total is None else f"{done:,}/{total:,}"
        words = [f"{self._label}: {bar}{count} {unit}"]
        if len(words[0]) > room:
            words = [f"{self._label}: {count} {unit}"]
        if len(words[0]) > room:
            words = [f"{self._label}: {count}", unit]
        if rate > 0:
            words.append(_pace(rate))
        if rate > 0 and total is not None:
            words.append(f"{_clock((total - done) / rate)} left")
        words += self._numbers()
        first, *others = _wrapped(words, room)
        return [f"  {first}", *(_INDENT + line for line in others)]

    def _numbers(self) -> list[str]:
        """Return the latest metrics as `score 1.2`, without the prefixes of PPO's names."""
        short = {
            name: name.removeprefix("objective/").removeprefix(_SHOWN_FROM) for name in self._latest
        }
        return [f"{short[name]} {value:.3g}" for name, value in self._latest.items()]


_INDENT = "    "  # before all lines except the first
_BAR = 16  # characters


def _wrapped(words: list[str], width: int) -> tuple[str, ...]:
    """Join words into as few lines as possible without breaking a word."""
    lines: list[str] = []
    for word in words:
        if lines and len(lines[-1]) + 2 + len(word) <= width:
            lines[-1] += f"  {word}"
        else:
            lines.append(word)
    return tuple(lines)


def _drawn(share: float) -> str:
    """Return a bar of 16 characters."""
    full = min(_BAR, round(_BAR * share))
    return "━" * full + "╌" * (_BAR - full)


def _rate(done: int, begun: float) -> float:
    return done / max(time.monotonic() - begun, 1e-9)


def _pace(rate: float) -> str:
    """Format a rate as `120/s` or `4.2/s`, and a rate below one per second as `12.3 s each`."""
    if rate < 1:
        return f"{1 / rate:,.1f} s each"
    return f"{rate:,.0f}/s" if rate >= 100 else f"{rate:.1f}/s"


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
