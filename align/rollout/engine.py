"""Sampling from a causal language model: batched, cached, and the same whatever else is in the batch.

Each response has a seed of its own, and token t of it is drawn with the t-th number of that seed's stream. So a sample
hangs on its seed alone: not on the batch size, not on the number of processes, not on where a killed run was resumed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from transformers import DynamicCache, PreTrainedModel

_DROP_AT = 0.85  # share of the batch still writing at which the rows that ended are dropped

_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)  # the constants of splitmix64 as signed 64-bit integers
_MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX_2 = 0x94D049BB133111EB - (1 << 64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How to sample.

    Attributes:
        max_new_tokens: tokens, the end-of-text token included.
        temperature: divides the logits; 0 takes the likeliest token. The full softmax is sampled, never cut to a
            top-k or top-p: a truncated one would put its normaliser into PPO's ratio.
        batch_size: responses in flight at once.
    """

    max_new_tokens: int
    temperature: float = 1.0
    batch_size: int = 256


class Response(NamedTuple):
    """One sampled response; `ids` ends with the end-of-text token unless it was cut off."""

    ids: list[int]
    logprobs: list[float]  # nats, at the sampling temperature (1 when greedy)


def uniforms(seeds: torch.Tensor, length: int) -> torch.Tensor:
    """The first `length` numbers of each seed's stream, float64 [B, length] in [0, 1).

    A counter-based generator (splitmix64): number t of seed s is a hash of (s, t), so streams need no state.
    """
    counter = torch.arange(1, length + 1, device=seeds.device, dtype=torch.int64)
    x = _mix(seeds[:, None]) + counter[None, :] * _GOLDEN
    return _shift(_mix(x), 11).double() * 2.0**-53


def _mix(x: torch.Tensor) -> torch.Tensor:
    x = (x ^ _shift(x, 30)) * _MIX_1
    x = (x ^ _shift(x, 27)) * _MIX_2
    return x ^ _shift(x, 31)


def _shift(x: torch.Tensor, bits: int) -> torch.Tensor:
    """Logical right shift of int64."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


@torch.no_grad()
def generate(
    model: PreTrainedModel,
    prompts: Sequence[list[int]],
    seeds: Sequence[int],
    sampling: Sampling,
    *,
    eos_token_id: int,
    pad_token_id: int,
) -> Iterator[tuple[int, Response]]:
    """Sample one response to each prompt; yields (index into `prompts`, response) as batches are done.

    Args:
        model: any `transformers` causal language model; it is used as it is (set `eval()` first).
        prompts: token ids, without padding.
        seeds: one integer below 2**63 a prompt.

    Raises:
        ValueError: a prompt leaves no room for `max_new_tokens` in the model's context.
    """
    context = getattr(model.config, "max_position_embeddings", None)
    longest = max((len(prompt) for prompt in prompts), default=0)
    if context is not None and longest + sampling.max_new_tokens > context:
        raise ValueError(
            f"a prompt of {longest} tokens and {sampling.max_new_tokens} new tokens do not fit in the model's "
            f"context of {context}; shorten the prompts or max_new_tokens"
        )
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    for start in range(0, len(order), sampling.batch_size):
        rows = order[start : start + sampling.batch_size]
        responses = _run_batch(
            model, [prompts[i] for i in rows], [seeds[i] for i in rows], sampling, eos_token_id, pad_token_id
        )
        yield from zip(rows, responses, strict=True)


def _run_batch(
    model: PreTrainedModel,
    prompts: list[list[int]],
    seeds: list[int],
    sampling: Sampling,
    eos_token_id: int,
    pad_token_id: int,
) -> list[Response]:
    device, width = model.device, max(map(len, prompts))
    input_ids = torch.tensor([[pad_token_id] * (width - len(p)) + p for p in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
    position_ids = (mask.cumsum(1) - 1).clamp(min=0)  # without them, padding shifts a model's learned positions
    numbers = uniforms(torch.tensor(seeds, device=device), sampling.max_new_tokens)
    ids = torch.full((len(prompts), sampling.max_new_tokens), eos_token_id, device=device)
    logprobs = torch.zeros(ids.shape, device=device)
    lengths = torch.full((len(prompts),), sampling.max_new_tokens, device=device)
    rows = torch.arange(len(prompts), device=device)  # which response each row in flight writes
    alive = torch.ones(len(prompts), dtype=torch.bool, device=device)
    cache = DynamicCache(config=model.config)
    for t in range(sampling.max_new_tokens):
        logits = model(
            input_ids=input_ids,
            attention_mask=mask,
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        token, logprob = _choose(logits.float(), numbers[rows, t], sampling.temperature)
        ids[rows[alive], t], logprobs[rows[alive], t] = token[alive], logprob[alive]
        ended = alive & (token == eos_token_id)
        lengths[rows[ended]] = t + 1
        alive &= ~ended
        if not alive.any():
            break
        input_ids, position_ids = token[:, None], position_ids[:, -1:] + 1
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        if alive.sum() <= _DROP_AT * len(alive):  # copying the cache is the price of dropping rows: not at every step
            keep = alive.nonzero().squeeze(1)
            cache.batch_select_indices(keep)
            input_ids, position_ids, mask, rows, alive = (x[keep] for x in (input_ids, position_ids, mask, rows, alive))
    finished = zip(ids.tolist(), logprobs.tolist(), lengths.tolist(), strict=True)
    return [Response(i[:n], p[:n]) for i, p, n in finished]


def _choose(logits: torch.Tensor, uniform: torch.Tensor, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    """logits [B, V], uniform [B] -> tokens [B] and their log-probs [B].

    The inverse of the distribution function: the first token whose cumulative probability passes the number.
    """
    if temperature == 0:
        logprobs = logits.log_softmax(1)
        token = logits.argmax(1, keepdim=True)
    else:
        logprobs = (logits / temperature).log_softmax(1)
        cdf = logprobs.exp().double().cumsum(1)
        token = torch.searchsorted(cdf, uniform[:, None] * cdf[:, -1:], right=True).clamp(max=logits.shape[1] - 1)
    return token[:, 0], logprobs.gather(1, token)[:, 0]
