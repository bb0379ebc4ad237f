"""Metrics of a task: measures of one or two models over its items, with intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from align.evals.calibration import calibration_error, chance_error, reliability
from align.evals.free_form import exact_match, f1
from align.evals.intervals import Interval, bootstrap, bounds, compared, few
from align.evals.items import Candidate, Item
from align.evals.measures import confidences, measures

_LARGEST = 700.0  # its exponential is still a finite float


class Scored(NamedTuple):
    """A model's results on N items.

    Attributes:
        rows: [N] scores of their candidates.
        alone: [N] scores of the same candidates after each item's `answer_context`.
        answers: [N] the text that the model wrote.
    """

    rows: Sequence[Sequence[Candidate]]
    alone: Sequence[Sequence[Candidate]] | None = None
    answers: Sequence[str] | None = None

    def only(self, places: Sequence[int]) -> Scored:
        """Return the results on some of the items."""
        parts = ([part[i] for i in places] if part is not None else None for part in self)
        return Scored(*parts)  # type: ignore[arg-type]


def task_metrics(
    head: str, items: Sequence[Item], scored: Sequence[Scored], num_bootstrap: int, seed: int
) -> dict[str, float]:
    """Return every measure of `items`; names begin with `head`.

    `compared` describes the names of a baseline's metrics and of differences.

    Args:
        scored: of the model; then, if there is one, of the baseline.
    """
    values = [_by_item(items, own) for own in scored]
    found = {f"{head}items": float(len(items))}
    for name in values[0]:
        found |= compared(head, name, [own[name] for own in values], num_bootstrap, seed)
        if name == "logprob":
            found |= few(f"{head}perplexity", len(items))
            for part, own in zip(("", "baseline/"), values, strict=False):
                interval = bootstrap(own[name], num_bootstrap, seed)
                # Beyond it the perplexity overflows; the log-prob does not.
                if interval.low > -_LARGEST:
                    found |= bounds(f"{head}{part}perplexity", _perplexity(interval))
    sure = [confidences(items, own.rows) for own in scored]
    if sure[0] is not None:
        found |= _calibration(
            head,
            [own or [] for own in sure],
            [own["accuracy"] for own in values],
            num_bootstrap,
            seed,
        )
    return found


def _calibration(
    head: str,
    sure: Sequence[Sequence[float]],
    right: Sequence[Sequence[float]],
    num_bootstrap: int,
    seed: int,
) -> dict[str, float]:
    """Return the gap between confidence and accuracy.

    It is the mean overconfidence and the expected calibration error, beside the error that chance
    gives.
    """
    over = [[c - r for c, r in zip(*own, strict=True)] for own in zip(sure, right, strict=True)]
    found = compared(head, "overconfidence", over, num_bootstrap, seed) | few(
        f"{head}ece", len(sure[0])
    )
    for part, own, hits in zip(("", "baseline/"), sure, right, strict=False):
        mean, most = chance_error(own, num_bootstrap, seed)
        found[f"{head}{part}ece"] = calibration_error(own, hits)
        found |= {f"{head}{part}ece_chance": mean, f"{head}{part}ece_chance_high": most}
    return found


def _by_item(items: Sequence[Item], scored: Scored) -> dict[str, list[float]]:
    found = measures(items, scored.rows, scored.alone)
    if scored.answers is not None:
        for name, measure in (("exact_match", exact_match), ("f1", f1)):
            found[name] = [
                measure(
                    answer,
                    [c for c, ok in zip(item["completions"], item["labels"], strict=True) if ok],
                )
                for item, answer in zip(items, scored.answers, strict=True)
            ]
    return found


def _perplexity(interval: Interval) -> Interval:
    """Return exp(-x) of an interval of mean log-probs in nats, as in lm-eval."""
    return Interval(*(math.exp(-x) for x in (interval.mean, interval.high, interval.low)))


def written_rows(items: Sequence[Item], scored: Mapping[str, Scored]) -> list[dict[str, Any]]:
    """Return each model's text for items beside the right one; none if nothing was written."""
    if any(own.answers is None for own in scored.values()):
        return []
    return [
        {
            "context": item["contexts"][item["labels"].index(1)],
            "right": item["completions"][item["labels"].index(1)].strip(),
            **{model: own.answers[i] for model, own in scored.items() if own.answers is not None},
        }
        for i, item in enumerate(items)
    ]


def reliability_rows(
    task: str, items: Sequence[Item], scored: Mapping[str, Scored]
) -> list[dict[str, Any]]:
    """Return one row per model and bin of confidence, for tables and plots.

    A model has no rows if confidence has no meaning for the items.
    """
    rows = []
    for model, own in scored.items():
        sure = confidences(items, own.rows)
        if sure is not None:
            rows += [
                {"task": task, "model": model, **each._asdict()}
                for each in reliability(sure, measures(items, own.rows)["accuracy"])
            ]
    return rows
