"""Sequences end to end."""

from __future__ import annotations

import itertools
import random

import pytest
import torch

from align.text.packing import document_positions, micro_batches, pack


def test_pack_by_hand():
    packed = pack([[5, 6, 7], [8], [9, 10]])
    assert packed.input_ids.tolist() == [[5, 6, 7, 8, 9, 10] + [0] * 58]
    assert packed.position_ids.tolist() == [[0, 1, 2, 0, 0, 1] + [0, 1, 2] * 19 + [0]]
    assert packed.ends.tolist() == [2, 3, 5]


@pytest.mark.parametrize(("total", "row"), [(4, 64), (63, 64), (64, 64), (65, 128), (300, 320)])
def test_a_row_is_a_multiple_of_64_tokens_long(total, row):
    """Its filler begins anew, no later in the context than the sequences do."""
    longest = total - total // 3
    packed = pack([[5] * longest, [6] * (total // 3)])
    assert packed.input_ids.shape == packed.position_ids.shape == (1, row)
    filler = packed.position_ids[0, total:]
    assert row == total or int(filler[0]) == 0
    assert int(packed.position_ids.max()) == longest - 1


@pytest.mark.parametrize(("count", "length"), [(1, 7), (3, 5), (7, 96)])
def test_sequences_of_one_length_are_left_as_they_lie(count, length):
    assert pack([[5] * length] * count).input_ids.shape == (1, count * length)


def test_packed_sequences_can_be_cut_apart_again():
    rng = random.Random(0)
    sequences = [[rng.randrange(100) for _ in range(rng.randint(1, 7))] for _ in range(20)]
    packed = pack(sequences)
    starts = [0, *(end + 1 for end in packed.ends.tolist()[:-1])]
    cut = [packed.input_ids[0, a : b + 1].tolist() for a, b in zip(starts, packed.ends.tolist(), strict=True)]
    assert cut == sequences
    assert packed.position_ids[0, starts].tolist() == [0] * 20
    assert packed.position_ids[0, packed.ends].tolist() == [len(s) - 1 for s in sequences]


@pytest.mark.parametrize("max_tokens", [1, 4, 7, 50, 10_000])
def test_micro_batches_keep_order_and_limit(max_tokens):
    rng = random.Random(1)
    lengths = [rng.randint(1, 9) for _ in range(60)]
    groups = micro_batches(lengths, max_tokens)
    assert [i for group in groups for i in group] == list(range(60))
    for group in groups:
        assert len(group) == 1 or sum(lengths[i] for i in group) <= max_tokens


@pytest.mark.parametrize("seed", range(20))
def test_micro_batches_are_the_fewest_and_those_the_most_even(seed):
    """Against every way to cut a short list."""
    rng = random.Random(seed)
    lengths = [rng.randint(1, 9) for _ in range(9)]
    max_tokens = rng.randint(9, 30)
    ways = []
    for cuts in itertools.product((False, True), repeat=len(lengths) - 1):
        sums = [lengths[0]]
        for length, cut in zip(lengths[1:], cuts, strict=True):
            sums = [*sums, length] if cut else [*sums[:-1], sums[-1] + length]
        if max(sums) <= max_tokens:
            ways.append((len(sums), max(sums)))
    found = [sum(lengths[i] for i in group) for group in micro_batches(lengths, max_tokens)]
    assert (len(found), max(found)) == min(ways)


def test_a_sequence_over_the_limit_stands_alone():
    assert micro_batches([2, 9, 1, 1], 4) == [[0], [1], [2, 3]]
    assert micro_batches([], 4) == []


def test_positions_begin_anew_after_each_end():
    rows = torch.tensor([[5, 0, 6, 7, 0, 0, 8], [0, 5, 5, 5, 5, 5, 5]])
    assert document_positions(rows, 0).tolist() == [[0, 1, 0, 1, 2, 0, 0], [0, 0, 1, 2, 3, 4, 5]]
    assert document_positions(rows, 9).tolist() == [list(range(7))] * 2
