"""Pairs of an input text and a target text: encode, pad and group them by length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from transformers import PreTrainedTokenizerBase

from align.text.chat import Message
from align.text.encoding import encode_texts
from align.text.spans import Pair

# A padded width is a multiple of this many tokens: few different shapes, as in packing.py.
_ROUND = 16


class Texts(NamedTuple):
    """A row of a task as text."""

    input: str
    target: str


class Padded(NamedTuple):
    """A batch of R pairs, padded on the right."""

    input_ids: torch.Tensor  # [R, I]
    input_mask: torch.Tensor | None  # [R, I], True at real tokens; None if no input is padded
    target_ids: torch.Tensor  # [R, T]
    target_mask: torch.Tensor  # [R, T], True at real tokens


def texts_of(messages: Sequence[Message]) -> Texts:
    """Return a demonstration as input and target.

    The target is the last message; the input is all messages before it, one per line.
    """
    *asked, answer = messages
    return Texts("\n".join(message["content"] for message in asked), answer["content"])


def encode_pairs(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Texts]) -> list[Pair]:
    """Return the token ids of inputs and targets, each with the end-of-text token last.

    Text that spells a sentinel or an end token stays text.
    """
    if not rows:
        return []
    texts = [text for row in rows for text in row]
    ids = encode_texts(tokenizer, texts)
    ended = [[*one, tokenizer.eos_token_id] for one in ids]
    return [Pair(*both) for both in zip(ended[::2], ended[1::2], strict=True)]


def pad(pairs: Sequence[Pair], pad_token_id: int, device: torch.device | str = "cpu") -> Padded:
    """Pad pairs into one batch; inputs or targets of equal length get no padding."""
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
    """Split pairs into groups of similar lengths.

    A group has at most `max_tokens` tokens, padding included, or is a single pair.

    Yields:
        The indices of the pairs in a group.
    """
    group: list[int] = []
    # The shortest and the longest length, of inputs and of targets.
    bounds: list[tuple[int, ...]] = [(), ()]
    for i in sorted(range(len(pairs)), key=lambda i: (len(pairs[i].input), len(pairs[i].target))):
        own = (len(pairs[i].input), len(pairs[i].target))
        wider = [
            (min(*b, n), max(*b, n)) if b else (n, n) for b, n in zip(bounds, own, strict=True)
        ]
        if group and (len(group) + 1) * sum(map(_width, wider)) > max_tokens:
            yield group
            group, wider = [], [(n, n) for n in own]
        group.append(i)
        bounds = [*wider]
    if group:
        yield group
