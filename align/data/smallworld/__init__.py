"""The embedded world: generated text, demonstrations and prompts about a small closed world, and its gold scorer."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from align.data.smallworld.documents import documents
from align.data.smallworld.facts import facts
from align.data.smallworld.gold import Score, gold, make_world
from align.data.smallworld.kinds import KINDS
from align.data.smallworld.tasks import draw_tasks
from align.data.smallworld.world import World
from align.errors import ConfigError

__all__ = ["Score", "gold", "info", "rows", "world_facts"]

USUAL_ROWS = {"train": 5000, "validation": 500, "test": 500}  # where no number is given: it is generated without end
FLAW_SHARE = 0.55  # of demonstrations that have their labeler's habit: more than half, so that imitation learns it


def info(options: Mapping[str, Any]) -> dict[str, Any]:
    """What a dataset of this world notes for its consumers: who can score answers to its prompts."""
    return {"gold": {"scorer": "smallworld", "world_seed": _world_seed(options)}}


def world_facts(world_seed: int) -> list[list[str]]:
    """What the documents of a world state, each as choices, the true one first."""
    return facts(make_world(world_seed))


def _world_seed(options: Mapping[str, Any]) -> int:
    seed = options.get("world_seed", 0)
    if not isinstance(seed, int):
        raise ConfigError(f"options.world_seed: expected a whole number, got {seed!r}")
    return seed


def rows(
    record: str, splits: Sequence[str], limits: Mapping[str, int | None], options: Mapping[str, Any]
) -> dict[str, list[dict[str, Any]]]:
    """Rows of one record, by split.

    Args:
        limits: rows to generate of each split; None: `USUAL_ROWS`.
        options: `world_seed` (0) and `flaw_share` (0.55), the share of demonstrations written in a flawed habit.
    """
    unknown = options.keys() - {"world_seed", "flaw_share"}
    if unknown:
        raise ConfigError(f"options.{min(unknown)}: the embedded world has world_seed and flaw_share")
    flaw_share = options.get("flaw_share", FLAW_SHARE)
    if not isinstance(flaw_share, int | float) or not 0 <= flaw_share <= 1:
        raise ConfigError(f"options.flaw_share: expected a number from 0 to 1, got {flaw_share!r}")
    world = make_world(_world_seed(options))
    made = {}
    for split in splits:
        if split not in limits:
            raise ConfigError(f"splits: expected {', '.join(limits)}, got {split!r}")
        given = limits[split]
        count = USUAL_ROWS[split] if given is None else given
        made[split] = list(itertools.islice(_generate(world, record, split, flaw_share), count))
        if len(made[split]) < count:
            raise ConfigError(
                f"{split}_rows: the embedded world has {len(made[split]):,} {record} there, got {count:,}"
            )
    return made


def _generate(world: World, record: str, split: str, flaw_share: float) -> Iterator[dict[str, Any]]:
    if record == "documents":
        for text in documents(world, split):
            yield {"text": text}
    elif record == "prompts":
        for task in draw_tasks(world, split, "prompts"):
            yield {"prompt": task.prompt, "kind": task.kind}
    elif record == "demonstrations":
        rng = random.Random(f"smallworld {world.seed} {split} answers")
        for task in draw_tasks(world, split, "demonstrations"):
            kind = KINDS[task.kind]
            write = kind.flawed if rng.random() < flaw_share else kind.good
            answer = {"role": "assistant", "content": write(world, task.slots, rng)}
            yield {"messages": [*task.prompt, answer], "kind": task.kind}
    else:
        raise ConfigError(
            f"record: the embedded world has documents, demonstrations and prompts; {record} are made by compare"
        )
