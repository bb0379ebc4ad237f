"""GLUE's metrics: accuracy, F1 and Matthews' correlation; Pearson's and Spearman's correlation.

The first three are for classes, the other two for scores. Each metric has the bounds of its 95 %
interval. Beside them are the metrics of a baseline that reads no text.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from align.evals.intervals import bootstrap, bootstrap_statistic, bounds, compared, few

_DRAWS = 1000  # resamples of the rows, for an interval


def class_metrics(
    head: str,
    gold: Sequence[int],
    predicted: Sequence[int],
    majority: int,
    num_classes: int,
    seed: int,
) -> dict[str, float]:
    """Return metrics of classes 0 to num_classes - 1.

    Args:
        head: the beginning of the metrics' names.
        majority: the class that the baseline always predicts.
    """
    truth, said = np.asarray(gold), np.asarray(predicted)
    right = [(truth == answer).astype(float) for answer in (said, majority)]
    found = compared(head, "accuracy", right, _DRAWS, seed)
    f1 = bootstrap_statistic(lambda a, b: f1_score(a, b, num_classes), (truth, said), _DRAWS, seed)
    correlation = bootstrap_statistic(
        lambda a, b: matthews(a, b, num_classes), (truth, said), _DRAWS, seed
    )
    for name, interval in (("f1", f1), ("matthews", correlation)):
        found |= bounds(f"{head}{name}", interval) | few(f"{head}{name}", len(truth))
    return found


def choice_metrics(
    head: str, gold: Sequence[int], predicted: Sequence[int], most_frequent: int, seed: int
) -> dict[str, float]:
    """Return the accuracy of choices, and of the baseline that takes `most_frequent`.

    The index of a choice is not a class, so F1 and correlation have no meaning. `most_frequent` is
    the index that is right most often.
    """
    truth = np.asarray(gold)
    right = [(truth == answer).astype(float) for answer in (np.asarray(predicted), most_frequent)]
    return compared(head, "accuracy", right, _DRAWS, seed)


def score_metrics(
    head: str, gold: Sequence[float], predicted: Sequence[float], mean: float, seed: int
) -> dict[str, float]:
    """Return metrics of scores.

    The baseline always predicts `mean`, which correlates with nothing, so it has only an error.
    """
    columns = np.asarray(gold, dtype=float), np.asarray(predicted, dtype=float)
    found = bounds(f"{head}mse", bootstrap((columns[0] - columns[1]) ** 2, _DRAWS, seed))
    found |= few(f"{head}mse", len(columns[0]))
    found |= bounds(f"{head}baseline/mse", bootstrap((columns[0] - mean) ** 2, _DRAWS, seed))
    for name, statistic in (("pearson", pearson), ("spearman", spearman)):
        found |= bounds(f"{head}{name}", bootstrap_statistic(statistic, columns, _DRAWS, seed))
        found |= few(f"{head}{name}", len(columns[0]))
    return found


def _confusion(gold: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """Return a table [C, C]: how often class i was predicted as j."""
    pairs = np.bincount(gold * num_classes + predicted, minlength=num_classes**2)
    return pairs.reshape(num_classes, num_classes)


def f1_score(gold: np.ndarray, predicted: np.ndarray, num_classes: int) -> float:
    """Return F1 of class 1 if there are two classes, else the mean over the classes that occur.

    A class without hits has 0.
    """
    table = _confusion(gold, predicted, num_classes)
    hits, either = np.diag(table), table.sum(0) + table.sum(1)
    each = 2 * hits / np.maximum(either, 1)
    return float(each[1] if num_classes == 2 else each[either > 0].mean())


def matthews(gold: np.ndarray, predicted: np.ndarray, num_classes: int) -> float:
    """Return the correlation of two classifications, for any number of classes.

    It is 0 if either has only one class. Source: Gorodkin 2004, the R_K statistic; for two classes
    Matthews 1975.
    """
    table = _confusion(gold, predicted, num_classes).astype(float)
    total, said, true = table.sum(), table.sum(0), table.sum(1)
    covariance = np.trace(table) * total - said @ true
    spread = (total**2 - said @ said) * (total**2 - true @ true)
    return float(covariance / spread**0.5) if spread > 0 else 0.0


def pearson(x: np.ndarray, y: np.ndarray) -> float:
    """Return the linear correlation; 0 if either is constant."""
    x, y = x - x.mean(), y - y.mean()
    spread = (x @ x) * (y @ y)
    return float(x @ y / spread**0.5) if spread > 0 else 0.0


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Return Pearson's correlation of ranks; equal values share the mean of their ranks."""
    return pearson(_ranks(x), _ranks(y))


def _ranks(values: np.ndarray) -> np.ndarray:
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    return (count.cumsum() - (count - 1) / 2)[place]
