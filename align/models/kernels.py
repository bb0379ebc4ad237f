"""Attention kernels: PyTorch's fused kernel, and plain matrix products with their gradients."""

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
    """Compute attention with `F.scaled_dot_product_attention`.

    On CPUs, inputs are cast to float32, because its backward pass is faster for short sequences.
    Under autocast, PyTorch casts them back to bf16.
    """
    if query.device.type == "cpu":
        query, key, value = (
            x.to(torch.promote_types(x.dtype, torch.float32)) for x in (query, key, value)
        )
    return F.scaled_dot_product_attention(
        query, key, value, mask, dropout, is_causal=causal, scale=scale
    )


def attention_probs(
    query: torch.Tensor, key: torch.Tensor, unseen: torch.Tensor, scale: float
) -> torch.Tensor:
    """Return softmax(q k^T * scale + unseen) in the dtype of `query`; sums are in float32.

    `unseen` is 0 or -inf.
    """
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
    """Return the gradients of query, key and value.

    Args:
        gradient: of `(probs * keep) @ value`.
        keep: False where dropout removed a probability; None: no dropout.
    """
    d_value = torch.matmul((probs if keep is None else probs * keep).mT, gradient)
    d_probs = torch.matmul(gradient, value.mT)
    if keep is not None:
        d_probs.mul_(keep)
    d_scores = torch._softmax_backward_data(d_probs, probs, -1, probs.dtype)
    return (
        torch.matmul(d_scores, key).mul_(scale),
        torch.matmul(d_scores.mT, query).mul_(scale),
        d_value,
    )


def unseen(
    queries: int, keys: int, window: int, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """Return a mask [queries, keys]: -inf where a query must not look, else 0.

    The last query and the last key are the same token.
    """
    # torch.compile builds the mask inside its graph, and warns about a cached function.
    return (_unseen if torch.compiler.is_compiling() else _kept_unseen)(
        queries, keys, window, dtype
    )


def _unseen(queries: int, keys: int, window: int, dtype: torch.dtype) -> torch.Tensor:
    distance = torch.arange(keys - queries, keys)[:, None] - torch.arange(keys)
    mask = torch.zeros(queries, keys, dtype=dtype)
    return mask.masked_fill_((distance < 0) | (distance >= window), float("-inf"))


_kept_unseen = functools.lru_cache(maxsize=64)(_unseen)
