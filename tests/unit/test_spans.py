"""Span corruption: T5's lengths, what is hidden on each side, and how it is drawn."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import pytest
import torch
from tiny_models import sentinel_tokenizer, tiny_tokenizer

from align.text.spans import Corruption, Pair, Spans, longest_row, noise_mask, sentinels_of, spans_of

END = 1
SENTINELS = torch.arange(32_099, 31_999, -1)  # T5's 100: <extra_id_0> is 32,099
T5 = longest_row(512, 0.15, 3.0)


def masks(spans: Spans, count: int) -> torch.Tensor:
    return torch.stack([noise_mask(spans, torch.Generator().manual_seed(seed)) for seed in range(count)])


def runs(mask: torch.Tensor) -> list[tuple[bool, int]]:
    """The mask as (value, length) in turn."""
    return [(value, len(list(group))) for value, group in itertools.groupby(mask.tolist())]


def reconstruct(pair: Pair, sentinels: torch.Tensor) -> list[int]:
    """The row that a pair was made of: each sentinel of the input stands for what follows it in the target."""
    known = set(sentinels.tolist())
    filling: dict[int, list[int]] = {}
    for token in pair.target[:-1]:
        if token in known:
            last = filling.setdefault(token, [])
        else:
            last.append(token)
    return [part for token in pair.input[:-1] for part in filling.get(token, [token])]


def test_t5s_own_lengths():
    """t5/data/preprocessors.py: chunks of 568 tokens for inputs of 512 and targets of 114."""
    assert Spans(length=568, noise=85, num_spans=28) == T5
    assert (T5.input_length, T5.target_length) == (512, 114)


@pytest.mark.parametrize("density", [0.1, 0.15, 0.5, 0.9])
@pytest.mark.parametrize("mean", [1.0, 2.0, 3.0, 10.0])
def test_the_longest_row_fills_its_input_and_none_longer_does(density, mean):
    for wanted in (16, 77, 512):
        found = longest_row(wanted, density, mean)
        lengths = [spans_of(length, density, mean).input_length for length in range(2, 20 * wanted)]
        assert lengths == sorted(lengths)
        assert found.length == max(n for n, length in enumerate(lengths, 2) if length <= wanted)


def test_an_input_too_short_for_any_row_is_refused():
    with pytest.raises(ValueError, match="no row"):
        longest_row(2, 0.15, 3.0)


def test_shares_are_rounded_as_t5_does_and_something_is_always_left_and_taken():
    for length in range(2, 700):
        spans = spans_of(length, 0.15, 3.0)
        assert spans.noise == min(max(round(0.15 * length), 1), length - 1)
        assert spans.num_spans == max(round(spans.noise / 3), 1)
    assert spans_of(2, 0.99, 3.0) == Spans(2, 1, 1)
    assert spans_of(10, 0.8, 1.0) == Spans(10, 8, 2)  # a kept token before each span


def test_a_mask_has_the_numbers_that_were_asked_for_and_begins_with_what_is_kept():
    for mask in masks(T5, 200):
        found = runs(mask)
        assert len(mask) == 568
        assert [value for value, _ in found] == [False, True] * 28
        assert int(mask.sum()) == 85


def test_the_same_generator_gives_the_same_mask_and_another_another():
    first, again, other = masks(T5, 1)[0], masks(T5, 1)[0], masks(T5, 2)[1]
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_spans_have_three_tokens_on_average_of_a_geometric_kind():
    """Cutting n tokens into k spans, every way alike, makes a span of m in C(n-m-1, k-2) of C(n-1, k-1) cases."""
    draws = 1500
    lengths = Counter(n for mask in masks(T5, draws) for value, n in runs(mask) if value)
    total = sum(lengths.values())
    assert total == 28 * draws
    assert sum(n * count for n, count in lengths.items()) / total == 85 / 28  # exactly: both numbers are given
    for m in range(1, 9):
        share = math.comb(85 - m - 1, 26) / math.comb(84, 27)
        error = math.sqrt(share * (1 - share) / total)
        assert abs(lengths[m] / total - share) < 4 * error


def test_every_way_to_cut_is_as_likely_as_any_other():
    spans = Spans(length=9, noise=4, num_spans=2)  # 3 ways for what is taken times 4 for what is kept
    found = Counter(tuple(n for _, n in runs(mask)) for mask in masks(spans, 6000))
    assert len(found) == 12
    expected = 6000 / 12
    assert sum((count - expected) ** 2 / expected for count in found.values()) < 31.3  # chi-squared, 11: p = 0.001


def test_no_place_is_taken_more_often_than_its_neighbours():
    shares = masks(T5, 2000).float().mean(0)
    assert shares[0] == 0  # the first is kept
    assert shares[-1] == 1  # and the last is taken
    inner = shares[20:-20]
    assert float((inner - 0.15).abs().max()) < 5 * math.sqrt(0.15 * 0.85 / 2000)


def test_input_and_target_give_back_the_text():
    row = torch.randint(2, 31_000, (568,), generator=torch.Generator().manual_seed(0))
    corruption = Corruption(T5, SENTINELS, END)
    for seed in range(50):
        pair = corruption(row, seed)
        assert (len(pair.input), len(pair.target)) == (512, 114)
        assert reconstruct(pair, SENTINELS) == row.tolist()


def test_sentinels_go_down_and_are_the_same_on_both_sides():
    pair = Corruption(T5, SENTINELS, END)(torch.arange(2, 570), 7)
    sides = [[token for token in side if token >= 32_000] for side in pair]
    assert sides[0] == sides[1] == list(range(32_099, 32_099 - 28, -1))


def test_a_target_begins_with_a_sentinel_and_ends_without_one():
    """The paper's figure 2 ends it with one more; the code that trained T5 does not."""
    for seed in range(20):
        pair = Corruption(T5, SENTINELS, END)(torch.arange(2, 570), seed)
        assert pair.target[0] == 32_099
        assert pair.target[-2] < 32_000
        assert pair.target[-1] == pair.input[-1] == END
        assert pair.input[0] == 2


def test_a_row_by_hand():

    hidden = torch.tensor([False, False, True, True, False, False, False, True])
    corruption = Corruption(Spans(8, 3, 2), torch.tensor([99, 98, 97]), END)
    row = torch.arange(10, 18)
    assert corruption._shown(row, hidden) == [10, 11, 99, 14, 15, 16, 98, END]
    assert corruption._shown(row, ~hidden) == [99, 12, 13, 98, 17, END]


def test_sentinels_are_found_by_name_and_in_order():
    tokenizer = sentinel_tokenizer(100)
    last = len(tokenizer) - 1
    assert sentinels_of(tokenizer).tolist() == list(range(last, last - 100, -1))
    assert tokenizer.convert_ids_to_tokens(last) == "<extra_id_0>"
    assert len(sentinels_of(tiny_tokenizer())) == 0
