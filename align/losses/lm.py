"""Log-likelihoods of a language model, and losses from them.

Logits are float32, except in `summed_head_loss` if gradients are enabled: there they have the
matrix product's dtype. The functions return sums or values per token, never means: callers divide
by their own token count.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

CHUNK = 2**23  # logits in memory at once: 32 MiB in float32
SUMMED_CHUNK = 2**25  # the same for `summed_head_loss`: 64 MiB in bfloat16


def token_losses(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return -log p(target) in nats: `logits` [N, V] and `targets` [N] -> [N], float32."""
    return F.cross_entropy(logits.float(), targets, reduction="none")


def summed_head_loss(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, targets: torch.Tensor
) -> torch.Tensor:
    """Return the sum of -log softmax(hidden weight^T + bias) at `targets`, in nats.

    The log-probs are those of `head_logprobs`. If gradients are enabled, the forward pass also
    computes the gradient, so that logits are computed only once. Therefore only one backward pass
    is possible.

    Args:
        hidden: [N, H].
        weight: [V, H].
        bias: [V] or None.
        targets: [N].
    """
    if not torch.is_grad_enabled():
        return -head_logprobs(hidden, weight, bias, targets).logprobs.sum()
    kind = hidden.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
    with torch.autocast(kind, enabled=False):
        loss: torch.Tensor = _SummedHeadLoss.apply(hidden.to(dtype), weight, bias, targets)  # type: ignore[no-untyped-call]
    return loss


class _SummedHeadLoss(torch.autograd.Function):
    """The summed loss; its gradient is d loss / d logit_j = p_j - 1[j = y]."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
    ) -> torch.Tensor:
        low = weight.to(hidden.dtype)
        low_bias = None if bias is None else bias.to(hidden.dtype)
        total = torch.zeros((), dtype=torch.float64, device=hidden.device)
        d_hidden = torch.empty_like(hidden)
        learns = ctx.needs_input_grad[1]  # False if adapters are trained on a frozen model
        d_weight = (
            torch.zeros(weight.shape, dtype=torch.float32, device=weight.device) if learns else None
        )
        d_bias = None if bias is None else torch.zeros_like(bias, dtype=torch.float32)
        # A power of two, so that there are few different shapes.
        rows = 2 ** int(math.log2(max(1, SUMMED_CHUNK // len(weight))))
        for start in range(0, len(hidden), rows):
            at = slice(start, start + rows)
            gradient = F.linear(hidden[at], low, low_bias).softmax(1)
            total += _loss_and_gradient(gradient, targets[at])
            d_hidden[at] = gradient @ low
            if d_weight is not None:
                d_weight += gradient.mT @ hidden[at]
            if d_bias is not None:
                d_bias += gradient.sum(0, dtype=torch.float32)
        ctx.save_for_backward(d_hidden, d_weight, d_bias)
        ctx.dtypes = weight.dtype, None if bias is None else bias.dtype
        return total.to(torch.promote_types(hidden.dtype, torch.float32))

    @staticmethod
    def backward(ctx: Any, d_loss: torch.Tensor) -> tuple[Any, ...]:
        d_hidden, d_weight, d_bias = ctx.saved_tensors
        dtype, bias_dtype = ctx.dtypes
        return (
            d_hidden * d_loss,
            # In place: the gradient is as large as the head.
            None if d_weight is None else d_weight.mul_(d_loss).to(dtype),
            None if d_bias is None else (d_bias * d_loss).to(bias_dtype),
            None,
        )


def _loss_and_gradient(probs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Overwrite `probs` with p_j - 1[j = y] and return the sum of -log p_y in float64.

    In bfloat16, 1 - p_y loses its precision if p_y is close to 1. The sum of the other
    probabilities keeps it, so log p_y is computed relative to that sum. If p_y underflows, it
    counts as the smallest positive normal number of the dtype.

    Args:
        probs: [N, V]; changed in place.
        targets: [N].
    """
    # Index by rows: `scatter_` would copy all of `probs` and copy it back.
    rows = torch.arange(len(probs), device=probs.device)
    of_target = probs[rows, targets]
    probs[rows, targets] = 0.0
    others = probs.sum(1)  # accumulated in float32
    probs[rows, targets] = -others
    one, rest = of_target.double().clamp_(min=torch.finfo(probs.dtype).tiny), others.double()
    return ((one + rest).log() - one.log()).sum()


class TokenLogprobs(NamedTuple):
    logprobs: torch.Tensor  # [N] float32, nats
    entropies: torch.Tensor  # [N] float32, nats; zeros if not requested


def head_logprobs(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    targets: torch.Tensor,
    temperature: float = 1.0,
    with_entropy: bool = False,
) -> TokenLogprobs:
    """Return log softmax((hidden weight^T + bias) / temperature) at `targets`.

    On request, also return the entropy of that distribution. The matrix product runs in the
    precision of autocast, the softmax in float32. Logits exist for one chunk of rows at a time, in
    the backward pass too, so that memory does not grow with N * V.

    Args:
        hidden: [N, H].
        weight: [V, H].
        bias: [V] or None.
        targets: [N].
    """
    kind = hidden.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
    with torch.autocast(kind, enabled=False):
        return TokenLogprobs(
            *_HeadLogprobs.apply(  # type: ignore[no-untyped-call]
                hidden.to(dtype),
                weight.to(dtype),
                None if bias is None else bias.to(dtype),
                targets,
                temperature,
                with_entropy,
            )
        )


class _HeadLogprobs(torch.autograd.Function):
    """The log-probs and entropies of `head_logprobs`.

    Gradients: d logp(y) / d logit_j = 1[j = y] - p_j; d entropy / d logit_j = -p_j (log p_j +
    entropy).
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        temperature: float,
        with_entropy: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        # A power of two, so that there are few different shapes; see align/text/packing.py.
        rows = 2 ** int(math.log2(max(1, CHUNK // len(weight))))
        logprobs = torch.empty(len(hidden), device=hidden.device)
        entropies = torch.zeros(len(hidden), device=hidden.device)
        kept = None
        for start in range(0, len(hidden), rows):
            at = slice(start, start + rows)
            every = _log_softmax(hidden[at], weight, bias, temperature)
            logprobs[at] = every.gather(1, targets[at, None])[:, 0]
            if with_entropy:
                entropies[at] = -(every.exp() * every).sum(1)
            # A single chunk is small enough to keep for the backward pass.
            kept = every if len(hidden) <= rows else None
        ctx.save_for_backward(hidden, weight, bias, targets, entropies, kept)
        ctx.temperature, ctx.with_entropy, ctx.rows = temperature, with_entropy, rows
        return logprobs, entropies

    @staticmethod
    def backward(ctx: Any, d_logprobs: torch.Tensor, d_entropies: torch.Tensor) -> tuple[Any, ...]:
        hidden, weight, bias, targets, entropies, kept = ctx.saved_tensors
        d_hidden = torch.empty_like(hidden)
        learns = ctx.needs_input_grad[1]  # False if adapters are trained on a frozen model
        d_weight = (
            torch.zeros(weight.shape, dtype=torch.float32, device=weight.device) if learns else None
        )
        d_bias = None if bias is None else torch.zeros_like(bias, dtype=torch.float32)
        for start in range(0, len(hidden), ctx.rows):
            at = slice(start, start + ctx.rows)
            every = (
                _log_softmax(hidden[at], weight, bias, ctx.temperature) if kept is None else kept
            )
            gradient = every.exp()
            if ctx.with_entropy:
                slope = d_logprobs[at, None] + d_entropies[at, None] * (every + entropies[at, None])
                gradient.mul_(slope.div_(-ctx.temperature))
            else:
                gradient.mul_(d_logprobs[at, None] / -ctx.temperature)
            gradient.scatter_add_(1, targets[at, None], d_logprobs[at, None] / ctx.temperature)
            gradient = gradient.to(hidden.dtype)
            d_hidden[at] = gradient @ weight
            if d_weight is not None:
                d_weight += gradient.mT @ hidden[at]
            if d_bias is not None:
                d_bias += gradient.sum(0, dtype=torch.float32)
        d_bias = None if bias is None or d_bias is None else d_bias.to(bias.dtype)
        d_weight = None if d_weight is None else d_weight.to(weight.dtype)
        return d_hidden, d_weight, d_bias, None, None, None


def _log_softmax(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, temperature: float
) -> torch.Tensor:
    logits = F.linear(hidden, weight, bias).float()
    return (logits if temperature == 1 else logits.div_(temperature)).log_softmax(1)
