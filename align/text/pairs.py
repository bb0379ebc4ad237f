"""Pairs of an input and a target: tasks written as text, padded batches, and which pairs share one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from transformers import PreTrainedTokenizerBase

from align.text.chat import Message
from align.text.encoding import encode_texts
from align.text.spans import Pair

_ROUND = 16  # tokens that a padded width is a multiple of: as in align/text/packing.py, few different shapes


class Texts(NamedTuple):
    """A task's row as a person reads it."""

    input: str
    target: str


class Padded(NamedTuple):
    """R pairs, padded on the right."""

    input_ids: torch.Tensor  # [R, I]
    input_mask: torch.Tensor | None  # [R, I], True at tokens that count; None where no input is padded
    target_ids: torch.Tensor  # [R, T]
    target_mask: torch.Tensor  # [R, T], True at tokens that count


def texts_of(messages: Sequence[Message]) -> Texts:
    """A demonstration as input and target: what stands before its last message, a line each, and that message."""
    *asked, answer = messages
    return Texts("\n".join(message["content"] for message in asked), answer["content"])


def encode_pairs(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Texts]) -> list[Pair]:
    """Token ids with the end-of-text token last; what looks like a sentinel or an end in a text is text."""
    if not rows:
        return []
    texts = [text for row in rows for text in row]
    ids = encode_texts(tokenizer, texts)
    ended = [[*one, tokenizer.eos_token_id] for one in ids]
    return [Pair(*both) for both in zip(ended[::2], ended[1::2], strict=True)]


def pad(pairs: Sequence[Pair], pad_token_id: int, device: torch.device | str = "cpu") -> Padded:
    """Pairs side by side; those of one length as they are."""
    inputs, input_mask = _padded([pair.input for pair in pairs], pad_token_id)
    targets, target_mask = _padded([pair.target for pair in pairs], pad_token_id)
    mask = None if bool(input_mask.all()) else input_mask.to(device)
    return Padded(inputs.to(device), mask, targets.to(device), target_mask.to(device))


def _padded(rows: Sequence[list[int]], pad_token_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    lengths = torch.tensor([len(row) for row in rows])
    mask = torch.arange(_width(lengths.tolist())) < lengths[:, None]
    ids = torch.full(mask.shape, pad_token_id)
    ids[mask] = torch.tensor([token for row in rows for token in row])
    return ids, mask


def _width(lengths: Sequence[int]) -> int:
    longest = max(lengths)
    return longest if min(lengths) == longest else -(-longest // _ROUND) * _ROUND


def similar_groups(pairs: Sequence[Pair], max_tokens: int) -> Iterator[list[int]]:
    """Split pairs into groups of like lengths, at most `max_tokens` tokens each with its padding (or a single pair)."""
    group: list[int] = []
    bounds: list[tuple[int, ...]] = [(), ()]  # lengths of the shortest and the longest, of inputs and of targets
    for i in sorted(range(len(pairs)), key=lambda i: (len(pairs[i].input), len(pairs[i].target))):
        own = (len(pairs[i].input), len(pairs[i].target))
        wider = [(min(*b, n), max(*b, n)) if b else (n, n) for b, n in zip(bounds, own, strict=True)]
        if group and (len(group) + 1) * sum(map(_width, wider)) > max_tokens:
            yield group
            group, wider = [], [(n, n) for n in own]
        group.append(i)
        bounds = [*wider]
    if group:
        yield group
