"""Answers that a model writes after a context, and their agreement with the right ones."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Iterator, Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from align.evals.beam import WIDTH, beam_search
from align.models.load import context_length
from align.sampling.engine import Sampling
from align.sampling.local import Ends
from align.sampling.sampler import sampler_of
from align.text.chat import stop_ids, without_end
from align.text.encoding import encode_context
from align.text.packing import micro_batches


def write_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    contexts: Sequence[str],
    way: str,
    max_new_tokens: int,
    max_tokens: int,
) -> Iterator[tuple[int, str]]:
    """Yield (index into `contexts`, text that the model writes after it, stripped) as each is done.

    The text ends at the first line break [InstructGPT, appendix D]. A context that leaves no room
    loses its beginning, and spaces at its end are not read.

    Args:
        way: greedy, or beam for GPT-3's search.
        max_tokens: in one forward pass.

    Raises:
        ValueError: `max_new_tokens` leaves no room for a context.
    """
    room = context_length(model) - max_new_tokens
    if room < 1:
        raise ValueError(
            f"max_new_tokens={max_new_tokens}: expected fewer than the model reads,"
            f" {room + max_new_tokens}"
        )
    prompts = [encode_context(tokenizer, context.rstrip())[-room:] for context in contexts]
    write = _greedy if way == "greedy" else _by_beam
    for index, ids in write(model, tokenizer, prompts, max_new_tokens, max_tokens):
        text = tokenizer.decode(without_end(tokenizer, ids), skip_special_tokens=True)
        yield index, first_line(text)


def _greedy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[list[int]],
    max_new_tokens: int,
    max_tokens: int,
) -> Iterator[tuple[int, list[int]]]:
    most = max(1, max_tokens // (max(map(len, prompts), default=0) + max_new_tokens))
    sampling = Sampling(max_new_tokens=max_new_tokens, temperature=0.0, batch_size=most)
    sampler = sampler_of(model, tokenizer, sampling)
    for index, response in sampler.draw(prompts, [0] * len(prompts)):
        yield index, response.ids


def _by_beam(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[list[int]],
    max_new_tokens: int,
    max_tokens: int,
) -> Iterator[tuple[int, list[int]]]:
    ends = Ends(line_ends(tokenizer), tokenizer.pad_token_id)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    lengths = [len(prompts[i]) + max_new_tokens for i in order]
    for group in micro_batches(lengths, max(1, max_tokens // WIDTH)):
        indices = [order[k] for k in group]
        found = beam_search(model, [prompts[i] for i in indices], ends, max_new_tokens)
        yield from zip(indices, found, strict=True)


def line_ends(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the tokens that end an answer: stop tokens, and all tokens with a line break."""
    breaks = [
        i
        for i, text in enumerate(tokenizer.batch_decode([[i] for i in range(len(tokenizer))]))
        if "\n" in text
    ]
    return list(dict.fromkeys([*stop_ids(tokenizer), *breaks]))


def first_line(text: str) -> str:
    """Return the text up to its first line break, stripped."""
    return text.partition("\n")[0].strip()


# -- compare answers -------------------------------------------------------------------------------


def normalized(text: str) -> str:
    """Return the text in lower case, without punctuation, articles and double spaces.

    SQuAD compares answers in this form.
    """
    plain = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", plain).split())


def exact_match(answer: str, wanted: Sequence[str]) -> float:
    """Return 1 if the normalized answer is one of those wanted, else 0."""
    return float(normalized(answer) in {normalized(text) for text in wanted})


def f1(answer: str, wanted: Sequence[str]) -> float:
    """Return the largest F1 of the answer's words with those of a wanted answer.

    SQuAD, CoQA and DROP use this measure.
    """
    return max(_overlap(normalized(answer).split(), normalized(text).split()) for text in wanted)


def _overlap(one: Sequence[str], two: Sequence[str]) -> float:
    if not one or not two:
        return float(one == two)
    shared = sum((Counter(one) & Counter(two)).values())
    return 2 * shared / (len(one) + len(two))
