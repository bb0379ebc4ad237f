"""Prompts with a response each, which reward models, reward functions and judges score."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from align.text.chat import decode_response


class Episodes(NamedTuple):
    """B prompts to score, as rows and as tokens, with a response to each."""

    rows: Sequence[dict[str, Any]]
    prompts: Sequence[list[int]]
    responses: Sequence[list[int]]
    texts: Sequence[str]


def make_episodes(
    rows: Sequence[dict[str, Any]],
    prompts: Sequence[list[int]],
    responses: Sequence[list[int]],
    tokenizer: PreTrainedTokenizerBase,
) -> Episodes:
    return Episodes(
        rows, prompts, responses, [decode_response(tokenizer, ids) for ids in responses]
    )
