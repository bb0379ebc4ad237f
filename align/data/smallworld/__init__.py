"""The embedded world: generated text, demonstrations and prompts about a small closed world, and its gold scorer."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from align.data.smallworld.documents import GOOD_DIALOGUE_SHARE, documents
from align.data.smallworld.facts import facts
from align.data.smallworld.gold import Score, gold, make_world
from align.data.smallworld.kinds import KINDS
from align.data.smallworld.tasks import draw_tasks
from align.data.smallworld.world import World
from align.errors import ConfigError

__all__ = ["VERSION", "Score", "gold", "info", "rows", "world_facts"]

# Of the rows that come out of the same options, and of what answers are worth: raise it with every change of either.
# 2: of the dialogues in documents a quarter answers well; the gold scorer reads every clause.
VERSION = 2

USUAL_ROWS = {"train": 5000, "validation": 500, "test": 500}  # where no number is given: it is generated without end
# The option that a record has, and its default. More than half of the demonstrations are in their labeler's habit, so
# that imitation learns it.
_SHARES = {"documents": ("good_dialogue_share", GOOD_DIALOGUE_SHARE), "demonstrations": ("flaw_share", 0.55)}


def info(options: Mapping[str, Any]) -> dict[str, Any]:
    """What a dataset of this world notes for its consumers: who can score answers to its prompts."""
    return {"gold": {"scorer": "smallworld", "world_seed": _world_seed(options)}}


def world_facts(world_seed: int) -> list[list[str]]:
    """What the documents of a world state, each as choices, the true one first."""
    return facts(make_world(world_seed))


def _world_seed(options: Mapping[str, Any]) -> int:
    seed = options.get("world_seed", 0)
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise ConfigError(f"options.world_seed: expected a whole number, got {seed!r}")
    return seed


def rows(
    record: str, splits: Sequence[str], limits: Mapping[str, int | None], options: Mapping[str, Any]
) -> dict[str, list[dict[str, Any]]]:
    """Rows of one record, by split.

    Args:
        limits: rows to generate of each split; None: `USUAL_ROWS`.
        options: `world_seed` (0); for documents `good_dialogue_share` (0.25), of the dialogues, those that answer well;
            for demonstrations `flaw_share` (0.55), those in a labeler's habit.

    Raises:
        ConfigError: an option or a split that there is not, or more rows than there are.
    """
    name, default = _SHARES.get(record, ("", 0.0))
    if unknown := options.keys() - {"world_seed", name}:
        has = f"world_seed and {name}" if name else "world_seed alone"
        raise ConfigError(f"options.{min(unknown)}: {record} of the embedded world have {has}")
    share = options.get(name, default)
    if not isinstance(share, int | float) or isinstance(share, bool) or not 0 <= share <= 1:
        raise ConfigError(f"options.{name}: expected a number from 0 to 1, got {share!r}")
    world = make_world(_world_seed(options))
    made = {}
    for split in splits:
        if split not in limits:
            raise ConfigError(f"splits: expected {', '.join(limits)}, got {split!r}")
        given = limits[split]
        count = USUAL_ROWS[split] if given is None else given
        made[split] = list(itertools.islice(_generate(world, record, split, share), count))
        if len(made[split]) < count:
            raise ConfigError(
                f"{split}_rows: the embedded world has {len(made[split]):,} {record} there, got {count:,}"
            )
    return made


def _generate(world: World, record: str, split: str, share: float) -> Iterator[dict[str, Any]]:
    if record == "documents":
        for text in documents(world, split, share):
            yield {"text": text}
    elif record == "prompts":
        for task in draw_tasks(world, split, "prompts"):
            yield {"prompt": task.prompt, "kind": task.kind}
    elif record == "demonstrations":
        rng = random.Random(f"smallworld {world.seed} {split} answers")
        for task in draw_tasks(world, split, "demonstrations"):
            kind = KINDS[task.kind]
            write = kind.flawed if rng.random() < share else kind.good
            answer = {"role": "assistant", "content": write(world, task.slots, rng)}
            yield {"messages": [*task.prompt, answer], "kind": task.kind}
    else:
        raise ConfigError(
            f"record: the embedded world has documents, demonstrations and prompts; {record} are made by compare"
        )
