"""T5's span corruption: spans of a row of tokens are taken out, and they are what is to be written.

    row      Thank you for inviting me to your party last week
    input    Thank you <extra_id_0> me to your party <extra_id_1> week <end>
    target   <extra_id_0> for inviting <extra_id_1> last <end>

Source: [T5, section 3.1.4]; lengths and draws as in t5/data/preprocessors.py, which ends a target without a sentinel
(the paper's figure 2 shows one).
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch
from transformers import PreTrainedTokenizerBase


class Pair(NamedTuple):
    """What an encoder reads and what its decoder is to write, as token ids; each has the end-of-text token last."""

    input: list[int]
    target: list[int]


class Spans(NamedTuple):
    """How much of a row is taken out."""

    length: int  # tokens of the row
    noise: int  # of them, taken out
    num_spans: int  # that they lie in

    @property
    def input_length(self) -> int:
        """What is left, a sentinel a span, and the end-of-text token."""
        return self.length - self.noise + self.num_spans + 1

    @property
    def target_length(self) -> int:
        return self.noise + self.num_spans + 1


def spans_of(length: int, density: float, mean_length: float) -> Spans:
    """How much is taken out of a row of `length` tokens: at least one of them, and never all.

    Args:
        density: share of the tokens.
        mean_length: tokens a span.
    """
    assert length >= 2
    noise = min(max(round(length * density), 1), length - 1)
    num_spans = min(max(round(noise / mean_length), 1), noise, length - noise)
    return Spans(length, noise, num_spans)


def longest_row(input_length: int, density: float, mean_length: float) -> Spans:
    """The longest row whose input is no longer than `input_length`; 568 tokens for T5's 512.

    Raises:
        ValueError: there is none.
    """
    fitting = None
    for length in itertools.count(2):
        spans = spans_of(length, density, mean_length)
        if spans.input_length > input_length:  # an input never becomes shorter with its row
            break
        fitting = spans
    if fitting is None:
        raise ValueError(f"no row is so short that its input has {input_length} tokens")
    return fitting


def noise_mask(spans: Spans, generator: torch.Generator) -> torch.Tensor:
    """True at the tokens to take out, [length]: what is kept and what is not in turn, and the first is kept.

    Every way to cut the kept tokens into `spans.num_spans` parts is as likely as any other; so with those taken out.
    """
    kept = _parts(spans.length - spans.noise, spans.num_spans, generator)
    taken = _parts(spans.noise, spans.num_spans, generator)
    lengths = torch.stack([kept, taken], 1).flatten()
    return torch.tensor([False, True]).repeat(spans.num_spans).repeat_interleave(lengths)


def _parts(total: int, count: int, generator: torch.Generator) -> torch.Tensor:
    """`count` whole numbers from 1 up with the sum `total`, [count]."""
    cuts = torch.randperm(total - 1, generator=generator)[: count - 1].sort().values + 1
    return torch.cat([cuts.new_zeros(1), cuts, cuts.new_tensor([total])]).diff()


class Corruption(NamedTuple):
    """Span corruption with the tokens of one tokenizer."""

    spans: Spans
    sentinels: torch.Tensor  # ids, a sentinel a span and more
    end: int

    def __call__(self, row: torch.Tensor, seed: int) -> Pair:
        """The input and the target that `seed` draws of a row [length]."""
        mask = noise_mask(self.spans, torch.Generator().manual_seed(seed))
        return Pair(self._shown(row, mask), self._shown(row, ~mask))

    def _shown(self, row: torch.Tensor, hidden: torch.Tensor) -> list[int]:
        """The row with a sentinel in place of each hidden span, and the end-of-text token after it."""
        begins = hidden.clone()
        begins[1:] &= ~hidden[:-1]
        replaced = torch.where(begins, self.sentinels[begins.cumsum(0).clamp(min=1) - 1], row)
        return [*replaced[begins | ~hidden].tolist(), self.end]


def sentinels_of(tokenizer: PreTrainedTokenizerBase) -> torch.Tensor:
    """The ids of <extra_id_0>, <extra_id_1>, ...: in T5 the highest of the vocabulary and those below it in turn."""
    vocab = tokenizer.get_vocab()
    names = itertools.takewhile(vocab.__contains__, (f"<extra_id_{i}>" for i in itertools.count()))
    return torch.tensor([vocab[name] for name in names], dtype=torch.long)
