"""One attention function for all models: packed rows stay separate, in a fast precision.

`transformers` passes the result of its mask function to each layer. For a packed row, align's mask
function returns a `PackedLayout`. Attention then runs on sequences of similar length side by side,
padded to the longest of them. All other layers of the model see no padding. A dense mask over the
whole row would need memory quadratic in its length.

Enable it with `attn_implementation=ATTENTION`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv
from transformers.masking_utils import sdpa_mask

from align.errors import ConfigError
from align.models.banded import banded_attention
from align.models.kernels import fused_attention

ATTENTION = "align"

# On CPUs, blocks of plain matrix products are faster than the fused kernel in fp32 and bf16, and
# most of all with dropout. But they keep the probabilities for the backward pass, and that memory
# grows with the square of the length.
_IN_BLOCKS_UP_TO = 1024  # tokens
_SHORT = 64  # tokens
_ROUND = 16  # tokens; for few different shapes, see align/text/packing.py


class PackedLayout(NamedTuple):
    """The sequences of a packed batch of N = rows * length tokens, in groups of similar length.

    A group of S sequences is padded to L tokens each. M is the number of tokens of all groups,
    padding included.
    """

    # [M] indices into the N tokens: one [S, L] block per group, where padding repeats a token.
    # None: one group without padding, tokens stay in place.
    tokens: torch.Tensor | None
    shapes: tuple[tuple[int, int], ...]  # (S, L) of each group
    places: torch.Tensor  # [N] index of each token in `tokens`
    padding: torch.Tensor  # indices in `tokens` that are padding
    # Tokens that each token sees, itself included; None: all up to itself.
    window: int | None = None


def packed_layout(
    starts: torch.Tensor, window: int | None = None, rounding: int = _ROUND
) -> PackedLayout:
    """Group the sequences of a packed batch by length.

    Args:
        starts: [N] bool, True where a sequence begins; `starts[0]` must be True.
        window: tokens that each token sees, itself included; None: all tokens up to itself.
        rounding: if lengths differ, a group's length is rounded up to a multiple of this.
    """
    first = starts.nonzero().squeeze(1)
    lengths = torch.diff(first, append=first.new_tensor([starts.numel()]))
    if window is not None and window >= int(lengths.max()):
        window = None
    # One group per power of two: padding at most doubles a sequence. All short sequences share one
    # group, because many small matrix products are slow.
    doublings = torch.log2(lengths.float()).ceil().clamp(min=_SHORT.bit_length() - 1)
    groups, padding, taken = [], [], 0
    places = torch.empty_like(starts, dtype=torch.long)
    varied = int(lengths.min()) != int(lengths.max())
    for doubling in doublings.unique():
        begin, length = first[doublings == doubling], lengths[doublings == doubling]
        longest = int(length.max())
        longest += -longest % rounding if varied else 0
        offsets = torch.arange(longest, device=starts.device).expand(len(begin), -1)
        tokens = begin[:, None] + torch.minimum(offsets, length[:, None] - 1)
        real = offsets < length[:, None]
        places[tokens[real]] = taken + real.flatten().nonzero().squeeze(1)
        padding.append(taken + (~real).flatten().nonzero().squeeze(1))
        groups.append(tokens)
        taken += tokens.numel()
    shapes = tuple((len(tokens), tokens.shape[1]) for tokens in groups)
    in_place = len(groups) == 1 and taken == starts.numel()
    whole = None if in_place else torch.cat([tokens.flatten() for tokens in groups])
    return PackedLayout(whole, shapes, places, torch.cat(padding), window)


def packed_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    mask_function: Callable,
    attention_mask: torch.Tensor | None = None,
    allow_is_causal_skip: bool = True,
    device: torch.device | str = "cpu",
    **kwargs: Any,
) -> torch.Tensor | PackedLayout | None:
    window = kwargs.get("local_size") or None  # some configs write 0 for no window
    bare = attention_mask is None or (window is not None and bool(attention_mask.all()))
    if (
        bare
        and q_length == kv_length
        and not kwargs.get("use_vmap")
        and not (window is None and allow_is_causal_skip)
    ):
        # Packed rows, or rows with a window. A sequence begins where a token does not see the one
        # before it.
        starts = _starts(mask_function, batch_size, q_length, device)
        if _fits(mask_function, starts, window):
            return packed_layout(starts.flatten(), window)
    return sdpa_mask(
        batch_size,
        q_length,
        kv_length,
        mask_function=mask_function,
        attention_mask=attention_mask,
        allow_is_causal_skip=allow_is_causal_skip,
        device=device,
        **kwargs,
    )


def _starts(
    mask_function: Callable, rows: int, length: int, device: torch.device | str
) -> torch.Tensor:
    """Return [rows, length] bool: True where a token does not see the token before it."""
    starts = torch.ones(rows, length, dtype=torch.bool, device=device)
    row = torch.arange(rows, device=device)[:, None]
    after = torch.arange(1, length, device=device)[None, :]
    starts[:, 1:] = ~mask_function(row, torch.zeros_like(row), after, after - 1)
    return starts


def _fits(mask_function: Callable, starts: torch.Tensor, window: int | None) -> bool:
    """Return True if the mask is causal within each sequence, limited to `window` tokens.

    Only the edges are checked: the first visible token, the one before it, and the next token.
    """
    place = torch.arange(starts.shape[1], device=starts.device).expand_as(starts)
    first = torch.where(starts, place, 0).cummax(1).values
    rows = torch.arange(len(starts), device=starts.device)[:, None]
    head = torch.zeros_like(rows)
    last = first if window is None else torch.maximum(first, place - window + 1)
    beyond = mask_function(rows, head, place, (last - 1).clamp(min=0)) & (last > first)
    future = mask_function(rows, head, place[:, :-1], place[:, 1:])
    return bool(
        mask_function(rows, head, place, last).all() and not beyond.any() and not future.any()
    )


def _attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | PackedLayout | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: object,
) -> tuple[torch.Tensor, None]:
    """Compute attention with the interface that `transformers` expects.

    Args:
        query: [B, H, Q, D].
        key, value: [B, H or fewer, KV, D].

    Returns:
        [B, Q, H, D], and None for the attention weights.

    Raises:
        ConfigError: the module's attention has soft-capping or sinks.
    """
    unknown = [name for name in ("softcap", "s_aux") if kwargs.get(name) is not None]
    if unknown:
        raise ConfigError(
            f"{type(module).__name__}: its attention has {' and '.join(unknown)}, which align's"
            " has not"
        )
    dtype = query.dtype
    one_token = query.device.type == "cpu" and query.shape[2] == 1
    if one_token and not isinstance(attention_mask, PackedLayout):
        # A sampling step: the cache sets the precision of keys and values.
        out = _one_token(query, key, value, attention_mask, scaling)
        return out.to(dtype).transpose(1, 2).contiguous(), None
    groups = getattr(module, "num_key_value_groups", 1)
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    if query.shape[2] > 1:
        dtype = value.dtype
        # Under autocast, rotary positions leave query and key in float32.
        query, key = query.to(dtype), key.to(dtype)
    if isinstance(attention_mask, PackedLayout):
        out = _attend_packed(query, key, value, attention_mask, dropout, scaling)
    elif attention_mask is None and query.shape[2] > 1:
        out = _causal(query, key, value, dropout, scaling)
    else:
        out = fused_attention(query, key, value, attention_mask, dropout, scaling)
    return out.to(dtype).transpose(1, 2).contiguous(), None


def _attend_packed(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    layout: PackedLayout,
    dropout: float,
    scaling: float | None,
) -> torch.Tensor:
    batch, heads, length, _ = query.shape
    sizes = [count * longest for count, longest in layout.shapes]

    def apart(x: torch.Tensor) -> list[torch.Tensor]:  # [B, H, length, D] -> [S, H, L, D] per group
        flat = x.transpose(1, 2).flatten(0, 1)
        parts = (flat if layout.tokens is None else _Spread.apply(flat, layout)).split(sizes)
        return [
            part.view(*shape, heads, x.shape[-1]).transpose(1, 2)
            for part, shape in zip(parts, layout.shapes, strict=True)
        ]

    groups = zip(apart(query), apart(key), apart(value), strict=True)
    out = [_causal(q, k, v, dropout, scaling, layout.window) for q, k, v in groups]
    together = torch.cat([part.transpose(1, 2).flatten(0, 1) for part in out])
    if layout.tokens is not None:
        together = _Gather.apply(together, layout)
    return together.view(batch, length, heads, -1).transpose(1, 2)


class _Spread(torch.autograd.Function):
    """The copy of a packed batch's tokens [N, ...] to their places in groups [M, ...].

    The backward pass is a plain `index_select`, several times faster than the sum that the gradient
    of `index_select` needs. Padding repeats a token, but it gets no gradient: padding comes after
    all real tokens, and its outputs are dropped.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, layout: PackedLayout) -> torch.Tensor:
        ctx.layout = layout
        assert layout.tokens is not None
        return x.index_select(0, layout.tokens)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradient.index_select(0, ctx.layout.places), None


class _Gather(torch.autograd.Function):
    """The inverse of `_Spread`: [M, ...] to [N, ...].

    The gradient of padding is exactly 0, which `_Spread` relies on.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, layout: PackedLayout) -> torch.Tensor:
        ctx.layout = layout
        return x.index_select(0, layout.places)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        layout = ctx.layout
        return gradient.index_select(0, layout.tokens).index_fill_(0, layout.padding, 0.0), None


def _causal(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    dropout: float,
    scaling: float | None,
    window: int | None = None,
) -> torch.Tensor:
    length, width = query.shape[-2:]
    scale = scaling or width**-0.5
    if window is not None and window < length:
        return banded_attention(query, key, value, window, dropout, scale)
    if query.device.type == "cpu" and length <= _IN_BLOCKS_UP_TO and key.shape[-2] == length:
        return banded_attention(query, key, value, length, dropout, scale)
    return fused_attention(query, key, value, None, dropout, scale, causal=True)


def _one_token(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float | None,
) -> torch.Tensor:
    """Compute attention for one sampling step, directly on the key-value cache.

    The fused kernel would first copy the whole cache to float32. Query heads that share keys and
    values are the rows of one matrix product, so the cache is not repeated for each of them.
    """
    batch, heads, _, width = query.shape
    shared = query.reshape(batch, key.shape[1], -1, width).to(key.dtype)
    scores = torch.matmul(shared, key.mT).float().mul_(scaling or width**-0.5)
    if mask is not None:
        scores.masked_fill_(~mask, float("-inf"))
    out = torch.matmul(scores.softmax(-1).to(value.dtype), value)
    return out.reshape(batch, heads, 1, -1)


AttentionInterface.register(ATTENTION, _attend)
AttentionMaskInterface.register(ATTENTION, packed_mask)
