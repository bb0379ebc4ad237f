"""Which rows a step takes, counted."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from align.text.tokens import Counts, TextRows
from align.training.row_order import Mixture, RowOrder, batch_sizes


def source(rows: int, first: int = 0, length: int = 2) -> TextRows:
    flat = np.arange(first * length, (first + rows) * length, dtype=np.uint16)
    return TextRows(flat, length, Counts(1, len(flat), len(flat)))


def test_every_row_comes_once_before_any_comes_again():
    taken = torch.cat([RowOrder(20, 3, "x").take(6 * step, 6) for step in range(10)])
    for epoch in range(3):
        assert sorted(taken[epoch * 20 : (epoch + 1) * 20].tolist()) == list(range(20))
    assert taken[:20].tolist() != taken[20:40].tolist()


def test_an_order_is_of_its_seed_and_purpose():
    orders = {tuple(RowOrder(20, seed, name).take(0, 20).tolist()) for seed in (0, 1) for name in ("a", "b")}
    assert len(orders) == 4


def test_more_than_a_pass_at_once():
    order = RowOrder(7, 0, "x")
    taken = order.take(5, 50).tolist()
    assert taken == [int(order.take(i, 1)) for i in range(5, 55)]


@pytest.mark.parametrize("batch_size", [1, 4, 5, 20, 33])
def test_where_passes_do_not_mix_the_last_step_of_one_is_short(batch_size):
    order, whole = RowOrder(20, 3, "x"), RowOrder(20, 3, "x").take(0, 60).tolist()
    per_pass = -(-20 // batch_size)
    steps = [order.of_step(step, batch_size).tolist() for step in range(3 * per_pass)]
    assert [row for step in steps for row in step] == whole
    assert all(len(step) == batch_size for i, step in enumerate(steps, 1) if i % per_pass)


def test_without_weights_every_row_of_every_source_comes_once_a_pass():
    mixture = Mixture([source(3), source(5, 100), source(1, 200)], [], 0)
    rows = [tuple(row) for step in range(6) for row in mixture.tokens(mixture.draw(step, 3)).tolist()]
    wanted = [(2 * i, 2 * i + 1) for i in (0, 1, 2, 100, 101, 102, 103, 104, 200)]
    assert sorted(rows[:9]) == sorted(rows[9:]) == sorted(wanted)
    assert mixture.taken == [6, 10, 2]
    assert mixture.passes == [2, 2, 2]


def test_weighted_draws_match_their_weights_and_repeat_no_row_within_a_pass():
    mixture = Mixture([source(50), source(400, 1000), source(30, 2000)], [6.0, 3.0, 1.0], 0)
    pairs = [pair for step in range(100) for pair in mixture.draw(step, 16)]
    shares = [count / len(pairs) for count in mixture.taken]
    deviations = [(p * (1 - p) / len(pairs)) ** 0.5 for p in (0.6, 0.3, 0.1)]
    for share, wanted, deviation in zip(shares, (0.6, 0.3, 0.1), deviations, strict=True):
        assert abs(share - wanted) < 4 * deviation
    for number, size in enumerate((50, 400, 30)):
        rows = [row for n, row in pairs if n == number]
        for begin in range(0, len(rows) - size + 1, size):
            assert sorted(rows[begin : begin + size]) == list(range(size))
        assert max(Counter(rows).values()) - min(Counter(rows).values(), default=0) <= 1 or len(rows) < size


def test_what_is_drawn_hangs_on_what_was_taken_alone():
    def fresh() -> Mixture:
        return Mixture([source(50), source(40, 100)], [1.0, 2.0], 7)

    whole, later = fresh(), fresh()
    for step in range(9):
        whole.draw(step, 8)
    for step in range(5):
        later.draw(step, 8)
    resumed = fresh()
    resumed.taken = list(later.taken)
    for step in range(5, 9):
        assert resumed.draw(step, 8) == later.draw(step, 8)
    assert resumed.taken == whole.taken


@pytest.mark.parametrize("scale", [0.5, 10.0])
def test_weights_are_normalised(scale):
    one = Mixture([source(50), source(40, 100)], [1.0, 2.0], 7)
    other = Mixture([source(50), source(40, 100)], [scale, 2 * scale], 7)
    assert [one.draw(s, 8) for s in range(5)] == [other.draw(s, 8) for s in range(5)]


def test_a_batch_grows_linearly_with_what_was_seen():
    sizes = batch_sizes(100, 5000.0, 4, 400)
    assert sizes[0] == 4
    assert sizes == sorted(sizes)
    assert sizes[-1] == 100
    seen = 0
    for size in sizes:
        assert abs(size - min(100, 4 + 96 * seen / 5000)) <= 0.5
        seen += size


def test_without_a_ramp_all_batches_are_alike():
    assert batch_sizes(7, 0.0, 2, 5) == [7] * 5
    assert batch_sizes(2, 1000.0, 4, 3)[0] == 2  # never above the whole batch


def test_until_all_rows_are_seen():
    sizes = batch_sizes(100, 5000.0, 4, None, 20_000)
    assert sum(sizes[:-1]) < 20_000 <= sum(sizes)


def test_a_process_may_have_no_row_of_a_batch():
    assert Mixture([source(5)], [], 0).tokens([]).shape == (0, 2)
