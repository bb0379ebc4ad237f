"""Crowds of simulated labelers, of whom some do not do their work, and how many of them screening finds.

    python tests/label_crowds.py [--crowds 200] [--answers 6] [--gold 0.1]

A crowd has 20 good labelers and one of each bad kind. Each ranks 100 items; two labelers rank one item in ten. Good
ones order 72.6 % of the pairs alike. Prints the share of each kind that gets a verdict, and the right one.
"""

from __future__ import annotations

import argparse
import random
from collections import Counter, defaultdict
from typing import Any

import numpy as np

from align.labelling.screening import CHANCE, COPIES, LENGTH, ORDER, SPEED, verdicts
from align.labelling.simulated import Judged, Labelers, agreeing_pairs, to_ranks

KINDS = {"random": CHANCE, "order": ORDER, "longer": LENGTH, "fast": SPEED, "copies": COPIES}
VOTES, OVERLAP_SHARE, AGREEMENT = 100, 0.1, 0.726
Rankings = list[dict[str, Any]]


def crowd(seed: int, answers: int, gold_share: float = 0.0, good: int = 20) -> Rankings:
    """The rankings of a crowd. A labeler's name begins with its kind.

    Args:
        gold_share: the share of items whose ranking by gold score is known.
    """
    rng, draw = np.random.default_rng(seed), random.Random(seed)
    names = [*(f"good-{i}" for i in range(good)), *(f"{kind}-0" for kind in KINDS)]
    labelers = Labelers(len(names), 0.05, rng)
    labelers.calibrate([_item(rng, answers) for _ in range(400)], AGREEMENT)
    # A person's median time, and how items vary around it.
    pace = {name: draw.lognormvariate(np.log(30), 0.4) for name in names}
    left = dict.fromkeys(names, VOTES)
    found: Rankings = []
    number = 0
    while any(left.values()):
        number += 1
        free = [name for name in names if left[name]]
        count = min(len(free), 2 if draw.random() < OVERLAP_SHARE else 1)
        judged = _item(rng, answers)
        texts = ["w" * int(words) for words in judged.words]
        gold = to_ranks(judged.gold, 0.0) if draw.random() < gold_share else None
        own: Rankings = []
        # Who copies comes last: there must be something to copy.
        for name in sorted(draw.sample(free, count), key=lambda each: each.startswith("copies")):
            left[name] -= 1
            shown = draw.sample(range(answers), answers)
            ranks = labelers.rank(judged, names.index(name))
            kind = name.split("-")[0]
            ranks = _spoilt(kind, ranks, shown, judged, own, draw)
            seconds = 2.0 if kind == "fast" else pace[name] * draw.lognormvariate(0, 0.5)
            content = {"ranks": ranks, "shown": shown, "seconds": seconds, "ratings": [], "flags": []}
            row = {"prompt": [], "responses": texts}
            own.append({"item": str(number), "labeler": name, "content": content, "row": row, "gold": gold})
        found += own
    return found


def _item(rng: np.random.Generator, answers: int) -> Judged:
    return Judged(rng.random(answers), rng.integers(20, 200, answers).astype(float), np.arange(answers))


def _spoilt(
    kind: str, ranks: list[int], shown: list[int], judged: Judged, before: Rankings, draw: random.Random
) -> list[int]:
    """What a bad labeler gives in place of an honest ranking."""
    count = len(ranks)
    if kind == "random":
        return draw.sample(range(1, count + 1), count)
    if kind == "order" and draw.random() < 0.8:  # sometimes it is honest
        return [shown.index(place) + 1 for place in range(count)]
    if kind == "longer" and draw.random() < 0.95:
        order = sorted(range(count), key=lambda place: -judged.words[place])
        return [order.index(place) + 1 for place in range(count)]
    if kind == "copies" and before:
        return list(before[0]["content"]["ranks"])
    return ranks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--crowds", type=int, default=200)
    parser.add_argument("--answers", type=int, default=6)
    parser.add_argument("--gold", type=float, default=0.0)
    options = parser.parse_args()
    labelers, named, right = Counter[str](), Counter[str](), Counter[str]()
    reasons: dict[str, Counter[str]] = defaultdict(Counter)
    pairs = np.zeros(2, dtype=int)
    for seed in range(options.crowds):
        rankings = crowd(seed, options.answers, options.gold)
        pairs += agreement_of_good(rankings)
        for name, said in verdicts(rankings).items():
            kind = name.split("-")[0]
            labelers[kind] += 1
            named[kind] += bool(said)
            right[kind] += KINDS.get(kind) in said
            reasons[kind].update(said)
    print(f"good labelers order {pairs[0] / pairs[1]:.1%} of pairs alike")
    for kind, count in labelers.items():
        print(f"{kind}: {count} labelers, {named[kind] / count:.1%} named, {right[kind] / count:.1%} for their kind")
        print("   ", dict(reasons[kind]))


def agreement_of_good(rankings: Rankings) -> np.ndarray:
    """(pairs ordered alike, pairs that both order) among good labelers."""
    first: dict[str, list[int]] = {}
    total = np.zeros(2, dtype=int)
    for ranking in rankings:
        if ranking["labeler"].startswith("good"):
            ranks = ranking["content"]["ranks"]
            if ranking["item"] in first:
                total += agreeing_pairs(first[ranking["item"]], ranks)
            first[ranking["item"]] = ranks
    return total


if __name__ == "__main__":
    main()
