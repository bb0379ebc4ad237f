"""Learning a unigram model, beside all ways to cut a word written out."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter

import numpy as np
import pytest

from align.text import unigram
from align.text.unigram import learn_pieces

PIECES = ["a", "b", "c", "ab", "bc", "abc", "ca", "cab", "bca"]
WORDS = {"abc": 5, "abcab": 3, "a": 2, "cabca": 7, "bbb": 1}


def ways(word: str, pieces: list[str]) -> list[list[str]]:
    """Every way to cut a word into pieces."""
    cuts = itertools.chain.from_iterable(itertools.combinations(range(1, len(word)), n) for n in range(len(word) or 1))
    found = []
    for cut in cuts:
        ends = [0, *cut, len(word)]
        parts = [word[i:j] for i, j in itertools.pairwise(ends)]
        if all(part in pieces for part in parts):
            found.append(parts)
    return found


@pytest.fixture
def probability() -> dict[str, float]:
    rng = random.Random(3)
    weights = [rng.random() for _ in PIECES]
    return {piece: weight / sum(weights) for piece, weight in zip(PIECES, weights, strict=True)}


def scores_of(probability: dict[str, float]) -> np.ndarray:
    return np.log(np.array([probability[piece] for piece in PIECES]))


def test_expected_counts_are_those_over_every_way_to_cut(probability: dict[str, float]) -> None:
    expected: Counter[str] = Counter()
    for word, n in WORDS.items():
        weights = [math.prod(probability[part] for part in parts) for parts in ways(word, PIECES)]
        for parts, weight in zip(ways(word, PIECES), weights, strict=True):
            for part in parts:
                expected[part] += n * weight / sum(weights)
    got = unigram._expected(unigram._lattices(WORDS, PIECES), scores_of(probability))
    assert got == pytest.approx([expected[piece] for piece in PIECES], rel=1e-12)


@pytest.mark.parametrize("whole", [True, False])
def test_the_likeliest_cut_is_the_likeliest_of_all(probability: dict[str, float], whole: bool) -> None:
    known = np.append(scores_of(probability), -np.inf)
    words = {word: n for word, n in WORDS.items() if whole or len(word) > 1}
    found: dict[str, list[str]] = {}
    for group in unigram._lattices(words, PIECES):
        steps = list(unigram._likeliest(group, known, whole))
        for place, word in enumerate([word for word in words if len(word) == group.length]):
            found[word] = [PIECES[step[place]] for step in steps if step[place] < len(PIECES)][::-1]
    for word in words:
        every = [parts for parts in ways(word, PIECES) if whole or len(parts) > 1]
        assert found[word] == max(every, key=lambda parts: math.prod(probability[part] for part in parts))


def test_the_pieces_that_words_were_made_of_are_found() -> None:
    rng = random.Random(0)
    planted = ["kato", "mire", "sulp", "onda", "virek"]
    words = Counter("".join(rng.choices(planted, k=rng.randint(1, 4))) for _ in range(5000))
    alphabet = sorted(set("".join(planted)))
    learned = learn_pieces(words, alphabet, len(alphabet) + len(planted))
    assert {piece for piece, _ in learned if len(piece) > 1} == set(planted)


def test_a_frequent_word_that_is_no_part_of_another_is_a_piece() -> None:
    words = {"hello": 500, **{"".join(pair): 1 for pair in itertools.permutations("abcdefg", 3)}}
    assert "hello" in {piece for piece, _ in learn_pieces(words, "abcdefghlo", 12)}


def test_the_result_has_the_whole_alphabet_the_size_asked_and_a_probability_each() -> None:
    rng = random.Random(1)
    known = ["".join(rng.choices("aabcdeeinorst", k=rng.randint(1, 9))) for _ in range(200)]
    words = {word: 1 + 3000 // rank for rank, word in enumerate(known, 1)}
    alphabet = "abcdeinorstxyz"
    learned = learn_pieces(words, alphabet, 60)
    assert len(learned) == len(dict(learned)) == 60
    assert set(alphabet) <= dict(learned).keys()
    scores = [score for _, score in learned]
    assert scores == sorted(scores, reverse=True)
    assert sum(map(math.exp, scores)) <= 1
    assert all(len(piece) <= 16 for piece, _ in learned)
    assert learn_pieces(dict(sorted(words.items())), reversed(alphabet), 60) == learned


def test_nothing_but_the_alphabet_is_learned_of_nothing() -> None:
    assert sorted(piece for piece, _ in learn_pieces({}, "ab", 10)) == ["a", "b"]
    assert sorted(piece for piece, _ in learn_pieces({"-" * 500: 9, "": 3}, "-", 10)) == ["-"]
