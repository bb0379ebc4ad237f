"""Score completions by likelihood, as for GPT-2 and GPT-3: which one does the model find likeliest?

An item has one or several candidates, and says which are right. A candidate is a context with a
completion. A single candidate must be predicted word for word (LAMBADA, arithmetic); of several,
the likeliest is the model's answer. Candidates may differ in their contexts and have the same
completion (Winograd's partial evaluation, Trinh & Le 2018).

Tokens are split as in lm-eval (`_encode_pair`). The context alone has n tokens, including the
special tokens that the tokenizer puts first. The completion's tokens are those after the first n
tokens of both together. Spaces at the context's end belong to the completion.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from align.models.load import context_length
from align.models.packed import before_responses, pack_pairs
from align.models.padded import is_padded
from align.text.encoding import encode_texts, start_token
from align.text.packing import micro_batches

Item = Mapping[str, Any]  # a row of the record `items`

_LOGITS = 2**26  # in memory at once: 256 MiB in float32
_WORTH_SHARING = 8  # a context of at least this many tokens is computed once for all completions


class Candidate(NamedTuple):
    """The scores of one candidate."""

    logprob: float  # nats, summed over the completion's tokens
    is_greedy: bool  # every token of the completion is the likeliest one
    characters: int  # of the completion, without the space before it
    tokens: int  # of the completion


def encode_pair(
    tokenizer: PreTrainedTokenizerBase, context: str, completion: str
) -> tuple[list[int], list[int]]:
    """Return the tokens of a context and of the completion after it.

    The context has at least one token.
    """
    kept = context.rstrip()
    completion = context[len(kept) :] + completion
    if not kept:
        (alone,) = encode_texts(tokenizer, [completion])
        return [start_token(tokenizer)], alone
    whole, before = encode_texts(tokenizer, [kept + completion, kept], begin=True)
    return before, whole[len(before) :]


def score_items(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    items: Sequence[Item],
    max_tokens: int,
    advance: Callable[[int], None] = lambda candidates: None,
) -> list[list[Candidate]]:
    """Score every candidate of every item.

    A context that is too long for the model loses its beginning.

    Args:
        max_tokens: in one forward pass.
        advance: called with the number of candidates in each pass.

    Raises:
        ValueError: a completion alone is longer than the model's context, or has no tokens; or a
            log-prob is not finite.
    """
    pairs = [pair for item in items for pair in _encoded(model, tokenizer, item)]
    scores = iter(zip(pairs, score_pairs(model, pairs, max_tokens, advance), strict=True))
    found = []
    for item in items:
        row = []
        for completion in item["completions"]:
            (_, after), (logprob, greedy) = next(scores)
            if not math.isfinite(logprob):
                raise ValueError(
                    f"{completion[:60]!r}: its log-prob is {logprob}; is the model damaged?"
                )
            row.append(Candidate(logprob, greedy, len(completion.lstrip()), len(after)))
        found.append(row)
    return found


Pair = tuple[list[int], list[int]]  # the tokens of a context and of a completion
Scores = list[tuple[float, bool]]  # log-prob, and whether it is greedy


def fitting(before: list[int], after: list[int], limit: int) -> Pair:
    """Return the pair with as much of the context's end as fits in `limit` tokens.

    The completion's last token needs no room, because the model does not read it.
    """
    return before[-(limit + 1 - len(after)) :], after


@torch.no_grad()
def score_pairs(
    model: PreTrainedModel,
    pairs: Sequence[Pair],
    max_tokens: int,
    advance: Callable[[int], None] = lambda pairs: None,
) -> Scores:
    """Return the log-prob of each completion after its context, and whether it is greedy.

    Contexts and completions must not be empty. Long contexts that several pairs share are computed
    once.
    """
    found: Scores = [(0.0, False)] * len(pairs)
    # By context: the index of the pair, and the completion.
    shared: dict[tuple[int, ...], list[tuple[int, list[int]]]] = {}
    for i, (before, after) in enumerate(pairs):
        shared.setdefault(tuple(before), []).append((i, after))
    per_pass = max(
        1, min(max_tokens, _LOGITS // model.config.get_text_config(decoder=True).vocab_size)
    )
    once: list[tuple[list[int], list[tuple[int, list[int]]]]] = []
    again: list[tuple[list[int], list[tuple[int, list[int]]]]] = []
    for context, every in shared.items():
        # Padded side by side, the long context of one item and the long completion of another may
        # together exceed a model's own mask.
        worth = len(every) > 1 and len(context) >= _WORTH_SHARING and not is_padded(model)
        groups = again if worth else once
        for chosen in micro_batches([len(context) + len(after) for _, after in every], per_pass):
            groups.append((list(context), [every[k] for k in chosen]))
    for score, groups in ((_score_packed, once), (_score_shared, again)):
        groups.sort(key=lambda group: len(group[0]))
        sizes = [sum(len(context) + len(after) for _, after in own) for context, own in groups]
        for chosen in micro_batches(sizes, per_pass):
            contexts = [groups[k][0] for k in chosen]
            completions = [[after for _, after in groups[k][1]] for k in chosen]
            places = [i for k in chosen for i, _ in groups[k][1]]
            for i, scored in zip(places, score(model, contexts, completions), strict=True):
                found[i] = scored
            advance(len(places))
    return found


def _encoded(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, item: Item
) -> Iterator[Pair]:
    limit = context_length(model)
    for context, completion in zip(item["contexts"], item["completions"], strict=True):
        before, after = encode_pair(tokenizer, context, completion)
        if not 0 < len(after) <= limit:
            raise ValueError(f"{completion[:60]!r}: expected 1 to {limit} tokens, got {len(after)}")
        yield fitting(before, after, limit)


def _score_packed(
    model: PreTrainedModel,
    contexts: Sequence[list[int]],
    completions: Sequence[Sequence[list[int]]],
) -> Scores:
    """Score each context with each of its completions, end to end.

    Nothing is shared, and nothing is padded.
    """
    every = [after for own in completions for after in own]
    before = [context for context, own in zip(contexts, completions, strict=True) for _ in own]
    packed = pack_pairs(before, [after[:-1] for after in every], model.device)
    logits = model(
        input_ids=packed.input_ids,
        position_ids=packed.position_ids,
        use_cache=False,
        # The rows lack each completion's last token, hence + 1.
        logits_to_keep=before_responses(packed, every) + 1,
    ).logits[0]
    return _sums(logits, every)


def _score_shared(
    model: PreTrainedModel,
    contexts: Sequence[list[int]],
    completions: Sequence[Sequence[list[int]]],
) -> Scores:
    """Compute each context once, and use its keys and values for all of its completions."""
    width, device = max(map(len, contexts)), model.device
    mask = torch.tensor([[0] * (width - len(c)) + [1] * len(c) for c in contexts], device=device)
    out = model(
        input_ids=torch.tensor([[0] * (width - len(c)) + c for c in contexts], device=device),
        attention_mask=mask,
        position_ids=(mask.cumsum(1) - 1).clamp(min=0),
        use_cache=True,
        logits_to_keep=1,
    )
    every = [after for own in completions for after in own]
    rows = torch.tensor([row for row, own in enumerate(completions) for _ in own], device=device)
    first = out.logits[:, -1][rows]
    longest = max(map(len, every)) - 1
    if longest == 0:
        return _sums(first, every)
    # The last token of a completion is only predicted; the output at and after it is not used.
    given = torch.tensor(
        [after[:-1] + [0] * (longest + 1 - len(after)) for after in every], device=device
    )
    cache = out.past_key_values
    cache.batch_select_indices(rows)
    rest = model(
        input_ids=given,
        attention_mask=torch.cat([mask[rows], torch.ones_like(given)], 1),
        position_ids=mask[rows].sum(1, keepdim=True) + torch.arange(longest, device=device),
        past_key_values=cache,
        use_cache=True,
    ).logits
    parts = [
        torch.cat([first[k, None], rest[k, : len(after) - 1]]) for k, after in enumerate(every)
    ]
    return _sums(torch.cat(parts), every)


def _sums(logits: torch.Tensor, completions: Sequence[list[int]]) -> Scores:
    """Score completions from `logits` [N, V] before each of their tokens, in order."""
    targets = torch.tensor(
        [token for after in completions for token in after], device=logits.device
    )
    logprobs = logits.float().log_softmax(-1).gather(1, targets[:, None])[:, 0].double()
    greedy = logits.argmax(-1) == targets
    lengths = [len(after) for after in completions]
    return [
        (float(p.sum()), bool(g.all()))
        for p, g in zip(logprobs.split(lengths), greedy.split(lengths), strict=True)
    ]
