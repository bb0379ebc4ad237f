"""The warning that a figure is of too few items, from the interval to the table."""

from __future__ import annotations

import numpy as np
import pytest

from align.evals.glue import class_metrics, score_metrics
from align.evals.intervals import FEW, bootstrap, compared, few, few_warning, is_few
from align.evals.items import Candidate
from align.evals.tasks import Scored, task_metrics
from align.report import tables


def coverage(count: int) -> float:
    """How often the interval of `count` answers, nine of ten right, holds 0.9."""
    rng = np.random.default_rng(0)
    held = 0
    for draw in range(400):
        interval = bootstrap((rng.random(count) < 0.9).astype(float), 200, draw)
        held += interval.low <= 0.9 <= interval.high
    return held / 400


@pytest.mark.slow
def test_an_interval_of_few_items_promises_too_much() -> None:
    """The reason for the warning, and for where it begins."""
    assert coverage(8) < 0.7
    assert coverage(FEW) > 0.9


def marked(metrics: dict[str, float]) -> set[str]:
    return {name.removesuffix("_few") for name in metrics if name.endswith("_few")}


@pytest.mark.parametrize("count", [FEW - 1, FEW])
def test_every_figure_with_an_interval_is_marked_below_the_limit(count: int) -> None:
    classes = [i % 2 for i in range(count)]
    numbers = [float(i) for i in range(count)]
    item = {"contexts": ["a", "a"], "completions": [" b", " c"], "labels": [1, 0], "group": "g"}
    one = {"contexts": ["a"], "completions": [" b"], "labels": [1], "group": "g"}
    two = [[Candidate(-1.0 - i % 3, i % 2 == 0, 1, 1), Candidate(-2.0, False, 1, 1)] for i in range(count)]
    alone = [[row[0]] for row in two]
    for found in (
        compared("", "score", [numbers, numbers[::-1]], 20, 0),
        class_metrics("", classes, classes[::-1], 0, 2, 0),
        score_metrics("", numbers, numbers[::-1], 0.0, 0),
        task_metrics("tasks/x/", [item] * count, [Scored(two), Scored(two)], 20, 0),
        task_metrics("tasks/y/", [one] * count, [Scored(alone)], 20, 0),
    ):
        figures = {name.removesuffix("_low") for name in found if name.endswith("_low")}
        own = {name for name in figures if "baseline/" not in name and "gain/" not in name}
        errors = {name for name in found if name.rpartition("/")[2] == "ece" and "baseline/" not in name}
        assert marked(found) == ((own | errors) if count < FEW else set())
        assert all(is_few(found, name) == (count < FEW) for name in figures)


def test_the_warning_is_one_line() -> None:
    metrics = {f"figure{i}": 0.5 for i in range(5)} | {
        k: v for i in range(5) for k, v in few(f"figure{i}", 8 + i).items()
    }
    said = few_warning(metrics)
    assert said is not None
    assert said.startswith("fewer than 30 items: the 95 % intervals of figure0 (n=8), figure1 (n=9), figure2 (n=10)")
    assert "and 2 more" in said
    assert few_warning({"figure": 1.0, **few("figure", FEW)}) is None


def test_tables_and_verdicts_say_so() -> None:
    def figures(count: int) -> dict[str, float]:
        values = [[1.0] * count, [0.0] * count]
        return {"tasks/x/items": float(count), **compared("tasks/x/", "accuracy", values, 20, 0)}

    def cells(count: int) -> list[str]:
        (row,) = tables.tasks([("evaluate", "ppo", "sft", figures(count))]).rows
        return row[1:]

    assert all(cell.endswith("†") and "*" not in cell for cell in cells(8))
    assert not any("†" in cell for cell in cells(FEW))
    table = tables.tasks([("evaluate", "ppo", "sft", figures(8))])
    assert tables.has_few(table)
    assert not tables.has_few(tables.tasks([("evaluate", "ppo", "sft", figures(FEW))]))
    won = {"win_rate": 1.0, "win_rate_low": 0.9, "win_rate_high": 1.0}
    assert tables.interval(won | few("win_rate", 8), "").endswith("†")
    assert not tables.interval(won | few("win_rate", 80), "").endswith("†")


@pytest.mark.parametrize("name", ["again/short", "gain/short", "bargain/baseline/short"])
def test_only_the_parts_that_name_a_comparison_are_taken_from_a_name(name: str) -> None:
    metrics = compared("checks/", name, [[1.0] * 5, [0.0] * 5], 20, 0)
    for part in ("", "baseline/", "gain/"):
        assert is_few(metrics, f"checks/{part}{name}")
    assert not is_few({f"checks/{name}_few": 5.0}, "checks/short")


def test_a_figure_of_a_user_s_that_is_called_few_is_no_note() -> None:
    metrics = compared("checks/", "very_few", [[1.0] * 50], 20, 0)
    assert few_warning(metrics) is None
    assert not is_few(metrics, "checks/very")
