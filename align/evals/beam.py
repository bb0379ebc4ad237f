"""Beam search as in GPT-3: width 4, length penalty 0.6 [GPT-3, section 2.4; T5, section 3.7].

`transformers` divides a log-prob by length ** alpha. This module divides by the penalty that both
papers took from GNMT.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from transformers import PreTrainedModel

from align.sampling.local import Ends

WIDTH, ALPHA = 4, 0.6


class Hypothesis(NamedTuple):
    score: float  # log-prob divided by `length_penalty`
    ids: list[int]


def length_penalty(length: int, alpha: float = ALPHA) -> float:
    """Return ((5 + length) / 6) ** alpha, the divisor of a log-prob [Wu et al. 2016, eq. 14]."""
    return ((5 + length) / 6) ** alpha


@torch.inference_mode()
def beam_search(
    model: PreTrainedModel,
    prompts: Sequence[list[int]],
    ends: Ends,
    max_new_tokens: int,
    width: int = WIDTH,
    alpha: float = ALPHA,
) -> list[list[int]]:
    """Return the best continuation found for each prompt, by log-prob over length penalty.

    It does not contain the token that ended it.

    Args:
        prompts: token ids; all prompts are continued at once.
        ends: the tokens that end a continuation. They count in its length.
        max_new_tokens: a continuation also ends after this many tokens.
    """
    beams = _Beams(model, prompts, ends.pad_token_id, width)
    end = torch.tensor(ends.token_ids(), device=model.device)
    # The `width` best finished continuations of each prompt.
    best: list[list[Hypothesis]] = [[] for _ in prompts]
    for length in range(1, max_new_tokens + 1):
        over, going_on = beams.extensions(end)
        for some in (over, going_on) if length == max_new_tokens else (over,):
            best = [
                [*found, *more]
                for found, more in zip(best, beams.hypotheses(some, alpha), strict=True)
            ]
        best = [sorted(found, key=lambda h: h.score, reverse=True)[:width] for found in best]
        # A log-prob only falls, so the best score that a beam can still reach is its log-prob now
        # over the largest penalty.
        reach = (going_on.logprobs.max(1).values / length_penalty(max_new_tokens, alpha)).tolist()
        if all(
            len(found) == width and r <= found[-1].score
            for found, r in zip(best, reach, strict=True)
        ):
            break
        if length < max_new_tokens:
            beams.advance(going_on)
    stops = set(ends.token_ids())
    winners = [found[0].ids for found in best]
    return [ids[:-1] if ids[-1] in stops else ids for ids in winners]


class _Extensions(NamedTuple):
    """Beams that are one token longer, [B, K] each."""

    logprobs: torch.Tensor
    parents: torch.Tensor  # index of the beam
    tokens: torch.Tensor


class _Beams:
    """The unfinished beams of all prompts, [B, W], with their keys and values."""

    def __init__(
        self, model: PreTrainedModel, prompts: Sequence[list[int]], pad_token_id: int, width: int
    ):
        self._model, self._width = model, width
        longest, device = max(map(len, prompts)), model.device
        self._mask = torch.tensor(
            [[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=device
        )
        out = model(
            input_ids=torch.tensor(
                [[pad_token_id] * (longest - len(p)) + p for p in prompts], device=device
            ),
            attention_mask=self._mask,
            position_ids=(self._mask.cumsum(1) - 1).clamp(min=0),
            use_cache=True,
            logits_to_keep=1,
        )
        self._cache = out.past_key_values
        # [B, beams, V], of the next token
        self._logprobs = out.logits[:, -1].float().log_softmax(-1)[:, None]
        self._scores = torch.zeros(len(prompts), 1, device=device)  # [B, beams]
        # [B, beams, length]
        self._written = torch.empty(len(prompts), 1, 0, dtype=torch.long, device=device)

    def extensions(self, ends: torch.Tensor) -> tuple[_Extensions, _Extensions]:
        """Return two sets of beams that are one token longer.

        The first holds those of the `width` likeliest that end with it; the rest have a log-prob of
        -inf. The second holds the `width` likeliest that do not end.
        """
        total = self._scores[:, :, None] + self._logprobs
        likeliest = self._likeliest(total)
        ended = torch.isin(likeliest.tokens, ends)
        over = likeliest._replace(logprobs=likeliest.logprobs.masked_fill(~ended, float("-inf")))
        return over, self._likeliest(total.index_fill(2, ends, float("-inf")))

    def _likeliest(self, total: torch.Tensor) -> _Extensions:
        size = total.shape[2]
        logprobs, places = total.flatten(1).topk(min(self._width, total[0].numel()), 1)
        return _Extensions(logprobs, places // size, places % size)

    def hypotheses(self, extensions: _Extensions, alpha: float) -> list[list[Hypothesis]]:
        """Return the extensions of each prompt as finished continuations."""
        penalty = length_penalty(self._written.shape[2] + 1, alpha)
        rows = zip(*(part.tolist() for part in extensions), strict=True)
        written = self._written.tolist()
        return [
            [
                Hypothesis(p / penalty, [*own[beam], token])
                for p, beam, token in zip(*row, strict=True)
                if p > float("-inf")
            ]
            for row, own in zip(rows, written, strict=True)
        ]

    def advance(self, extensions: _Extensions) -> None:
        """Continue with the given extensions."""
        logprobs, parents, tokens = extensions
        rows, before = self._scores.shape
        width = logprobs.shape[1]
        older = self._written.gather(1, parents[:, :, None].expand(-1, -1, self._written.shape[2]))
        self._scores, self._written = logprobs, torch.cat([older, tokens[:, :, None]], 2)
        flat = (parents + torch.arange(rows, device=parents.device)[:, None] * before).flatten()
        self._cache.batch_select_indices(flat)
        self._mask = torch.cat([self._mask[flat], self._mask.new_ones(len(flat), 1)], 1)
        out = self._model(
            input_ids=tokens.flatten()[:, None],
            attention_mask=self._mask,
            position_ids=self._mask.sum(1, keepdim=True) - 1,
            past_key_values=self._cache,
            use_cache=True,
        )
        self._cache = out.past_key_values
        self._logprobs = out.logits[:, -1].float().log_softmax(-1).view(rows, width, -1)
