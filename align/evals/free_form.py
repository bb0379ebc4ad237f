"""Answers that a model writes after a context, and their agreement with the right ones."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from align.evals.beam import WIDTH, beam_search
from align.models.load import context_length
from align.sampling.engine import Response, Sampling
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
    advance: Callable[[int], None] = lambda contexts: None,
) -> list[str]:
    """Return the text that the model writes after each context, stripped.

    It ends at the first line break [InstructGPT, appendix D]. A context that leaves no room loses
    its beginning, and spaces at its end are not read.

    Args:
        way: greedy, or beam for GPT-3's search.
        max_tokens: in one forward pass.
        advance: called with the number of contexts done.

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
    written: list[list[int]] = [[] for _ in contexts]
    if way == "greedy":
        most = max(1, max_tokens // (max(map(len, prompts), default=0) + max_new_tokens))
        sampling = Sampling(max_new_tokens=max_new_tokens, temperature=0.0, batch_size=most)
        seeds = [0] * len(prompts)
        done: tuple[int, Response]
        for done in sampler_of(model, tokenizer, sampling).draw(prompts, seeds):
            written[done[0]] = done[1].ids
            advance(1)
    else:
        ends = line_ends(tokenizer)
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        lengths = [len(prompts[i]) + max_new_tokens for i in order]
        for group in micro_batches(lengths, max(1, max_tokens // WIDTH)):
            found = beam_search(
                model,
                [prompts[order[k]] for k in group],
                ends,
                max_new_tokens,
                tokenizer.pad_token_id,
            )
            for k, ids in zip(group, found, strict=True):
                written[order[k]] = ids
            advance(len(group))
    return [
        first_line(tokenizer.decode(without_end(tokenizer, ids), skip_special_tokens=True))
        for ids in written
    ]


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
