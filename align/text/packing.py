"""Pack sequences end to end in one row, so that no padding goes through a model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch

# The length of a row is a multiple of this. A bf16 matrix product of a new shape makes the CPU's
# library compile a kernel and keep it. This costs time and memory if all micro-batches differ in
# length.
ROUND = 64  # tokens


class Packed(NamedTuple):
    """A row of N tokens with S sequences. Positions begin at 0 in each, which keeps them apart.

    If the sequences differ in length, N is a multiple of `ROUND`: filler tokens that belong to no
    sequence follow the last one.
    """

    input_ids: torch.Tensor  # [1, N]
    position_ids: torch.Tensor  # [1, N]
    ends: torch.Tensor  # [S] index of each sequence's last token


def pack(sequences: Sequence[Sequence[int]], device: torch.device | str = "cpu") -> Packed:
    """Pack `sequences` of token ids end to end."""
    lengths = torch.tensor([len(s) for s in sequences])
    ids = torch.tensor([token for s in sequences for token in s])
    ends = lengths.cumsum(0) - 1
    starts = torch.repeat_interleave(ends - lengths + 1, lengths)
    positions = torch.arange(len(ids)) - starts
    # Without filler, attention reads sequences of equal length in place (`packed_layout`).
    varied = int(lengths.min()) != int(lengths.max())
    # Filler positions restart as in sequences of at most the longest length, so filler fits in any
    # context that fits the sequences.
    filler = torch.arange(-len(ids) % ROUND if varied else 0) % lengths.max()
    ids, positions = torch.cat([ids, torch.zeros_like(filler)]), torch.cat([positions, filler])
    return Packed(ids[None].to(device), positions[None].to(device), ends.to(device))


def micro_batches(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Split sequences, in order, into as few groups of at most `max_tokens` tokens as possible.

    The groups are as even as possible, because the largest one determines the memory. A sequence
    longer than `max_tokens` is a group of its own.

    Returns:
        The indices of the sequences in each group.
    """
    groups = _filled(lengths, max_tokens)
    low, high = math.ceil(sum(lengths) / max(1, len(groups))), max_tokens
    while low < high:
        middle = (low + high) // 2
        found = _filled(lengths, middle)
        if len(found) > len(groups):
            low = middle + 1
        else:
            groups, high = found, middle
    return groups


def _filled(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Return groups that are filled one after the other."""
    groups: list[list[int]] = []
    total = 0
    for i, length in enumerate(lengths):
        if not groups or total + length > max_tokens:
            groups.append([])
            total = 0
        groups[-1].append(i)
        total += length
    return groups


def document_positions(rows: torch.Tensor, end: int) -> torch.Tensor:
    """Return positions [R, length] that restart at 0 after each `end`.

    This keeps the documents in a row apart.
    """
    places = torch.arange(rows.shape[1]).expand_as(rows)
    begins = torch.zeros_like(rows, dtype=torch.bool)
    begins[:, 1:] = rows[:, :-1] == end
    return places - torch.where(begins, places, 0).cummax(1).values
