"""GLUE's metrics against scikit-learn's and scipy's, and what their intervals hold."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics

from align.evals.glue import (
    choice_metrics,
    class_metrics,
    f1_score,
    matthews,
    pearson,
    score_metrics,
    spearman,
)
from align.evals.intervals import bootstrap, bootstrap_statistic


def answers(num_classes, count=200, seed=0):
    """Classes, and guesses that are right more often than not."""
    rng = np.random.default_rng(seed)
    gold = rng.integers(0, num_classes, count)
    return gold, np.where(rng.random(count) < 0.6, gold, rng.integers(0, num_classes, count))


def scores(count=150, seed=0):
    """With many equal values, as marks from 1 to 5 have."""
    rng = np.random.default_rng(seed)
    gold = rng.integers(10, 51, count) / 10
    return gold, np.round(gold + rng.normal(0, 1.5, count), 1)


@pytest.mark.parametrize("num_classes", [2, 3, 6])
def test_f1_is_scikit_learn_s(num_classes):
    gold, said = answers(num_classes)
    average = "binary" if num_classes == 2 else "macro"
    expected = sklearn.metrics.f1_score(gold, said, average=average)
    assert f1_score(gold, said, num_classes) == pytest.approx(expected, abs=1e-12)


def test_f1_of_classes_that_do_not_all_occur_is_scikit_learn_s():
    gold, said = np.array([0, 0, 3, 3, 1]), np.array([0, 4, 3, 1, 1])
    expected = sklearn.metrics.f1_score(gold, said, average="macro")
    assert f1_score(gold, said, 6) == pytest.approx(expected, abs=1e-12)
    nothing = np.zeros(4, dtype=int)
    assert f1_score(nothing, nothing, 2) == 0.0 == sklearn.metrics.f1_score(nothing, nothing, zero_division=0)


@pytest.mark.parametrize("num_classes", [2, 3, 6])
def test_matthews_is_scikit_learn_s(num_classes):
    gold, said = answers(num_classes, seed=1)
    assert matthews(gold, said, num_classes) == pytest.approx(sklearn.metrics.matthews_corrcoef(gold, said), abs=1e-12)
    assert matthews(gold, gold, num_classes) == pytest.approx(1.0)
    assert matthews(gold, np.zeros_like(gold), num_classes) == 0.0


def test_correlations_are_scipy_s():
    gold, said = scores()
    assert pearson(gold, said) == pytest.approx(scipy.stats.pearsonr(gold, said).statistic, abs=1e-12)
    assert spearman(gold, said) == pytest.approx(scipy.stats.spearmanr(gold, said).statistic, abs=1e-12)
    assert pearson(gold, np.full_like(gold, 3.0)) == spearman(gold, np.full_like(gold, 3.0)) == 0.0
    assert spearman(gold, np.exp(gold)) == pytest.approx(1.0)


def test_a_statistic_that_is_a_mean_has_the_interval_of_the_mean():
    _, said = scores()
    assert bootstrap_statistic(np.mean, [said], 300, 7) == pytest.approx(bootstrap(said, 300, 7), abs=1e-12)


def test_an_interval_is_near_that_of_theory_for_a_correlation():
    """Fisher's transform of a correlation is normal with deviation 1 / sqrt(n - 3)."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=2000)
    y = 0.6 * x + 0.8 * rng.normal(size=2000)
    found = bootstrap_statistic(pearson, [x, y], 1000, 0)
    z, half = math.atanh(pearson(x, y)), 1.96 / math.sqrt(len(x) - 3)
    assert found.low == pytest.approx(math.tanh(z - half), abs=0.006)
    assert found.high == pytest.approx(math.tanh(z + half), abs=0.006)


def test_classes_are_told_beside_the_majority():
    gold, said = answers(3)
    majority = int(np.bincount(gold).argmax())
    found = class_metrics("test/", gold.tolist(), said.tolist(), majority, 3, seed=0)
    accuracy = sklearn.metrics.accuracy_score(gold, said)
    baseline = sklearn.metrics.accuracy_score(gold, np.full_like(gold, majority))
    assert found["test/accuracy"] == pytest.approx(accuracy)
    assert found["test/baseline/accuracy"] == pytest.approx(baseline)
    assert found["test/gain/accuracy"] == pytest.approx(accuracy - baseline)
    for name in ("accuracy", "f1", "matthews", "baseline/accuracy", "gain/accuracy"):
        assert found[f"test/{name}_low"] < found[f"test/{name}"] < found[f"test/{name}_high"]


def test_a_majority_of_the_training_rows_may_be_rare_in_the_test_rows():
    assert class_metrics("", [0, 1, 1, 1], [0, 0, 1, 1], 0, 2, seed=0)["baseline/accuracy"] == 0.25


def test_choices_have_an_accuracy_alone():
    found = choice_metrics("test/", [0, 1, 2, 2], [0, 1, 1, 2], 2, seed=0)
    assert (found["test/accuracy"], found["test/baseline/accuracy"]) == (0.75, 0.5)
    assert not [name for name in found if "f1" in name]


def test_scores_are_told_beside_their_mean():
    gold, said = scores()
    found = score_metrics("test/", gold.tolist(), said.tolist(), 3.0, seed=0)
    assert found["test/mse"] == pytest.approx(sklearn.metrics.mean_squared_error(gold, said))
    assert found["test/baseline/mse"] == pytest.approx(sklearn.metrics.mean_squared_error(gold, np.full_like(gold, 3)))
    assert found["test/pearson"] == pytest.approx(scipy.stats.pearsonr(gold, said).statistic)
    for name in ("mse", "baseline/mse", "pearson", "spearman"):
        assert found[f"test/{name}_low"] < found[f"test/{name}"] < found[f"test/{name}_high"]
