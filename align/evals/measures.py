"""Measures per item from the candidates' log-probs: accuracy, confidence and leaning."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from align.evals.items import Candidate, Item

Row = Sequence[Candidate]


def measures(
    items: Sequence[Item], scores: Sequence[Row], alone: Sequence[Row] | None = None
) -> dict[str, list[float]]:
    """Return a number per item for each measure that all of these items have.

    - `accuracy`: a single candidate is greedy; of several candidates, the likeliest is right (MC1
      of TruthfulQA).
    - `accuracy_norm`: the likeliest per character is right, as `acc_norm` of lm-eval.
    - `accuracy_token`: the likeliest per token is right [GPT-3, section 2.4].
    - `accuracy_relative`: the candidate with the largest ratio P(completion | context) /
      P(completion | answer context) is right [GPT-3, section 2.4: ARC, OpenBookQA, RACE].
    - `right_share`, if an item has several right candidates: their fraction of all candidates'
      probability (MC2).
    - `entropy`, for `leaning` items: entropy of the candidates' probabilities, in bits; 1 is a pair
      that leans to neither side [InstructGPT, section 4.2: Winogender, CrowS-Pairs].
    - `logprob`, for single candidates: in nats.

    Args:
        alone: the same candidates after each item's `answer_context`.

    Raises:
        ValueError: some items have one candidate and others several; "right" has another meaning
            for each.
    """
    single = [len(item["completions"]) == 1 for item in items]
    if any(single) and not all(single):
        raise ValueError("items with one candidate are mixed with others; give them as two tasks")
    if all(single):
        return {
            "accuracy": [float(row[0].is_greedy) for row in scores],
            "logprob": [row[0].logprob for row in scores],
        }
    values: dict[str, Callable[[int, int], float]] = {"accuracy": lambda i, j: scores[i][j].logprob}
    # The length matters only if completions differ.
    if not all(len(set(item["completions"])) == 1 for item in items):
        values["accuracy_norm"] = lambda i, j: (
            scores[i][j].logprob / max(1, scores[i][j].characters)
        )
        values["accuracy_token"] = lambda i, j: scores[i][j].logprob / max(1, scores[i][j].tokens)
    if alone is not None:
        values["accuracy_relative"] = lambda i, j: scores[i][j].logprob - alone[i][j].logprob
    found = {
        name: [
            float(item["labels"][_largest(value, i, len(scores[i]))])
            for i, item in enumerate(items)
        ]
        for name, value in values.items()
    }
    shares = [probabilities(row) for row in scores]
    if any(sum(item["labels"]) > 1 for item in items):
        found["right_share"] = [
            sum(p for p, right in zip(row, item["labels"], strict=True) if right)
            for row, item in zip(shares, items, strict=True)
        ]
    if _leaning(items):
        found["entropy"] = [-sum(p * math.log2(p) for p in row if p > 0) for row in shares]
    return found


def _leaning(items: Sequence[Item]) -> bool:
    return all(item.get("leaning") for item in items)


def _largest(value: Callable[[int, int], float], i: int, count: int) -> int:
    return max(range(count), key=lambda j: value(i, j))


def probabilities(row: Row) -> list[float]:
    """Return softmax over the candidates' log-probs."""
    top = max(candidate.logprob for candidate in row)
    mass = [math.exp(candidate.logprob - top) for candidate in row]
    return [m / sum(mass) for m in mass]


def confidences(items: Sequence[Item], scores: Sequence[Row]) -> list[float] | None:
    """Return the probability of each item's likeliest candidate.

    Return None if the items are `leaning`, or if any item does not have several candidates with
    exactly one right.
    """
    if _leaning(items) or any(
        len(item["completions"]) == 1 or sum(item["labels"]) != 1 for item in items
    ):
        return None
    return [max(probabilities(row)) for row in scores]
