"""Score episodes with a user's own functions: rewards, rules for judging, checks.

They are called as TRL calls them.
"""

from __future__ import annotations

import asyncio
import atexit
import copy
import functools
import inspect
import math
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from align.errors import ConfigError
from align.runtime.user_functions import describe_error, load_function, require_fit, short_names
from align.verifiers.episodes import Episodes

T = TypeVar("T")

# Names of the parts of a reward that are not functions. A function with such a name gets a longer
# one.
_OWN_PARTS = (
    "model",
    *(f"model_{number}" for number in range(1, 100)),
    "length",
    "missing_eos",
    "disagreement",
    "unscored",
    "score",
)
_SAMPLE_COLUMNS = ("step", "prompt", "response", "score", "kl")  # of the table of samples
_NOT_COLUMNS = ("prompt", "prompts", "completion", "completions", "completion_ids")


@dataclass(frozen=True)
class RewardFunction:
    """A user's function.

    Attributes:
        name: short and unique; the name of its part of the reward.
        reference: as in the config.
        call: f(prompts=, completions=, completion_ids=, **columns) -> a number or None for each
            completion, or an awaitable of that [TRL].
        role: its role, for error messages.
    """

    name: str
    reference: str
    call: Callable[..., Any]
    role: str = "reward function"


def load_functions(references: Sequence[str]) -> list[RewardFunction]:
    """Load the functions that a config names, sorted by reference.

    They are sorted because keys do not record the order in which they were given.

    Raises:
        ConfigError: one of them cannot be loaded.
    """
    names = short_names(sorted(references), _OWN_PARTS)
    return [
        RewardFunction(name, reference, load_function(reference))
        for reference, name in names.items()
    ]


@dataclass
class Notes:
    """The values that functions log by TRL's `log_extra` and `log_metric`.

    Attributes:
        count: number of episodes.
        columns: further columns of the table of samples, with a value per episode; `extra/NAME` if
            the table has a column NAME already.
        metrics: the numbers that were logged under each name.
    """

    count: int
    columns: dict[str, list[Any]] = field(default_factory=dict)
    metrics: dict[str, list[float]] = field(default_factory=dict)

    def log_extra(self, column: str, values: Sequence[Any]) -> None:
        if len(values) != self.count:
            raise ValueError(
                f"log_extra: expected {self.count} values for {column!r}, got {len(values)}"
            )
        taken = column in _SAMPLE_COLUMNS or column.startswith("reward/")
        self.columns[f"extra/{column}" if taken else column] = list(values)

    def log_metric(self, name: str, value: float) -> None:
        if not math.isfinite(number := float(value)):
            raise ValueError(f"log_metric: expected a finite number for {name!r}, got {value}")
        self.metrics.setdefault(name, []).append(number)


def call_functions(
    functions: Sequence[RewardFunction],
    episodes: Episodes,
    trainer_state: Any = None,
    notes: Notes | None = None,
    occasion: str = "",
) -> dict[str, list[float | None]]:
    """Return the numbers that each function gives to all episodes, by function name.

    A number is None if the function does not apply to an episode. Functions are called as TRL's
    GRPOTrainer calls them: by keyword, with messages for prompts and completions. Each gets its own
    lists, so that it cannot change what another function sees. `async` functions run concurrently.

    Args:
        trainer_state: None outside of training.
        notes: collects what functions log.
        occasion: the time of the call for an error message, such as " at iteration 3".

    Raises:
        ConfigError: a function raised, or did not return a finite number or None for each episode.
    """
    notes = notes or Notes(len(episodes.texts))
    answers: dict[str, Any] = {}
    waiting: list[tuple[RewardFunction, Awaitable[Any]]] = []
    try:
        for function in functions:
            arguments, columns = _arguments(episodes, trainer_state, notes)
            require_fit(function.reference, function.call, arguments, columns)
            try:
                answer = _listed(function.call(**arguments))
            except (Exception, SystemExit) as error:
                raise _raised(function, error, occasion) from error
            if inspect.isawaitable(answer):
                waiting.append((function, answer))
            answers[function.name] = answer
    except BaseException:
        for _, answer in waiting:
            if inspect.iscoroutine(answer):
                answer.close()  # a coroutine that never began would warn
        raise
    if waiting:
        answers |= _in_event_loop(_await_all(waiting, occasion))
    return {f.name: _checked(f, answers[f.name], len(episodes.texts), occasion) for f in functions}


def _arguments(
    episodes: Episodes, trainer_state: Any, notes: Notes
) -> tuple[dict[str, Any], list[str]]:
    """Return the arguments of a function, and which of them are columns.

    A column is None for a row that lacks it.
    """
    columns = list(
        dict.fromkeys(key for row in episodes.rows for key in row if key not in _NOT_COLUMNS)
    )
    arguments: dict[str, Any] = {
        "prompts": [[dict(message) for message in row["prompt"]] for row in episodes.rows],
        "completions": [[{"role": "assistant", "content": text}] for text in episodes.texts],
        "completion_ids": [list(ids) for ids in episodes.responses],
    }
    arguments |= {
        column: [copy.deepcopy(row.get(column)) for row in episodes.rows] for column in columns
    }
    arguments |= {
        "trainer_state": trainer_state,
        "log_extra": notes.log_extra,
        "log_metric": notes.log_metric,
    }
    return arguments, columns


@functools.cache
def _event_loop() -> asyncio.Runner:
    """Return the one event loop for all calls, as in TRL.

    A client or a lock that a function keeps belongs to the loop that it was used in.
    """
    runner = asyncio.Runner()
    atexit.register(runner.close)
    return runner


def _in_event_loop(work: Coroutine[Any, Any, T]) -> T:
    """Run `work` in the event loop, and return its result.

    In a notebook this thread already runs a loop, so another thread runs `work`.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return _event_loop().run(work)
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(_event_loop().run, work).result()


async def _await_all(
    waiting: Sequence[tuple[RewardFunction, Awaitable[Any]]], occasion: str
) -> dict[str, Any]:
    """Await all functions, and return their answers by name.

    After a first failure the others are cancelled, and end before it is raised.
    """

    async def one(function: RewardFunction, answer: Awaitable[Any]) -> tuple[str, Any]:
        try:
            return function.name, _listed(await answer)
        except (Exception, SystemExit) as error:
            raise _raised(function, error, occasion) from error

    tasks = [asyncio.ensure_future(one(function, answer)) for function, answer in waiting]
    try:
        return dict(await asyncio.gather(*tasks))
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise


def _raised(function: RewardFunction, error: BaseException, occasion: str) -> ConfigError:
    if isinstance(error, ConfigError):  # one of align's own rewards says what is wrong itself
        return ConfigError(f"{function.reference}{occasion}: {error}")
    return ConfigError(
        f"{describe_error(error)}; raised by your {function.role} {function.reference}{occasion}"
    )


def _listed(answer: Any) -> Any:
    """Return an iterable as a list, and any other answer unchanged.

    This runs the user's code if the answer is a generator.
    """
    if (
        isinstance(answer, str | bytes | Mapping)
        or not isinstance(answer, Iterable)
        or inspect.isawaitable(answer)
    ):
        return answer
    return list(answer)


def _checked(
    function: RewardFunction, answer: Any, count: int, occasion: str
) -> list[float | None]:
    """Return a function's answer as finite floats and None."""
    expected = (
        f"{function.reference}{occasion}: expected a list of {count} finite numbers or None, one"
        " for each completion"
    )
    if not isinstance(answer, list):
        raise ConfigError(f"{expected}, got {str(answer)[:80]} ({type(answer).__name__})")
    if len(answer) != count:
        raise ConfigError(f"{expected}, got {len(answer)}: {str(answer)[:80]}")
    numbers: list[float | None] = []
    for place, value in enumerate(answer):
        number = None if value is None else _number(value)
        if number is not None and not math.isfinite(number):
            raise ConfigError(
                f"{expected}, got {str(value)[:80]} ({type(value).__name__}) for completion {place}"
            )
        numbers.append(number)
    return numbers


def _number(value: Any) -> float:
    """Return a value as a float; NaN if it is no number."""
    try:
        return math.nan if isinstance(value, str | bytes) else float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        return math.nan  # a tensor of several numbers raises RuntimeError
