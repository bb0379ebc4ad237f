"""What a model knows of its pretraining text: does it find a true sentence likelier than the false ones beside it?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from align.data import smallworld
from align.models.packed import pack_pairs, response_logprobs
from align.text.packing import micro_batches


def known_facts(infos: Sequence[Mapping[str, Any]]) -> list[list[str]] | None:
    """Choices, the true one first, for text whose world can state its facts; None for other text."""
    named = infos[0].get("gold")
    if named is None or any(info.get("gold") != named for info in infos):
        return None
    return smallworld.world_facts(named["world_seed"])


@torch.no_grad()
def fact_recall(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, choices: Sequence[Sequence[str]], max_tokens: int
) -> float:
    """Share of `choices` whose first sentence is the likeliest, by its log-prob after an end-of-text token.

    Args:
        max_tokens: of one forward pass.
    """
    sentences = [f"\n{sentence}" for row in choices for sentence in row]  # as one stands between two in a document
    encoded = tokenizer(sentences, split_special_tokens=True)["input_ids"]
    start = [tokenizer.eos_token_id]
    logprobs = torch.zeros(len(encoded), dtype=torch.float64)
    for group in micro_batches([len(ids) + 1 for ids in encoded], max_tokens):
        responses = [encoded[i] for i in group]
        flat = response_logprobs(model, pack_pairs([start] * len(group), responses, model.device), responses)
        sums = [part.double().sum() for part in flat.split([len(ids) for ids in responses])]
        logprobs[group] = torch.stack(sums).cpu()
    right, at = 0, 0
    for row in choices:
        right += int(logprobs[at : at + len(row)].argmax() == 0)
        at += len(row)
    return right / len(choices)
