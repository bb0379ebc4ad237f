"""What stands before an item: solved ones of the training split, as GPT-3 was shown them, or a sentence on manner."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from align.evals.items import Item
from align.runtime.seeds import derive_seed

_BETWEEN = "\n\n"  # shots [GPT-3, section 2.4: one or two newlines]


def solved(item: Item) -> str:
    """An item with its first right candidate written out."""
    right = item["labels"].index(1)
    return item["contexts"][right] + item["completions"][right]


def with_shots(
    items: Sequence[Item], pool: Sequence[Item], num_shots: int, seed: int, fits: Callable[[Item], bool]
) -> list[Item]:
    """Each item behind `num_shots` of the pool, drawn for it alone and never itself.

    Args:
        pool: the training split.
        fits: whether a model can read an item whole; shots are left off until it can.

    Raises:
        ValueError: the pool has fewer than `num_shots` others.
    """
    texts = [solved(item) for item in pool]
    copies = Counter(texts)
    found: list[Item] = []
    for i, item in enumerate(items):
        own = solved(item)
        if len(texts) - copies[own] < num_shots:
            raise ValueError(
                f"expected {num_shots} training items to draw shots from, got {len(texts) - copies[own]}; give data "
                "that has a train split, or set some apart with shot_rows"
            )
        rng = np.random.default_rng(derive_seed(seed, "shots", i))
        order = rng.choice(len(texts), num_shots + copies[own], replace=False)
        drawn = [texts[k] for k in order if texts[k] != own][:num_shots]
        behind = _behind(item, drawn)
        while drawn and not fits(behind):
            drawn = drawn[1:]
            behind = _behind(item, drawn)
        found.append(behind)
    return found


def _behind(item: Item, shots: Sequence[str]) -> Item:
    before = "".join(shot + _BETWEEN for shot in shots)
    return {**item, "contexts": [before + context for context in item["contexts"]]}


def prefixed(item: Item, text: str) -> Item:
    """The item with a line before each context; InstructGPT asks so for respectful or biased completions."""
    return {**item, "contexts": [f"{text}\n{context}" for context in item["contexts"]]}


def prefixed_prompt(prompt: Sequence[dict[str, str]], text: str) -> list[dict[str, str]]:
    """The prompt with a line before what the user says first."""
    first = next(i for i, message in enumerate(prompt) if message["role"] == "user")
    return [{**m, "content": f"{text}\n{m['content']}"} if i == first else dict(m) for i, m in enumerate(prompt)]
