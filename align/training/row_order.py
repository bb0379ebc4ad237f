"""Choose the rows for each step: a pure function of the seed and of the rows taken before."""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Sequence

import torch

from align.runtime.seeds import derive_seed
from align.text.tokens import TextRows


class RowOrder:
    """Rows in endless passes over all of them, each pass in its own random order.

    The order is a pure function of the seed and of `purpose`, which separates the uses of one seed.
    The order of the last requested pass is kept in memory, 8 bytes per row.
    """

    def __init__(self, num_rows: int, seed: int, *purpose: str):
        self._num_rows, self._seed, self._purpose = num_rows, seed, purpose
        self._epoch, self._order = -1, torch.empty(0)

    def take(self, first: int, count: int) -> torch.Tensor:
        """Return `count` rows from position `first` on, `[count]`, int64."""
        places = torch.arange(first, first + count)
        rows = torch.empty_like(places)
        for epoch in (places // self._num_rows).unique().tolist():
            here = places // self._num_rows == epoch
            rows[here] = self._pass(epoch)[places[here] % self._num_rows]
        return rows

    def of_step(self, step: int, batch_size: int) -> torch.Tensor:
        """Return the rows of a step; no step mixes two passes.

        The last step of a pass has the rows that are left.
        """
        epoch, place = divmod(step, math.ceil(self._num_rows / batch_size))
        return self._pass(epoch)[place * batch_size : (place + 1) * batch_size]

    def _pass(self, epoch: int) -> torch.Tensor:
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(
                derive_seed(self._seed, *self._purpose, epoch)
            )
            self._epoch, self._order = epoch, torch.randperm(self._num_rows, generator=generator)
        return self._order


class Mixture:
    """Rows of several sources in given proportions, each without replacement [GPT-3, section 2.2].

    Attributes:
        sources: the sources that are mixed.
        taken: rows taken of each source so far. There is no other state.

    Args:
        weights: one per source, with any sum. Empty: the sources count as one, so that every row
            comes once per pass.
    """

    def __init__(self, sources: Sequence[TextRows], weights: Sequence[float], seed: int):
        self.sources, self._seed = sources, seed
        self._weights = torch.tensor(weights, dtype=torch.float64)
        self.taken = [0] * len(sources)
        self._order = RowOrder(len(self), seed, "pretrain", "rows")
        self._orders = [
            RowOrder(len(own), seed, "pretrain", "rows", str(i)) for i, own in enumerate(sources)
        ]

    def __len__(self) -> int:
        return sum(map(len, self.sources))

    @property
    def passes(self) -> list[float]:
        """The number of passes made over each source."""
        return [taken / len(source) for taken, source in zip(self.taken, self.sources, strict=True)]

    def draw(self, step: int, count: int) -> list[tuple[int, int]]:
        """Return `count` pairs (source, row) for one step, and count them as taken."""
        if not len(self._weights):
            return self._of_one(sum(self.taken), count)
        generator = torch.Generator().manual_seed(
            derive_seed(self._seed, "pretrain", "mixture", step)
        )
        drawn = torch.multinomial(self._weights, count, replacement=True, generator=generator)
        pairs: list[tuple[int, int]] = []
        for number in range(len(self.sources)):
            own = int((drawn == number).sum())
            rows = self._orders[number].take(self.taken[number], own)
            pairs += [(number, row) for row in rows.tolist()]
            self.taken[number] += own
        return pairs

    def _of_one(self, first: int, count: int) -> list[tuple[int, int]]:
        ends = list(itertools.accumulate(map(len, self.sources)))
        pairs = []
        for place in self._order.take(first, count).tolist():
            number = bisect.bisect_right(ends, place)
            pairs.append((number, place - ends[number] + len(self.sources[number])))
            self.taken[number] += 1
        return pairs

    def tokens(self, pairs: Sequence[tuple[int, int]]) -> torch.Tensor:
        """Return token ids, `[R, length]`.

        R is 0 for a process that gets no row of a small batch.
        """
        if not pairs:
            return self.sources[0][:0]
        return torch.stack([self.sources[number][row] for number, row in pairs])


def batch_sizes(
    full: int, ramp: float, first: int, num_steps: int | None, num_rows: float = math.inf
) -> list[int]:
    """Return the number of rows in each step's batch [GPT-3, appendix B].

    It grows linearly with the rows seen, from `first` to `full` over `ramp` rows.

    Args:
        num_steps: the number of batches; None: until `num_rows` rows are seen.
    """
    sizes: list[int] = []
    seen = 0
    while seen < num_rows and (num_steps is None or len(sizes) < num_steps):
        grown = first + (full - first) * seen / ramp if seen < ramp else full
        sizes.append(max(1, min(full, round(grown))))
        seen += sizes[-1]
    return sizes
