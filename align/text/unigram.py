"""A unigram model of word pieces, trained by expectation maximisation [Kudo 2018, section 3.2].

The probability of a way to split a word is the product of its pieces' probabilities. Training
maximises the likelihood of the words, weighted by their counts, and removes the least useful pieces
until the wanted number is left. The steps are SentencePiece's (unigram_model_trainer.cc). The
trainer of `tokenizers` is not used: it gives different scores each time, and more tokens for the
same text than SentencePiece's or this one (`python benchmarks/unigram.py` counts them).
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch

_LONGEST_PIECE = 16  # characters [SentencePiece]
_LONGEST_WORD = 48  # characters; longer words are mostly rows of dashes
_MOST_WORDS = 100_000  # the most frequent; rarer words add time but hardly change counts
_SEEDS = 10  # initial pieces per piece to learn
_ROUNDS = 2  # of expectation maximisation before pieces are removed [SentencePiece]
_KEPT = 0.75  # fraction of the pieces that is kept each time [SentencePiece]
_MARGIN = 1.1  # times the wanted number; the likeliest are kept at the end [SentencePiece]


class _Words(NamedTuple):
    """Words of one length, and the piece that each of their substrings is."""

    length: int
    # [length, length + 1]: the row of `pieces` for the substring from i to j, or -1.
    place: np.ndarray
    pieces: np.ndarray  # [rows, N]: the index of a piece; the number of pieces if none
    weight: np.ndarray  # [N]: how often each word occurs


def learn_pieces(
    words: Mapping[str, int], alphabet: Iterable[str], size: int
) -> list[tuple[str, float]]:
    """Return pieces with their log-probabilities in nats, the likeliest first.

    All of `alphabet` is among them.

    Args:
        words: word -> count; every character is in `alphabet`.
        alphabet: characters, so that any text made of them can be split.
        size: the largest number of pieces; few words give fewer.
    """
    characters = sorted(alphabet)
    ranked = sorted((-n, word) for word, n in words.items() if 0 < len(word) <= _LONGEST_WORD)[
        :_MOST_WORDS
    ]
    known = {word: -n for n, word in ranked}
    pieces, counts = _seeds(known, characters, _SEEDS * size)
    scores = _maximised(counts)
    lattices = _lattices(known, pieces)
    wanted = int(_MARGIN * size)
    while True:
        for _ in range(_ROUNDS):
            counts = _expected(lattices, scores)
            useful = counts >= 0.5
            useful[: len(characters)] = True
            pieces, lattices = _only(useful, pieces, lattices)
            scores = _maximised(counts[useful])
        if len(pieces) <= wanted:
            break
        useful = _most_useful(
            lattices, pieces, scores, len(characters), max(wanted, int(_KEPT * len(pieces)))
        )
        pieces, lattices = _only(useful, pieces, lattices)
        scores = scores[useful]
    ranks = sorted((-score, piece) for piece, score in zip(pieces, scores.tolist(), strict=True))
    longer = [piece for _, piece in ranks if len(piece) > 1][: size - len(characters)]
    kept = {*characters, *longer}
    return [(piece, -rank) for rank, piece in ranks if piece in kept]


def _seeds(
    words: Mapping[str, int], characters: list[str], most: int
) -> tuple[list[str], np.ndarray]:
    """Return all characters and the substrings that cover most of the text, with their counts.

    Covered text is the count times the length. Substrings that occur once are left out.
    """
    counts: Counter[str] = Counter()
    for word, n in words.items():
        for start in range(len(word)):
            for end in range(start + 1, min(start + _LONGEST_PIECE, len(word)) + 1):
                counts[word[start:end]] += n
    longer = sorted(
        (-n * len(piece), piece) for piece, n in counts.items() if len(piece) > 1 and n > 1
    )[:most]
    pieces = [*characters, *(piece for _, piece in longer)]
    return pieces, np.array([counts[piece] for piece in pieces], np.float64)


def _maximised(counts: np.ndarray) -> np.ndarray:
    """Return log-probabilities from counts.

    The digamma function replaces the logarithm: it lowers rare pieces further.
    """
    kept = torch.from_numpy(np.maximum(counts, 0.5))
    return (torch.digamma(kept) - torch.digamma(kept.sum())).numpy()


def _lattices(words: Mapping[str, int], pieces: Sequence[str]) -> list[_Words]:
    ids = {piece: i for i, piece in enumerate(pieces)}
    by_length: dict[int, list[str]] = defaultdict(list)
    for word in words:
        by_length[len(word)].append(word)
    made = []
    for length, group in sorted(by_length.items()):
        spans = [(i, j) for j in range(1, length + 1) for i in range(max(0, j - _LONGEST_PIECE), j)]
        place = np.full((length, length + 1), -1)
        for row, (i, j) in enumerate(spans):
            place[i, j] = row
        table = np.array(
            [[ids.get(word[i:j], len(pieces)) for word in group] for i, j in spans], np.int32
        )
        made.append(
            _Words(length, place, table, np.array([words[word] for word in group], np.float64))
        )
    return made


def _only(
    chosen: np.ndarray, pieces: Sequence[str], lattices: list[_Words]
) -> tuple[list[str], list[_Words]]:
    """Return the chosen pieces, and the lattices of these pieces."""
    new = np.append(np.where(chosen, np.cumsum(chosen) - 1, chosen.sum()), chosen.sum()).astype(
        np.int32
    )
    kept = [group._replace(pieces=new[group.pieces]) for group in lattices]
    return list(itertools.compress(pieces, chosen)), kept


def _expected(lattices: list[_Words], scores: np.ndarray) -> np.ndarray:
    """Return each piece's expected count, over all ways to split every word."""
    known = np.append(scores, -np.inf)
    counts = np.zeros(len(known))
    for length, place, pieces, weight in lattices:
        edges = known[pieces]  # [rows, N]
        before, after = np.full((2, length + 1, len(weight)), -np.inf)
        before[0] = after[length] = 0.0
        for j in range(1, length + 1):
            starts = [i for i in range(j) if place[i, j] >= 0]
            before[j] = np.logaddexp.reduce(before[starts] + edges[place[starts, j]], axis=0)
        for i in reversed(range(length)):
            ends = [j for j in range(i + 1, length + 1) if place[i, j] >= 0]
            after[i] = np.logaddexp.reduce(after[ends] + edges[place[i, ends]], axis=0)
        for i, j in zip(*np.nonzero(place >= 0), strict=True):
            row = place[i, j]
            edges[row] += before[i] + after[j] - before[length]
        shares = np.exp(edges) * weight
        counts += np.bincount(pieces.ravel(), shares.ravel(), len(known))
    return counts[:-1]


def _likeliest(words: _Words, known: np.ndarray, whole: bool = True) -> Iterator[np.ndarray]:
    """Yield the pieces of each word's likeliest split from its end, one per word each time [N].

    Without `whole`, a split has at least two pieces.
    """
    length, place, pieces, weight = words
    best, back = (
        np.full((length + 1, len(weight)), -np.inf),
        np.zeros((length + 1, len(weight)), int),
    )
    best[0] = 0.0
    for j in range(1, length + 1):
        starts = np.array(
            [i for i in range(j) if place[i, j] >= 0 and (whole or (i, j) != (0, length))]
        )
        ways = best[starts] + known[pieces[place[starts, j]]]
        best[j], back[j] = ways.max(0), starts[ways.argmax(0)]
    column = np.arange(len(weight))
    end = np.full(len(weight), length)
    while (end > 0).any():
        start = back[end, column]
        yield np.where(end > 0, pieces[place[start, np.maximum(end, 1)], column], len(known) - 1)
        end = start


def _most_useful(
    lattices: list[_Words],
    pieces: Sequence[str],
    scores: np.ndarray,
    num_characters: int,
    most: int,
) -> np.ndarray:
    """Return a mask of the pieces to keep.

    These are the characters and the pieces without which the words' likelihood falls most
    [SentencePiece].
    """
    known = np.append(scores, -np.inf)
    used = np.zeros(len(known))
    for group in lattices:
        for step in _likeliest(group, known):
            used += np.bincount(step, group.weight, len(known))
    used[-1] = 0.0
    total = used.sum()
    places = {piece: i for i, piece in enumerate(pieces) if i >= num_characters and used[i] > 0}
    loss = np.full(len(pieces), -np.inf)
    for group in _lattices(places, pieces):  # a piece's weight is its index
        place = group.weight.astype(int)
        mine, instead = used[place], np.zeros(len(place))
        steps = list(_likeliest(group, known, whole=False))
        number = sum((step < len(pieces)).astype(float) for step in steps)
        for step in steps:
            instead += np.where(
                step < len(pieces), np.log(np.maximum(used[step] + mine, 1e-300)), 0.0
            )
        instead -= number * np.log(total + mine * (number - 1))
        loss[place] = mine * (np.log(mine / total) - instead)
    loss[:num_characters] = np.inf
    chosen = np.zeros(len(pieces), bool)
    chosen[np.argsort(-loss, kind="stable")[:most]] = True
    return chosen & (loss > -np.inf)
