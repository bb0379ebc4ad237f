"""Sequences laid end to end in one row, so that no padding goes through a model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch

# A bf16 product of a shape that was not seen before makes the CPU's library compile a kernel and keep it, which costs
# time and memory where no two micro-batches are of one length.
ROUND = 64  # tokens


class Packed(NamedTuple):
    """S sequences in one row of N tokens; positions begin at 0 in each, which is what keeps them apart.

    N is a multiple of `ROUND` where sequences differ in length: after the last come tokens that belong to none.
    """

    input_ids: torch.Tensor  # [1, N]
    position_ids: torch.Tensor  # [1, N]
    ends: torch.Tensor  # [S] index of each sequence's last token


def pack(sequences: Sequence[Sequence[int]], device: torch.device | str = "cpu") -> Packed:
    """Lay `sequences` of token ids end to end."""
    lengths = torch.tensor([len(s) for s in sequences])
    ids = torch.tensor([token for s in sequences for token in s])
    ends = lengths.cumsum(0) - 1
    starts = torch.repeat_interleave(ends - lengths + 1, lengths)
    positions = torch.arange(len(ids)) - starts
    varied = int(lengths.min()) != int(lengths.max())  # where all are alike, they are also best left as they lie
    # Sequences of their own, which fit where the others do.
    filler = torch.arange(-len(ids) % ROUND if varied else 0) % lengths.max()
    ids, positions = torch.cat([ids, torch.zeros_like(filler)]), torch.cat([positions, filler])
    return Packed(ids[None].to(device), positions[None].to(device), ends.to(device))


def micro_batches(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Split sequences, in order, into as few groups of at most `max_tokens` tokens as do, and those as even as may be.

    The largest group is what memory is needed for. A sequence that is longer stands alone.
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
    """Groups, each filled before the next is begun."""
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
    """Positions [R, length] that begin anew after each `end`, which keeps the documents of a row apart."""
    places = torch.arange(rows.shape[1]).expand_as(rows)
    begins = torch.zeros_like(rows, dtype=torch.bool)
    begins[:, 1:] = rows[:, :-1] == end
    return places - torch.where(begins, places, 0).cummax(1).values
