"""The embedded world: generated documents, demonstrations and prompts, and their gold scorer.

The texts are about a small closed world.
"""

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

# Raise this with every change to the rows that the same options give, or to the gold scores.
# 2: a quarter of the dialogues in documents answers well; the gold scorer reads every clause.
VERSION = 2

# The number of rows if none is given; documents have no end.
USUAL_ROWS = {"train": 5000, "validation": 500, "test": 500}
# record -> (name of its option, default). More than half of the demonstrations are flawed, so that
# imitation learns the flaws.
_SHARES = {
    "documents": ("good_dialogue_share", GOOD_DIALOGUE_SHARE),
    "demonstrations": ("flaw_share", 0.55),
}


def info(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metadata of a dataset of this world: the scorer for answers to its prompts."""
    return {"gold": {"scorer": "smallworld", "world_seed": _world_seed(options)}}


def world_facts(world_seed: int) -> list[list[str]]:
    """Return the facts that the documents of a world state, each as choices, the true one first."""
    return facts(make_world(world_seed))


def _world_seed(options: Mapping[str, Any]) -> int:
    seed = options.get("world_seed", 0)
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise ConfigError(f"options.world_seed: expected a whole number, got {seed!r}")
    return seed


def rows(
    record: str, splits: Sequence[str], limits: Mapping[str, int | None], options: Mapping[str, Any]
) -> dict[str, list[dict[str, Any]]]:
    """Return generated rows of one record, by split.

    Args:
        limits: number of rows per split; None: `USUAL_ROWS`.
        options: `world_seed` (0); for documents also `good_dialogue_share` (0.25), the fraction of
            dialogues that answer well; for demonstrations also `flaw_share` (0.55), the fraction
            with a labeler's flaw.

    Raises:
        ConfigError: the world has no such record, option or split, or fewer rows than asked for.
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
                f"{split}_rows: the embedded world has {len(made[split]):,} {record} there, got"
                f" {count:,}"
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
            f"record: the embedded world has documents, demonstrations and prompts; {record} are"
            " made by compare"
        )
