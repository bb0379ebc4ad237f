"""Measures of reward models against scipy, against published scoring rules, and against identities."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import scipy.stats
import torch

from align.evals.intervals import bootstrap
from align.evals.preferences import (
    Scored,
    Shares,
    agreement,
    best_of,
    kendall_tau,
    length_rule,
    pair_credit,
    style_cells,
    ties_score,
)
from align.evals.reward_metrics import CHANCE, calibration_metrics, reward_metrics, verdict_on
from align.losses.preference import pairwise_accuracy

RNG = np.random.default_rng(0)


def ranking(ranks, scores, lengths=None, prompt="", **more):
    return Scored(prompt, list(ranks), list(scores), list(lengths or [1] * len(ranks)), **more)


def drawn(count, k=4, prompts=None):
    """Rankings with ties in labels, and some in scores."""
    return [
        ranking(
            [1, *RNG.integers(1, 4, k - 2).tolist(), 3],
            RNG.integers(0, 5, k).tolist(),
            RNG.integers(1, 60, k).tolist(),
            prompt=str(i if prompts is None else i % prompts),
        )
        for i in range(count)
    ]


def test_accuracy_is_what_the_reward_stage_counts():
    for each in drawn(50):
        expected = pairwise_accuracy(torch.tensor(each.scores, dtype=torch.float), torch.tensor(each.ranks))
        assert pair_credit(each.scores, each) == expected


def test_kendall_s_tau_is_scipy_s():
    for each in drawn(60, k=6):
        expected = scipy.stats.kendalltau(each.scores, [-rank for rank in each.ranks]).statistic
        assert kendall_tau(each.scores, each.ranks) == pytest.approx(expected, abs=1e-12)
    assert kendall_tau([2.0, 2.0, 2.0], [1, 2, 3]) == 0.0  # scipy has NaN


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([3, 1, 0, 2], 1.0),
        ([1, 3, 0, 2], 0.0),
        ([3, 3, 0, 2], 1 / 2),
        ([3, 3, 3, 3], 1 / 4),
        ([1, 3, 3, 0], 0.0),
    ],
)
def test_best_of_4_shares_a_tie_as_rewardbench_2_does(scores, expected):
    """There, a row counts 1 / (number of highest scores) if the good answer has one of them."""
    assert best_of(scores, [1, 2, 2, 2]) == expected


def test_best_of_k_needs_one_best_of_three():
    assert best_of([1, 0], [1, 2]) is None
    assert best_of([3, 2, 1], [1, 1, 2]) is None
    rows = [ranking((np.argsort(RNG.random(4)) + 1).tolist(), [0.0] * 4) for _ in range(9)]
    assert reward_metrics("", rows, [True] * 9, 10, 0)["best_of/chance"] == 0.25


# -- RM-Bench ------------------------------------------------------------------------------------

STYLES = ["concise", "detailed", "markdown"] * 2


def test_styles_are_the_triangles_of_rm_bench_s_matrix():
    """Its README: hard is above the diagonal of (chosen x rejected), easy below, normal on it."""
    rows = [ranking([1, 1, 1, 2, 2, 2], RNG.permutation(6).tolist(), styles=STYLES) for _ in range(40)]
    matrix = np.mean([[[s > t for t in r.scores[3:]] for s in r.scores[:3]] for r in rows], axis=0)
    found = reward_metrics("", rows, [True] * 40, 0, 0)
    assert found["styles/hard"] == pytest.approx(np.triu(matrix, 1).sum() / 3)
    assert found["styles/normal"] == pytest.approx(np.diag(matrix).mean())
    assert found["styles/easy"] == pytest.approx(np.tril(matrix, -1).sum() / 3)


def test_a_row_without_every_style_on_both_sides_has_no_style_figures():
    assert style_cells(ranking([1, 2], [1, 0])) == {}
    assert style_cells(ranking([1, 1, 2, 2, 2], [1, 0, 0, 0, 0], styles=STYLES[:3] + STYLES[:2])) == {}
    assert style_cells(ranking([1, 1, 1, 2, 2], [1, 0, 0, 0, 0], styles=STYLES)) == {}


# -- RewardBench 2's Ties --------------------------------------------------------------------------


def ties_by_the_published_rule(rows):
    """The weights and terms of `process_single_model` in allenai/reward-bench, in numpy's own division."""
    stats = {}
    for row in rows:
        good, bad = ([s for s, rank in zip(row.scores, row.ranks, strict=True) if rank == side] for side in (1, 2))
        stats[row.ties] = (max(good) - min(good), min(good) - max(bad))
    tied = {name[5:]: value for name, value in stats.items() if name.startswith("tied:")}
    ref = {name[4:]: value for name, value in stats.items() if name.startswith("ref:")}
    spread, lead = (np.array([tied[i][part] for i in tied if i in ref]) for part in (0, 1))
    other = np.array([ref[i][1] for i in tied if i in ref])
    with np.errstate(divide="ignore", invalid="ignore"):
        margin = np.nan_to_num(np.tanh(np.minimum(other, lead) / spread - 1), nan=0.0)
    return (
        0.3 * np.mean([value[1] > 0 for value in tied.values()])
        + 0.3 * np.mean([value[1] > 0 for value in ref.values()])
        + 0.2 * np.mean(lead > spread)
        + 0.2 * np.mean(np.minimum(other, lead) > spread)
        + 0.01 * margin.mean()
    )


def test_ties_are_scored_by_the_published_rule():
    rows = []
    for i in range(30):  # small whole numbers: spreads and leads of 0 are among them
        rows.append(ranking([1, 1, 1, 2, 2], np.add(RNG.integers(0, 4, 5), [2, 2, 2, 0, 0]).tolist(), ties=f"tied:{i}"))
        rows.append(ranking([1, 2, 2], np.add(RNG.integers(0, 4, 3), [2, 0, 0]).tolist(), ties=f"ref:{i + 3}"))
    found = ties_score(rows)
    assert found["score"] == pytest.approx(ties_by_the_published_rule(rows), abs=1e-12)
    assert ties_score([ranking([1, 2], [1, 0])]) == {}


def test_all_good_answers_alike_and_far_above_bad_ones_is_the_best_of_ties():
    rows = [ranking([1, 1, 2], [9, 9, 0], ties="tied:1"), ranking([1, 2], [9, 0], ties="ref:1")]
    assert ties_score(rows)["score"] == pytest.approx(1.01)


# -- length ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", [lambda n: n, lambda n: -n, lambda n: n**3, math.log])
def test_a_rule_of_length_alone_is_right_in_half_of_the_pairs_where_length_is_controlled(rule):
    rows = [ranking(r.ranks, [float(rule(n)) for n in r.lengths], r.lengths, prompt=r.prompt) for r in drawn(60)]
    found = reward_metrics("", rows, [True] * 60, 20, 0)
    assert found["length_controlled_accuracy"] == pytest.approx(0.5, abs=1e-12)
    assert found["length_controlled_accuracy_low"] == pytest.approx(0.5, abs=1e-12)


def test_scores_that_are_lengths_are_the_length_rule():
    rows = [ranking(r.ranks, r.lengths, r.lengths, prompt=r.prompt) for r in drawn(40)]
    found = reward_metrics("", rows, [True] * 40, 20, 0)
    assert found["accuracy"] == found["length_accuracy"]
    assert (found["over_length"], found["over_length_low"], found["over_length_high"]) == (0, 0, 0)
    assert found["length/correlation"] == pytest.approx(1.0)
    other = reward_metrics("", rows, [False] * 40, 20, 0)
    assert other["length_accuracy"] == pytest.approx(1 - found["length_accuracy"])
    assert length_rule(rows[0], longer=False) == [-float(n) for n in rows[0].lengths]


def test_bins_by_length_hold_every_pair_once():
    rows = drawn(40)
    found = reward_metrics("", rows, [True] * 40, 0, 0)
    bins = ("chosen_shorter", "about_equal", "chosen_longer")
    pairs = [found[f"length/{name}/pairs"] for name in bins]
    assert sum(pairs) == found["pairs"]
    mean = sum(n * found[f"length/{name}/accuracy"] for n, name in zip(pairs, bins, strict=True)) / sum(pairs)
    assert mean == pytest.approx(found["accuracy"])
    (short,) = [reward_metrics("", [ranking([1, 2], [1, 0], [50, 100])], [True], 0, 0)]
    assert (short["length/chosen_shorter/pairs"], short["length/chosen_longer/pairs"]) == (1, 0)
    close = reward_metrics("", [ranking([1, 2], [1, 0], [91, 100])], [True], 0, 0)
    assert close["length/about_equal/pairs"] == 1


def test_the_correlation_with_length_is_within_prompts():
    """Between prompts it says nothing: a reward model may give every answer to a hard prompt less."""
    rows = [ranking([1, 2], [100 * i + 1, 100 * i], [100 * i, 100 * i + 1], prompt=str(i)) for i in range(1, 9)]
    found = reward_metrics("", rows, [True] * 8, 0, 0)
    assert found["length/correlation"] == pytest.approx(-1.0)


# -- intervals -------------------------------------------------------------------------------------


def test_intervals_are_of_prompts_and_not_of_pairs():
    """Equal rankings of one prompt say nothing new: 20 copies leave the interval as it is."""
    rows = [ranking([1, 2], [i % 3, 1], prompt=str(i)) for i in range(60)]
    once = Shares([r.prompt for r in rows], 300, 7).of("a", [pair_credit(r.scores, r) for r in rows])
    many = rows * 20
    copied = Shares([r.prompt for r in many], 300, 7).of("a", [pair_credit(r.scores, r) for r in many])
    assert copied == pytest.approx(once)
    expected = bootstrap([pair_credit(r.scores, r)[0] for r in rows], 300, 7)
    assert tuple(once.values()) == pytest.approx(expected)


def test_pairs_that_count_nothing_give_no_figure():
    shares = Shares(["a", "b"], 10, 0)
    assert shares.of("x", [(0.0, 0.0)] * 2) == {}
    assert shares.gap("x", [(0.0, 0.0)] * 2, [(0.0, 0.0)] * 2) == {}
    assert shares.correlation("x", [[(1.0, 3.0)], [(2.0, 3.0)]]) == {}


# -- annotators ------------------------------------------------------------------------------------


def test_agreement_counts_pairs_that_both_annotators_order():
    votes = [[[1, 2], [1, 2], [2, 1]], [[1, 1], [1, 2]], [[1, 2]]]
    assert agreement(votes) == (1.0, 3.0)
    three = [[1, 2, 3], [1, 3, 2]]
    pairs = [(a[i] - a[j]) * (b[i] - b[j]) > 0 for a, b in [three] for i, j in itertools.combinations(range(3), 2)]
    assert agreement([three]) == (sum(pairs), 3.0)


# -- calibration -----------------------------------------------------------------------------------


def test_dividing_by_the_own_temperature_undoes_a_scale():
    """A model that is three times as sure as it should be is, at temperature 3, the model that is not."""
    margins = RNG.normal(0.5, 1.5, 300).tolist()
    plain = calibration_metrics(margins, None, 20, 0)
    scaled = calibration_metrics([3 * m for m in margins], 3.0, 20, 0)
    assert "tempered_ece" not in plain
    assert scaled["tempered_ece"] == pytest.approx(plain["ece"])
    assert scaled["tempered_ece_chance"] == pytest.approx(plain["ece_chance"])
    assert scaled["temperature"] == pytest.approx(3 * plain["temperature"], rel=1e-6)
    assert scaled["ece"] != pytest.approx(plain["ece"], rel=0.1)
    assert calibration_metrics([1e4, -1e4], 0.01, 2, 0)["ece"] == pytest.approx(0.5)  # no overflow


# -- the verdict -----------------------------------------------------------------------------------


def judged(accuracy, lead, prompts=400.0, **more):
    """The verdict on figures with intervals as (mean, low, high)."""
    figures = {"accuracy": accuracy, "over_length": lead, "length_accuracy": (0.5, 0.45, 0.55)}
    metrics = {f"{n}{end}": v[i] for n, v in figures.items() for i, end in enumerate(("", "_low", "_high"))}
    return verdict_on({**metrics, "pairs": prompts, "prompts": prompts, **more})


@pytest.mark.parametrize(
    ("accuracy", "lead", "sign", "said"),
    [
        ((0.7, 0.66, 0.74), (0.1, 0.05, 0.15), 1, "good enough for PPO, above chance and above length alone: "),
        ((0.7, 0.66, 0.74), (-0.1, -0.15, -0.05), -1, "not good enough for PPO, not above length alone: "),
        ((0.7, 0.66, 0.74), (0.01, -0.03, 0.05), -1, "not good enough for PPO, not above length alone: "),
        ((0.5, 0.48, 0.52), (0.1, 0.05, 0.15), -1, "not good enough for PPO, not above chance: "),
        ((0.4, 0.30, 0.50), (-0.1, -0.3, -0.02), -1, "not good enough for PPO, not above chance or length alone: "),
        ((0.7, 0.60, 0.80), (0.05, -0.1, 0.2), 0, "cannot tell whether it is above length alone, the interval is"),
        ((0.55, 0.45, 0.65), (0.05, -0.1, 0.2), 0, "cannot tell whether it is above chance and length alone, the"),
    ],
)
def test_the_verdict_follows_both_intervals(accuracy, lead, sign, said):
    found = judged(accuracy, lead)
    assert found.sign == sign
    assert found.text.startswith(said)
    assert "chance 50 %" in found.text
    assert CHANCE == 0.5


def test_few_prompts_cannot_tell_and_wide_intervals_say_how_many_would():
    assert judged((0.9, 0.8, 1.0), (0.4, 0.3, 0.5), 20.0, accuracy_few=20.0).sign == 0
    wide = judged((0.6, 0.4, 0.8), (0.1, 0.05, 0.15), 40.0)
    assert wide.text.endswith("; about 640 prompts would tell")  # (0.4 / 0.1)^2 times as many
