"""What GLUE measures: of classes accuracy, F1 and Matthews' correlation, of scores Pearson's and Spearman's.

Each comes with the bounds of its 95 % interval, and beside it is what a predictor does that looks at no text.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from align.evals.intervals import bootstrap, bootstrap_statistic, bounds, compared, few

_DRAWS = 1000  # of rows, for an interval


def class_metrics(
    head: str, gold: Sequence[int], predicted: Sequence[int], majority: int, num_classes: int, seed: int
) -> dict[str, float]:
    """Metrics of classes 0 to num_classes - 1; `majority` is the class that the baseline always says.

    Args:
        head: what the names begin with.
    """
    truth, said = np.asarray(gold), np.asarray(predicted)
    right = [(truth == answer).astype(float) for answer in (said, majority)]
    found = compared(head, "accuracy", right, _DRAWS, seed)
    f1 = bootstrap_statistic(lambda a, b: f1_score(a, b, num_classes), (truth, said), _DRAWS, seed)
    correlation = bootstrap_statistic(lambda a, b: matthews(a, b, num_classes), (truth, said), _DRAWS, seed)
    for name, interval in (("f1", f1), ("matthews", correlation)):
        found |= bounds(f"{head}{name}", interval) | few(f"{head}{name}", len(truth))
    return found


def choice_metrics(
    head: str, gold: Sequence[int], predicted: Sequence[int], most_frequent: int, seed: int
) -> dict[str, float]:
    """Accuracy alone, for a place among choices is no class; the baseline takes the place that is right most often."""
    truth = np.asarray(gold)
    right = [(truth == answer).astype(float) for answer in (np.asarray(predicted), most_frequent)]
    return compared(head, "accuracy", right, _DRAWS, seed)


def score_metrics(
    head: str, gold: Sequence[float], predicted: Sequence[float], mean: float, seed: int
) -> dict[str, float]:
    """Metrics of scores; the baseline always says `mean`, which correlates with nothing."""
    columns = np.asarray(gold, dtype=float), np.asarray(predicted, dtype=float)
    found = bounds(f"{head}mse", bootstrap((columns[0] - columns[1]) ** 2, _DRAWS, seed))
    found |= few(f"{head}mse", len(columns[0]))
    found |= bounds(f"{head}baseline/mse", bootstrap((columns[0] - mean) ** 2, _DRAWS, seed))
    for name, statistic in (("pearson", pearson), ("spearman", spearman)):
        found |= bounds(f"{head}{name}", bootstrap_statistic(statistic, columns, _DRAWS, seed))
        found |= few(f"{head}{name}", len(columns[0]))
    return found


def _confusion(gold: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """[C, C]: how often class i was called j."""
    pairs = np.bincount(gold * num_classes + predicted, minlength=num_classes**2)
    return pairs.reshape(num_classes, num_classes)


def f1_score(gold: np.ndarray, predicted: np.ndarray, num_classes: int) -> float:
    """Of class 1 where there are two; else the mean over the classes that occur. 0 where nothing was found."""
    table = _confusion(gold, predicted, num_classes)
    hits, either = np.diag(table), table.sum(0) + table.sum(1)
    each = 2 * hits / np.maximum(either, 1)
    return float(each[1] if num_classes == 2 else each[either > 0].mean())


def matthews(gold: np.ndarray, predicted: np.ndarray, num_classes: int) -> float:
    """Correlation of two classifications, for any number of classes; 0 where either has one class alone.

    Source: Gorodkin 2004, the R_K statistic; of two classes Matthews 1975.
    """
    table = _confusion(gold, predicted, num_classes).astype(float)
    total, said, true = table.sum(), table.sum(0), table.sum(1)
    covariance = np.trace(table) * total - said @ true
    spread = (total**2 - said @ said) * (total**2 - true @ true)
    return float(covariance / spread**0.5) if spread > 0 else 0.0


def pearson(x: np.ndarray, y: np.ndarray) -> float:
    """Linear correlation; 0 where one of the two is constant."""
    x, y = x - x.mean(), y - y.mean()
    spread = (x @ x) * (y @ y)
    return float(x @ y / spread**0.5) if spread > 0 else 0.0


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Pearson's correlation of ranks, equal values sharing the mean of theirs."""
    return pearson(_ranks(x), _ranks(y))


def _ranks(values: np.ndarray) -> np.ndarray:
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    return (count.cumsum() - (count - 1) / 2)[place]
