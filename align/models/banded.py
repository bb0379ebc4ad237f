"""Causal attention with a window: a token sees the `window` tokens that end with itself.

Source: GPT-3, section 2.1. Queries are processed in blocks, each with only the keys that its
queries may see. So time and memory grow linearly with the length, not with its square. The result
equals dense attention with the mask 0 <= i - j < window.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import repeat
from typing import Any

import torch
import torch.nn.functional as F

from align.models.kernels import attention_gradients, attention_probs, fused_attention, unseen

# Small blocks compute fewer products outside the band; large blocks are more efficient products.
BLOCK = 128  # queries
_ROUND = 16  # keys; for few different shapes, see align/text/packing.py


def banded_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    window: int,
    dropout: float,
    scale: float,
) -> torch.Tensor:
    """Return softmax(q k^T * scale) v over the band.

    All inputs are [S, H, L, D]; every row is one sequence from its first token on. With a window as
    long as the sequence, this is dense causal attention, and most of the masked products are
    skipped.
    """
    if query.device.type == "cpu":
        return _InBlocks.apply(query, key, value, window, dropout, scale)
    return rows_at_once(query, key, value, window, dropout, scale)


def _reach(window: int) -> int:
    """Return how many keys before a block its first query sees, rounded up."""
    return window - 1 + (1 - window) % _ROUND


def _blocks(length: int, window: int) -> Iterator[tuple[slice, slice]]:
    """Yield the queries of each block and the keys that they may see, as slices."""
    for begin in range(0, length, BLOCK):
        end = min(begin + BLOCK, length)
        yield slice(begin, end), slice(max(0, begin - _reach(window)), end)


class _InBlocks(torch.autograd.Function):
    """Attention block by block, as matrix products in the precision of the inputs."""

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        window: int,
        dropout: float,
        scale: float,
    ) -> torch.Tensor:
        query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
        out, saved = torch.empty_like(value), []
        with torch.autocast(query.device.type, enabled=False):
            for of, seen in _blocks(query.shape[2], window):
                mask = unseen(of.stop - of.start, seen.stop - seen.start, window, query.dtype)
                probs = attention_probs(query[:, :, of], key[:, :, seen], mask, scale)
                saved.append(probs)
                if dropout > 0:  # `F.dropout` takes several times as long
                    keep = torch.empty(probs.shape, dtype=torch.bool).bernoulli_(1 - dropout)
                    saved.append(keep)
                    probs = probs * keep
                out[:, :, of] = torch.matmul(probs, value[:, :, seen])
        ctx.save_for_backward(query, key, value, *saved)
        ctx.window, ctx.dropout, ctx.scale = window, dropout, scale
        return out.div_(1 - dropout) if dropout > 0 else out

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, *saved = ctx.saved_tensors
        if ctx.dropout == 0 and len(saved) == 1:  # one block
            return (
                *attention_gradients(query, key, value, saved[0], gradient, ctx.scale),
                None,
                None,
                None,
            )
        kept: Iterable[torch.Tensor | None] = repeat(None)
        if ctx.dropout > 0:
            gradient, saved, kept = gradient / (1 - ctx.dropout), saved[::2], saved[1::2]
        # Sum in float32: a key gets gradients from several blocks.
        wide = torch.promote_types(key.dtype, torch.float32)
        d_query = torch.empty_like(query)
        d_key, d_value = (x.new_zeros(x.shape, dtype=wide) for x in (key, value))
        for (of, seen), probs, keep in zip(
            _blocks(query.shape[2], ctx.window), saved, kept, strict=False
        ):
            parts = query[:, :, of], key[:, :, seen], value[:, :, seen], probs, gradient[:, :, of]
            by_query, by_key, by_value = attention_gradients(*parts, ctx.scale, keep)
            d_query[:, :, of] = by_query
            d_key[:, :, seen] += by_key
            d_value[:, :, seen] += by_value
        return d_query, d_key.to(key.dtype), d_value.to(value.dtype), None, None, None


def rows_at_once(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    window: int,
    dropout: float,
    scale: float,
) -> torch.Tensor:
    """Compute all blocks in one call of the fused kernel.

    The price is memory: keys that several blocks share are copied.
    """
    rows, heads, length, _ = query.shape
    reach, tail = _reach(window), -length % BLOCK
    span = reach + BLOCK
    # [S * H, blocks, BLOCK, D]
    queries = F.pad(query, (0, 0, 0, tail)).flatten(0, 1).unflatten(1, (-1, BLOCK))
    keys, values = (
        F.pad(x, (0, 0, reach, tail)).flatten(0, 1).unfold(1, span, BLOCK).mT for x in (key, value)
    )
    device = query.device
    distance = torch.arange(reach, span, device=device)[:, None] - torch.arange(span, device=device)
    place = (
        torch.arange(span, device=device)
        + torch.arange(-reach, length - reach, BLOCK, device=device)[:, None]
    )
    # `place >= 0` masks the padding before a sequence. Only padding queries see the padding after
    # it, and their outputs are dropped.
    seen = (distance >= 0) & (distance < window) & (place >= 0)[:, None]
    out = fused_attention(queries, keys, values, seen[None], dropout, scale)
    return out.flatten(1, 2)[:, :length].unflatten(0, (rows, heads))
