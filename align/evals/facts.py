"""What a model knows of its pretraining text: does it find a true sentence likelier than the false ones beside it?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from align.data import smallworld
from align.evals.items import measures, score_items


def known_facts(infos: Sequence[Mapping[str, Any]]) -> list[list[str]] | None:
    """Choices, the true one first, for text whose world can state its facts; None for other text."""
    named = infos[0].get("gold")
    if named is None or any(info.get("gold") != named for info in infos):
        return None
    return smallworld.world_facts(named["world_seed"])


def fact_recall(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, choices: Sequence[Sequence[str]], max_tokens: int
) -> float:
    """Share of `choices` whose first sentence is the likeliest, by its log-prob after an end-of-text token.

    Args:
        max_tokens: of one forward pass.
    """
    items = [
        {
            "contexts": [""] * len(row),
            "completions": [f"\n{sentence}" for sentence in row],  # as one stands between two in a document
            "labels": [1, *[0] * (len(row) - 1)],
        }
        for row in choices
    ]
    right = measures(items, score_items(model, tokenizer, items, max_tokens))["accuracy"]
    return sum(right) / len(right)
