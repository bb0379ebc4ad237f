"""Language-model likelihoods. Logits in float32; every mean over tokens is weighted by the caller's own count."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

_CHUNK = 2**23  # logits held at once: 32 MiB in float32
_SUMMED_CHUNK = 2**25  # where only their gradient is held: 64 MiB in bfloat16


def token_losses(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """-log p(target) in nats. `logits` [N, V] and `targets` [N] -> [N], float32."""
    return F.cross_entropy(logits.float(), targets, reduction="none")


def summed_head_loss(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, targets: torch.Tensor
) -> torch.Tensor:
    """The sum of -log softmax(hidden weight^T + bias) at `targets`, in nats, as `head_logprobs` has them.

    Where it is learned from, the gradient is made in the forward pass, so that logits are computed once; one backward
    pass is all there can be.

    Args:
        hidden: [N, H]; weight: [V, H]; bias: [V] or None; targets: [N].
    """
    if not torch.is_grad_enabled():
        return -head_logprobs(hidden, weight, bias, targets).logprobs.sum()
    kind = hidden.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
    with torch.autocast(kind, enabled=False):
        return _SummedHeadLoss.apply(hidden.to(dtype), weight, bias, targets)


class _SummedHeadLoss(torch.autograd.Function):
    """d loss / d logit_j = p_j - 1[j = y]."""

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, targets: torch.Tensor
    ) -> torch.Tensor:
        low = weight.to(hidden.dtype)
        low_bias = None if bias is None else bias.to(hidden.dtype)
        total = torch.zeros((), dtype=torch.float64, device=hidden.device)
        d_hidden = torch.empty_like(hidden)
        learns = ctx.needs_input_grad[1]  # not where adapters are trained on a frozen model
        d_weight = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device) if learns else None
        d_bias = None if bias is None else torch.zeros_like(bias, dtype=torch.float32)
        rows = 2 ** int(math.log2(max(1, _SUMMED_CHUNK // len(weight))))  # few different shapes
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
            None if d_weight is None else d_weight.mul_(d_loss).to(dtype),  # in place: it is as large as the head
            None if d_bias is None else (d_bias * d_loss).to(bias_dtype),
            None,
        )


def _loss_and_gradient(probs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Make of `probs` [N, V], in place, p_j - 1[j = y]; the sum of -log p_y, in float64. `targets` [N].

    In bfloat16 1 - p_y would be lost where p_y is nearly 1; the sum of the others is as precise as they are, and
    log p_y is taken against it. A probability that underflows counts as the smallest there is.
    """
    rows = torch.arange(len(probs), device=probs.device)  # `scatter_` would copy all of `probs`, and back
    of_target = probs[rows, targets]
    probs[rows, targets] = 0.0
    others = probs.sum(1)  # in float32 inside
    probs[rows, targets] = -others
    one, rest = of_target.double().clamp_(min=torch.finfo(probs.dtype).tiny), others.double()
    return ((one + rest).log() - one.log()).sum()


class TokenLogprobs(NamedTuple):
    logprobs: torch.Tensor  # [N] float32, nats
    entropies: torch.Tensor  # [N] float32, nats; zeros where they were not asked for


def head_logprobs(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    targets: torch.Tensor,
    temperature: float = 1.0,
    with_entropy: bool = False,
) -> TokenLogprobs:
    """log softmax((hidden weight^T + bias) / temperature) at `targets`, and that distribution's entropy.

    The product runs in the precision that autocast asks for, the softmax in float32. Logits exist for a chunk of rows
    at a time, in the backward pass too, so that memory does not grow with N times V.

    Args:
        hidden: [N, H]; weight: [V, H]; bias: [V] or None; targets: [N].
    """
    kind = hidden.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
    with torch.autocast(kind, enabled=False):
        return TokenLogprobs(
            *_HeadLogprobs.apply(
                hidden.to(dtype),
                weight.to(dtype),
                None if bias is None else bias.to(dtype),
                targets,
                temperature,
                with_entropy,
            )
        )


class _HeadLogprobs(torch.autograd.Function):
    """d logp(y) / d logit_j = 1[j = y] - p_j;  d entropy / d logit_j = -p_j (log p_j + entropy)."""

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
        rows = 2 ** int(math.log2(max(1, _CHUNK // len(weight))))  # few different shapes, as in align/text/packing.py
        logprobs = torch.empty(len(hidden), device=hidden.device)
        entropies = torch.zeros(len(hidden), device=hidden.device)
        kept = None
        for start in range(0, len(hidden), rows):
            at = slice(start, start + rows)
            every = _log_softmax(hidden[at], weight, bias, temperature)
            logprobs[at] = every.gather(1, targets[at, None])[:, 0]
            if with_entropy:
                entropies[at] = -(every.exp() * every).sum(1)
            kept = every if len(hidden) <= rows else None  # one chunk is small enough to be kept for the backward pass
        ctx.save_for_backward(hidden, weight, bias, targets, entropies, kept)
        ctx.temperature, ctx.with_entropy, ctx.rows = temperature, with_entropy, rows
        return logprobs, entropies

    @staticmethod
    def backward(ctx: Any, d_logprobs: torch.Tensor, d_entropies: torch.Tensor) -> tuple[Any, ...]:
        hidden, weight, bias, targets, entropies, kept = ctx.saved_tensors
        d_hidden = torch.empty_like(hidden)
        learns = ctx.needs_input_grad[1]  # not where adapters are trained on a frozen model
        d_weight = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device) if learns else None
        d_bias = None if bias is None else torch.zeros_like(bias, dtype=torch.float32)
        for start in range(0, len(hidden), ctx.rows):
            at = slice(start, start + ctx.rows)
            every = _log_softmax(hidden[at], weight, bias, ctx.temperature) if kept is None else kept
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
