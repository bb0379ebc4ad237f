"""Text before an item: solved items or an instruction.

GPT-3 was shown solved items of the training split. An instruction says in which manner to answer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from align.evals.items import Item
from align.runtime.seeds import derive_seed

_BETWEEN = "\n\n"  # between shots [GPT-3, section 2.4: one or two newlines]


def solved(item: Item) -> str:
    """Return an item with its first right candidate written out, as text."""
    right = item["labels"].index(1)
    return item["contexts"][right] + item["completions"][right]


def with_shots(
    items: Sequence[Item],
    pool: Sequence[Item],
    num_shots: int,
    seed: int,
    fits: Callable[[Item], bool],
) -> list[Item]:
    """Return each item with `num_shots` solved items of the pool before it.

    They are drawn for each item separately, and are never the item itself.

    Args:
        pool: the training split.
        fits: whether a model can read an item whole; shots are removed until it can.

    Raises:
        ValueError: the pool has fewer than `num_shots` other items.
    """
    texts = [solved(item) for item in pool]
    copies = Counter(texts)
    found: list[Item] = []
    for i, item in enumerate(items):
        own = solved(item)
        if len(texts) - copies[own] < num_shots:
            raise ValueError(
                f"expected {num_shots} training items to draw shots from, got"
                f" {len(texts) - copies[own]}; give data that has a train split, or set some apart"
                " with shot_rows"
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
    """Return the item with a line before each context.

    InstructGPT uses such lines to ask for respectful or biased completions.
    """
    return {**item, "contexts": [f"{text}\n{context}" for context in item["contexts"]]}


def prefixed_prompt(prompt: Sequence[dict[str, str]], text: str) -> list[dict[str, str]]:
    """Return the prompt with a line before the user's first message."""
    first = next(i for i, message in enumerate(prompt) if message["role"] == "user")
    return [
        {**m, "content": f"{text}\n{m['content']}"} if i == first else dict(m)
        for i, m in enumerate(prompt)
    ]
