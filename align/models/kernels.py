"""What attention is computed with: the library's fused kernel, or plain matrix products and their gradients."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F


def fused_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    dropout: float,
    scale: float | None,
    causal: bool = False,
) -> torch.Tensor:
    """The library's kernel; on CPUs in float32, whose backward is the faster one where sequences are short.

    Where autocast is on, it goes back to bf16 all the same.
    """
    if query.device.type == "cpu":
        query, key, value = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in (query, key, value))
    return F.scaled_dot_product_attention(query, key, value, mask, dropout, is_causal=causal, scale=scale)


def attention_probs(query: torch.Tensor, key: torch.Tensor, unseen: torch.Tensor, scale: float) -> torch.Tensor:
    """softmax(q k^T * scale + unseen) in the dtype of `query`, sums in float32; `unseen` is 0 or -inf."""
    return torch.matmul(query * scale, key.mT).add_(unseen).softmax(-1)


def attention_gradients(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    probs: torch.Tensor,
    gradient: torch.Tensor,
    scale: float,
    keep: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of query, key and value, from the gradient of `(probs * keep) @ value`; `keep` is False where dropout fell."""
    d_value = torch.matmul((probs if keep is None else probs * keep).mT, gradient)
    d_probs = torch.matmul(gradient, value.mT)
    if keep is not None:
        d_probs.mul_(keep)
    d_scores = torch._softmax_backward_data(d_probs, probs, -1, probs.dtype)
    return torch.matmul(d_scores, key).mul_(scale), torch.matmul(d_scores.mT, query).mul_(scale), d_value


def unseen(queries: int, keys: int, window: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """-inf where a query may not look, else 0, [queries, keys]; the last query and the last key are one token."""
    # A compiler makes the mask where it is used, and warns of any cache.
    return (_unseen if torch.compiler.is_compiling() else _kept_unseen)(queries, keys, window, dtype)


def _unseen(queries: int, keys: int, window: int, dtype: torch.dtype) -> torch.Tensor:
    distance = torch.arange(keys - queries, keys)[:, None] - torch.arange(keys)
    mask = torch.zeros(queries, keys, dtype=dtype)
    return mask.masked_fill_((distance < 0) | (distance >= window), float("-inf"))


_kept_unseen = functools.lru_cache(maxsize=64)(_unseen)
