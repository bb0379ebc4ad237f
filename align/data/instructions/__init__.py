"""Generated training prompts with instructions that a program can check.

A prompt is a base task and one to three instructions of IFEval's kinds, with IFEval's columns
`instruction_id_list` and `kwargs`. The reward function `ifeval` scores answers to them. The texts
are our own: none is from IFEval, so a model that is trained on them can be evaluated on IFEval.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from align.data.instructions.kinds import KINDS, compatible, stated
from align.data.instructions.tasks import draw_task, topics_of
from align.errors import ConfigError, did_you_mean

__all__ = ["VERSION", "info", "rows"]

# Raise this with every change to the rows that the same options give.
VERSION = 1

USUAL_ROWS = {"train": 5000, "validation": 500, "test": 500}  # if no number of rows is given
_QUESTION = "detectable_format:constrained_response"  # yes, no or maybe: it needs a question
_MOST_TRIES = 1000  # draws of a prompt that is not there yet


@dataclass(frozen=True)
class _Options:
    """The options of the card.

    Attributes:
        seed: of all draws.
        max_instructions: most instructions of a prompt; every number from 1 on is equally likely.
        kinds: the kinds to use.
        held_out_kinds: kinds that only the test split has.
    """

    seed: int = 0
    max_instructions: int = 3
    kinds: tuple[str, ...] = tuple(KINDS)
    held_out_kinds: tuple[str, ...] = ()


def info(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metadata of a dataset: nothing, because no gold scorer knows these prompts."""
    return {}


def rows(
    record: str, splits: Sequence[str], limits: Mapping[str, int | None], options: Mapping[str, Any]
) -> dict[str, list[dict[str, Any]]]:
    """Return generated prompts by split.

    Topics of base tasks are in one split each: 80 % train, 10 % validation, 10 % test.

    Args:
        limits: number of rows per split; None: `USUAL_ROWS`.
        options: `seed` (0), `max_instructions` (3), `kinds` (all 25) and `held_out_kinds` (none).

    Raises:
        ConfigError: the record is not prompts, an option or a split is wrong, or there are fewer
            different prompts than asked for.
    """
    if record != "prompts":
        raise ConfigError(f"record: card:instructions has prompts alone, got {record}")
    read = _read_options(options)
    made = {}
    for split in splits:
        if split not in limits:
            raise ConfigError(f"splits: expected {', '.join(limits)}, got {split!r}")
        given = limits[split]
        made[split] = list(_generate(split, USUAL_ROWS[split] if given is None else given, read))
    return made


def _generate(split: str, count: int, options: _Options) -> Iterator[dict[str, Any]]:
    rng = random.Random(f"instructions {options.seed} {split}")
    topics, seen = topics_of(split), set()
    held_out = () if split == "test" else options.held_out_kinds
    kinds = [kind for kind in options.kinds if kind not in held_out]
    for number in range(count):
        for _ in range(_MOST_TRIES):
            row = _draw(rng, topics, kinds, options.max_instructions)
            if row["prompt"][0]["content"] not in seen:
                break
        else:
            raise ConfigError(
                f"{split}_rows: these kinds of instruction give about {number:,} different prompts"
                f" there, got {count:,}"
            )
        seen.add(row["prompt"][0]["content"])
        yield row


def _draw(
    rng: random.Random, topics: Sequence[str], kinds: Sequence[str], most: int
) -> dict[str, Any]:
    chosen: list[str] = []
    for _ in range(rng.randint(1, most)):
        fitting = [kind for kind in kinds if all(compatible(kind, other) for other in chosen)]
        if fitting:
            chosen.append(rng.choice(fitting))
    task = draw_task(rng, topics, is_question=_QUESTION in chosen)
    arguments = [KINDS[kind].draw(rng, task) for kind in chosen]
    said = [stated(rng, kind, own) for kind, own in zip(chosen, arguments, strict=True)]
    return {
        "prompt": [{"role": "user", "content": " ".join([task, *said])}],
        "instruction_id_list": chosen,
        "kwargs": arguments,
    }


def _read_options(options: Mapping[str, Any]) -> _Options:
    known = _Options.__dataclass_fields__
    for name in options:
        if name not in known:
            hint = did_you_mean(str(name), known)
            raise ConfigError(
                f"options.{name}: card:instructions has {', '.join(known)}, got {name!r}{hint}"
            )
    for name, least in (("seed", None), ("max_instructions", 1)):
        value = options.get(name, 1)
        ok = isinstance(value, int) and not isinstance(value, bool)
        if not ok or (least is not None and value < least):
            expected = "a whole number" + (f", {least} or more" if least is not None else "")
            raise ConfigError(f"options.{name}: expected {expected}, got {value!r}")
    lists = {
        name: _kinds_in(name, options[name])
        for name in ("kinds", "held_out_kinds")
        if name in options
    }
    read = _Options(**{**options, **lists})
    if not {*read.kinds} - {*read.held_out_kinds}:
        raise ConfigError("options.kinds, options.held_out_kinds: no kind is left for training")
    return read


def _kinds_in(name: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list | tuple):
        raise ConfigError(f"options.{name}: expected a list of IFEval's kinds, got {value!r}")
    for kind in value:
        if kind not in KINDS:
            hint = did_you_mean(str(kind), KINDS)
            raise ConfigError(
                f"options.{name}: expected some of {', '.join(KINDS)}, got {kind!r}{hint}"
            )
    return tuple(value)
