"""Which steps are left out."""

from __future__ import annotations

import math

import pytest

from align.configs import Sft
from align.errors import HealthStop
from align.training.loss_guard import Guard, Skips


def guard_of(**knobs) -> tuple[Guard, list[tuple[int, str, str]]]:
    """A guard, and what it reports."""
    reported: list[tuple[int, str, str]] = []
    return Guard(Sft(**knobs), lambda *event: reported.append(event)), reported


def test_a_loss_far_above_the_recent_ones_is_left_out_and_not_remembered():
    guard, reported = guard_of(max_loss_rise=1.0)
    losses = [5.0 - 0.1 * i for i in range(20)]
    assert not any(guard.refuses(i, loss, 1.0) for i, loss in enumerate(losses))
    usual = (losses[9] + losses[10]) / 2
    assert guard.refuses(20, usual + 1.01, 1.0)
    said = f"step 20: the loss is {usual + 1.01:.3f}, and 4.050 is the recent median"
    assert reported == [(20, "step_left_out", said)]
    assert not guard.refuses(21, usual + 0.99, 1.0)


def test_the_first_losses_are_all_taken():
    guard, _ = guard_of(max_loss_rise=0.1)
    assert not any(guard.refuses(i, 9.0 if i == 9 else 1.0, 1.0) for i in range(10))
    assert guard.refuses(10, 9.0, 1.0)


def test_without_a_limit_only_what_is_not_finite_counts():
    guard, reported = guard_of(on_nonfinite="skip")
    assert not any(guard.refuses(i, 1.0, 1.0) for i in range(20))
    assert not guard.refuses(20, 1e9, 1.0)
    assert reported == []
    for loss, norm in ((math.nan, 1.0), (math.inf, 1.0), (1.0, math.nan), (1.0, math.inf)):
        assert guard.refuses(21, loss, norm)


def test_what_is_not_finite_ends_a_run_that_does_not_skip_it():
    guard, reported = guard_of()
    with pytest.raises(HealthStop, match=r"step 3: the loss is nan .*; lower learning_rate, or give on_nonfinite=skip"):
        guard.refuses(3, math.nan, 1.0)
    assert reported == []


def test_ten_in_a_row_end_the_run():
    guard, _ = guard_of(on_nonfinite="skip")
    for step in range(9):
        assert guard.refuses(step, math.nan, 1.0)
    guard.refuses(9, 1.0, 1.0)
    for step in range(10, 19):
        assert guard.refuses(step, math.nan, 1.0)
    with pytest.raises(HealthStop, match="tenth left out in a row"):
        guard.refuses(19, math.nan, 1.0)


def test_ten_iterations_in_a_row_without_a_step_end_the_run_and_every_reason_is_named():
    skips = Skips()
    for iteration in range(1, 10):
        skips.count(iteration, skipped=True)
    skips.count(10, skipped=False)
    for iteration in range(11, 20):
        skips.count(iteration, skipped=True)
    with pytest.raises(HealthStop, match=r"iteration 20: the tenth in a row .* not finite, or .* stop_kl_per_token"):
        skips.count(20, skipped=True)
