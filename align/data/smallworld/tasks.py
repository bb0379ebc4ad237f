"""The tasks of the embedded world: drawn from its kinds, in disjoint splits, and read back."""

from __future__ import annotations

import functools
import hashlib
import random
from collections.abc import Iterator
from typing import NamedTuple

from align.data.smallworld.answers import Slots
from align.data.smallworld.kinds import KINDS, Wording
from align.data.smallworld.world import World

Message = dict[str, str]  # {"role": "system" | "user" | "assistant", "content": text}


class Task(NamedTuple):
    """One task: its kind, its slots, and the messages that ask it."""

    kind: str
    slots: Slots
    messages: tuple[Message, ...]

    @property
    def prompt(self) -> list[Message]:
        return [dict(message) for message in self.messages]


def ask(kind: str, wording: Wording, slots: Slots) -> Task:
    system = [{"role": "system", "content": wording.system}] if wording.system else []
    user = {"role": "user", "content": wording.template.render(**slots)}
    return Task(kind, {**wording.fixed, **slots}, (*system, user))


def split_of(task: Task, world: World) -> str:
    """Return the split of a task: about 80 % train, 10 % validation, 10 % test.

    It depends on the slots, not on the wording or the system message. So one question in two
    wordings is never in two splits.
    """
    what = ", ".join(f"{slot}={value}" for slot, value in sorted(task.slots.items()))
    bucket = hashlib.sha256(f"{world.seed}: {what}".encode()).digest()[0] % 10
    return {0: "validation", 1: "test"}.get(bucket, "train")


def draw_tasks(world: World, split: str, stream: str) -> Iterator[Task]:
    """Yield tasks of one split, one kind after the other, without repeated prompts.

    Stop when there are no new prompts.

    Args:
        stream: name of the random stream, so that demonstrations and prompts differ.
    """
    rng = random.Random(f"smallworld {world.seed} {split} {stream}")
    seen: set[tuple[str, ...]] = set()
    live = list(KINDS.values())
    while live:
        for kind in live[:]:
            for _ in range(2000):
                wording = rng.choice(kind.wordings)
                task = ask(kind.name, wording, kind.draw(world, rng, wording.fixed))
                identity = tuple(message["content"] for message in task.messages)
                if identity not in seen and split_of(task, world) == split:
                    seen.add(identity)
                    yield task
                    break
            else:
                live.remove(kind)  # 2000 draws gave no new prompt: this kind has no more


@functools.cache
def _by_system() -> dict[str | None, list[tuple[str, Wording]]]:
    found: dict[str | None, list[tuple[str, Wording]]] = {}
    for kind in KINDS.values():
        for wording in kind.wordings:
            found.setdefault(wording.system, []).append((kind.name, wording))
    return found


def read_task(prompt: list[Message]) -> Task | None:
    """Return the task that a prompt asks, or None if it is not a prompt of this world."""
    system = next((m["content"] for m in prompt if m["role"] == "system"), None)
    users = [m["content"] for m in prompt if m["role"] == "user"]
    return _read_task(system, users[-1] if users else "")


@functools.lru_cache(maxsize=100_000)
def _read_task(system: str | None, user: str) -> Task | None:
    for kind, wording in _by_system().get(system, []):
        slots = wording.template.match(user)
        if slots is not None:
            return ask(kind, wording, slots)
    return None
