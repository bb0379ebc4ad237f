"""T5's span corruption: remove spans from a row of tokens; the removed spans are the target.

    row      Thank you for inviting me to your party last week
    input    Thank you <extra_id_0> me to your party <extra_id_1> week <end>
    target   <extra_id_0> for inviting <extra_id_1> last <end>

Source: [T5, section 3.1.4]. Lengths and random draws follow t5/data/preprocessors.py, which ends a
target without a sentinel (the paper's figure 2 shows one).
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch
from transformers import PreTrainedTokenizerBase


class Pair(NamedTuple):
    """Token ids of an encoder's input and of a decoder's target.

    Each ends with the end-of-text token.
    """

    input: list[int]
    target: list[int]


class Spans(NamedTuple):
    """The number of tokens and of spans that are removed from a row."""

    length: int  # tokens in the row
    noise: int  # tokens removed
    num_spans: int  # spans removed

    @property
    def input_length(self) -> int:
        """The kept tokens, one sentinel per span, and the end-of-text token."""
        return self.length - self.noise + self.num_spans + 1

    @property
    def target_length(self) -> int:
        return self.noise + self.num_spans + 1


def spans_of(length: int, density: float, mean_length: float) -> Spans:
    """Return how much to remove from a row of `length` tokens: at least one token, and never all.

    Args:
        length: at least 2.
        density: fraction of the tokens to remove.
        mean_length: tokens per span.
    """
    assert length >= 2
    noise = min(max(round(length * density), 1), length - 1)
    num_spans = min(max(round(noise / mean_length), 1), noise, length - noise)
    return Spans(length, noise, num_spans)


def longest_row(input_length: int, density: float, mean_length: float) -> Spans:
    """Return the longest row whose input has at most `input_length` tokens.

    It has 568 tokens for T5's 512.

    Raises:
        ValueError: no row is short enough.
    """
    fitting = None
    for length in itertools.count(2):
        spans = spans_of(length, density, mean_length)
        if spans.input_length > input_length:  # a longer row never has a shorter input
            break
        fitting = spans
    if fitting is None:
        raise ValueError(f"no row is so short that its input has {input_length} tokens")
    return fitting


def noise_mask(spans: Spans, generator: torch.Generator) -> torch.Tensor:
    """Return a mask [length] that is True at the tokens to remove.

    Kept and removed parts alternate, and the first part is kept. All ways to split the kept tokens
    into `spans.num_spans` parts are equally likely; the same is true for the removed tokens.
    """
    kept = _parts(spans.length - spans.noise, spans.num_spans, generator)
    taken = _parts(spans.noise, spans.num_spans, generator)
    lengths = torch.stack([kept, taken], 1).flatten()
    return torch.tensor([False, True]).repeat(spans.num_spans).repeat_interleave(lengths)


def _parts(total: int, count: int, generator: torch.Generator) -> torch.Tensor:
    """Return `count` random whole numbers of at least 1 with the sum `total`, [count]."""
    cuts = torch.randperm(total - 1, generator=generator)[: count - 1].sort().values + 1
    return torch.cat([cuts.new_zeros(1), cuts, cuts.new_tensor([total])]).diff()


class Corruption(NamedTuple):
    """Span corruption with the tokens of one tokenizer."""

    spans: Spans
    sentinels: torch.Tensor  # ids, at least one per span
    end: int

    def __call__(self, row: torch.Tensor, seed: int) -> Pair:
        """Return the input and the target of a row [length], with spans drawn from `seed`."""
        mask = noise_mask(self.spans, torch.Generator().manual_seed(seed))
        return Pair(self._shown(row, mask), self._shown(row, ~mask))

    def _shown(self, row: torch.Tensor, hidden: torch.Tensor) -> list[int]:
        """Return the row with a sentinel for each hidden span, and the end-of-text token last."""
        begins = hidden.clone()
        begins[1:] &= ~hidden[:-1]
        replaced = torch.where(begins, self.sentinels[begins.cumsum(0).clamp(min=1) - 1], row)
        return [*replaced[begins | ~hidden].tolist(), self.end]


def sentinels_of(tokenizer: PreTrainedTokenizerBase) -> torch.Tensor:
    """Return the ids of <extra_id_0>, <extra_id_1>, ...

    In T5 these are the highest id of the vocabulary and those below it, in order.
    """
    vocab = tokenizer.get_vocab()
    names = itertools.takewhile(vocab.__contains__, (f"<extra_id_{i}>" for i in itertools.count()))
    return torch.tensor([vocab[name] for name in names], dtype=torch.long)
