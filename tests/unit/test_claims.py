"""The account's tables are made of the right versions: of test or validation prompts, the newest of each seed."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
from small_store import add

from align.store.artifacts import ArtifactStore

BENCHMARKS = Path(__file__).parent.parent.parent / "benchmarks"


@pytest.fixture
def claims(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("claims")


def evaluated(store, seed, split, score, beta=0.1):
    config = {"seed": seed, "kl_coef": beta, "again": score}
    policy = add(store, "miniature/ppo", "model", {}, {"reward/model": 10 * score, "heldout/score": 0.5}, config)
    config = {"seed": seed, "again": score} | ({"split": split} if split else {})
    add(store, "miniature/evaluate_ppo", "evaluation", {"model": policy}, {"gold/score": score}, config)


def test_the_newest_test_figures_of_each_seed_are_taken(claims, tmp_path):
    store = ArtifactStore(tmp_path)
    for seed, split, score in ((1, "test", 0.1), (0, "test", 0.2), (1, "test", 0.3), (0, "validation", 0.4)):
        evaluated(store, seed, split, score)
    evaluated(store, 2, None, 0.5)  # of a version that had no such knob
    assert claims.by_seed(tmp_path, "evaluate_ppo") == {0: {"gold/score": 0.2}, 1: {"gold/score": 0.3}}


def test_coefficients_are_compared_on_validation_prompts(claims, tmp_path):
    store = ArtifactStore(tmp_path)
    evaluated(store, 0, "test", 0.1)
    evaluated(store, 0, "validation", 0.2)
    evaluated(store, 0, "validation", 0.3, beta=0.05)
    found = claims.by_beta(tmp_path)
    assert [(beta, [run["gold/score"] for run in runs]) for beta, runs in found.items()] == [
        (0.05, [0.3]),
        (0.1, [0.2]),
    ]
    assert found[0.05][0]["train/reward/model"] == pytest.approx(3.0)


def test_a_store_without_such_runs_is_said_in_a_line(claims, tmp_path):
    with pytest.raises(SystemExit, match="no version of miniature/evaluate_ppo on test prompts"):
        claims.by_seed(tmp_path, "evaluate_ppo")
