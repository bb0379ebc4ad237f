"""Simulated labelers: how they rank, and how often two of them agree."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
from conftest import mostly_slow

from align.labelling.simulated import Labelers, agreeing_pairs, judge, to_ranks


def texts_of(words):
    """Different texts of as many words."""
    return [" ".join([f"w{i}"] * n) for i, n in enumerate(words)]


def prompts_of(count, k, seed=0):
    rng = np.random.default_rng(seed)
    return [judge(texts_of(rng.integers(1, 30, k)), rng.random(k)) for _ in range(count)]


def crew_of(count=5, tie_width=0.02, seed=0):
    return Labelers(count, tie_width, np.random.default_rng(seed))


def slow_ranks(likings, tie_width):
    ranks, rank, before = [0] * len(likings), 0, None
    for place in sorted(range(len(likings)), key=lambda i: -likings[i]):
        rank += before is None or before - likings[place] > tie_width
        ranks[place], before = rank, likings[place]
    return ranks


def slow_agreement(one, two):
    alike = ordered = 0
    for i, j in itertools.combinations(range(len(one)), 2):
        if one[i] != one[j] and two[i] != two[j]:
            ordered += 1
            alike += (one[i] < one[j]) == (two[i] < two[j])
    return alike, ordered


def test_to_ranks_by_hand():
    assert to_ranks(np.array([0.1, 0.9, 0.5]), 0.0) == [3, 1, 2]
    assert to_ranks(np.array([0.5, 0.5, 0.7]), 0.0) == [2, 2, 1]
    assert to_ranks(np.array([0.0, 0.25, 0.5, 1.0]), 0.25) == [2, 2, 2, 1]
    assert to_ranks(np.array([0.3]), 0.1) == [1]


@pytest.mark.parametrize("tie_width", [0.0, 0.05, 0.3])
def test_to_ranks_is_the_loop(tie_width):
    rng = np.random.default_rng(1)
    for _ in range(100):
        likings = rng.choice([rng.random(9), rng.integers(0, 4, 9) / 4.0])[: rng.integers(1, 10)]
        assert to_ranks(likings, tie_width) == slow_ranks(likings.tolist(), tie_width)


def test_agreeing_pairs_is_the_loop():
    rng = random.Random(0)
    for _ in range(100):
        k = rng.randint(1, 8)
        one, two = ([rng.randint(1, 5) for _ in range(k)] for _ in range(2))
        assert agreeing_pairs(one, two) == slow_agreement(one, two) == agreeing_pairs(two, one)


def test_agreeing_pairs_at_the_extremes():
    assert agreeing_pairs([1, 2, 3, 4], [1, 2, 3, 4]) == (6, 6)
    assert agreeing_pairs([1, 2, 3, 4], [4, 3, 2, 1]) == (0, 6)
    assert agreeing_pairs([1, 1, 2], [1, 2, 2]) == (1, 1)
    assert agreeing_pairs([1, 1, 1], [1, 2, 3]) == (0, 0)


def test_judge_notes_words_and_the_first_of_the_same_text():
    judged = judge(["a b", "c", "a b", "c ", "c"], [0.5, 0.1, 0.5, 0.1, 0.1])
    assert judged.words.tolist() == [2, 1, 2, 1, 1]
    assert judged.first.tolist() == [0, 1, 0, 3, 1]
    assert judged.gold.tolist() == [0.5, 0.1, 0.5, 0.1, 0.1]


def test_without_noise_the_order_is_gold_s():
    rng, crew = np.random.default_rng(2), crew_of(tie_width=0.0)
    for _ in range(50):
        gold = rng.permutation(8) / 8
        ranks = crew.rank(judge(texts_of([3] * 8), gold), crew.pick())
        assert ranks == [1 + sum(other > g for other in gold) for g in gold]


def test_without_noise_a_taste_is_for_length():
    crew = crew_of(tie_width=0.0)
    crew.tastes = np.array([0.05, -0.05])
    judged = judge(texts_of([1, 5, 9]), [0.5, 0.5, 0.5])
    assert crew.rank(judged, 0) == [3, 2, 1]
    assert crew.rank(judged, 1) == [1, 2, 3]


def test_a_taste_weighs_a_twentieth_of_gold_a_deviation():
    # lengths 1 and 3 lie one deviation each side of their mean, so a taste of 0.05 closes a gap of 0.1
    crew = crew_of(tie_width=0.0)
    crew.tastes = np.array([0.05])
    assert crew.rank(judge(texts_of([1, 3]), [0.59, 0.5]), 0) == [2, 1]
    assert crew.rank(judge(texts_of([1, 3]), [0.61, 0.5]), 0) == [1, 2]
    assert Labelers(4000, 0.0, np.random.default_rng(0)).tastes.std() == pytest.approx(0.05, rel=0.05)


@pytest.mark.parametrize("tie_width", [0.0, 0.1])
def test_the_same_text_always_ties(tie_width):
    crew = crew_of(tie_width=tie_width)
    crew.noise = 3.0
    judged = judge(["a b c", "d", "a b c", "e f", "a b c", "d"], [0.2, 0.9, 0.2, 0.4, 0.2, 0.9])
    rankings = [crew.rank(judged, crew.pick()) for _ in range(200)]
    assert all(r[0] == r[2] == r[4] and r[1] == r[5] for r in rankings)
    assert len({tuple(r) for r in rankings}) > 3


def test_different_texts_of_equal_worth_are_told_apart_by_noise():
    crew = crew_of(tie_width=0.0)
    crew.noise = 0.5
    judged = judge(texts_of([2, 2]), [0.5, 0.5])
    firsts = [crew.rank(judged, 0)[0] for _ in range(400)]
    assert set(firsts) == {1, 2}
    assert firsts.count(1) / 400 == pytest.approx(0.5, abs=0.1)


def test_liking_within_the_tie_width_is_a_tie():
    crew = crew_of(tie_width=0.1)
    judged = judge(texts_of([2, 2, 2, 2]), [0.30, 0.95, 0.90, 0.45])
    assert crew.rank(judged, 0) == [3, 1, 1, 2]


def test_the_noise_has_the_deviation_it_says():
    crew = crew_of(tie_width=0.0)
    crew.noise, crew.tastes = 0.25, np.zeros(1)
    judged = judge(texts_of([2, 2]), [0.6, 0.5])
    wins = np.mean([crew.rank(judged, 0) == [1, 2] for _ in range(6000)])
    # P(N(0.1, 0.25 sqrt 2) > 0) = Phi(0.28284) = 0.61135
    assert wins == pytest.approx(0.61135, abs=0.02)


@pytest.mark.parametrize("agreement", mostly_slow([0.65, 0.726, 0.85], [0.726]))
def test_fresh_rankings_agree_as_often_as_asked(agreement):
    crew = crew_of()
    reached = crew.calibrate(prompts_of(500, 8), agreement)
    assert reached == pytest.approx(agreement, abs=0.002)
    alike = ordered = 0
    rng = np.random.default_rng(9)
    for judged in prompts_of(2000, 8, seed=1):
        one, two = (crew.rank(judged, int(who)) for who in rng.choice(5, 2, replace=False))
        a, n = slow_agreement(one, two)
        alike, ordered = alike + a, ordered + n
    assert alike / ordered == pytest.approx(agreement, abs=0.01)


@pytest.mark.slow
def test_more_agreement_is_less_noise():
    noises = []
    for agreement in (0.6, 0.7, 0.8):
        crew = crew_of()
        crew.calibrate(prompts_of(200, 5), agreement)
        noises.append(crew.noise)
    assert noises == sorted(noises, reverse=True)
    assert noises[-1] > 0


def test_the_same_seed_gives_the_same_rankings():
    def rankings(seed):
        crew = crew_of(seed=seed)
        crew.calibrate(prompts_of(50, 5), 0.7)
        return [crew.rank(judged, crew.pick()) for judged in prompts_of(50, 5, seed=3)]

    assert rankings(4) == rankings(4)
    assert rankings(4) != rankings(5)


def test_pick_finds_every_labeler():
    crew = crew_of(count=3)
    assert {crew.pick() for _ in range(100)} == {0, 1, 2}
