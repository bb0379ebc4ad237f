"""One attention function for every model: packed without leaks, and in the precision that is fast on the device.

`transformers` hands each layer whatever its mask function returned. Ours returns, for a packed row, a `PackedLayout`:
attention then runs on sequences of similar length side by side, padded to the longest of them, while every other layer
of the model sees no padding at all. A dense mask over the whole row would cost its length squared.

Use it by `attn_implementation=ATTENTION`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv
from transformers.masking_utils import sdpa_mask

from align.errors import ConfigError

ATTENTION = "align"

# On CPUs the fused kernel's backward is slower than plain matrix products for short sequences (half the speed at 48
# tokens, even at 256); for long ones the plain products need memory by the length squared.
_PLAIN_UP_TO = 256
_SHORT = 64  # tokens


class PackedLayout(NamedTuple):
    """Where the sequences of a packed batch lie among its N = rows x length tokens, in groups of similar length."""

    tokens: torch.Tensor  # [M] indices into the N tokens: group after group, [S, L] each; padding repeats a token
    shapes: tuple[tuple[int, int], ...]  # (S, L) of each group
    places: torch.Tensor  # [N] index into the M: where each token stands in `tokens`


def packed_layout(starts: torch.Tensor) -> PackedLayout:
    """`starts` [N] bool: True where a sequence begins; `starts[0]` must be True."""
    first = starts.nonzero().squeeze(1)
    lengths = torch.diff(first, append=first.new_tensor([starts.numel()]))
    # Within a group padding at most doubles a sequence, but short ones are all together: many small products are slow.
    doublings = torch.log2(lengths.float()).ceil().clamp(min=_SHORT.bit_length() - 1)
    groups, places, taken = [], torch.empty_like(starts, dtype=torch.long), 0
    for doubling in doublings.unique():
        begin, length = first[doublings == doubling], lengths[doublings == doubling]
        offsets = torch.arange(int(length.max()), device=starts.device).expand(len(begin), -1)
        tokens = begin[:, None] + torch.minimum(offsets, length[:, None] - 1)
        real = offsets < length[:, None]
        places[tokens[real]] = taken + real.flatten().nonzero().squeeze(1)
        groups.append(tokens)
        taken += tokens.numel()
    shapes = tuple((len(tokens), tokens.shape[1]) for tokens in groups)
    return PackedLayout(torch.cat([tokens.flatten() for tokens in groups]), shapes, places)


def _mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    mask_function: Callable,
    attention_mask: torch.Tensor | None = None,
    allow_is_causal_skip: bool = True,
    device: torch.device | str = "cpu",
    **kwargs: object,
) -> torch.Tensor | PackedLayout | None:
    if attention_mask is None and q_length == kv_length and not allow_is_causal_skip and not kwargs.get("use_vmap"):
        # Packed rows: a sequence begins wherever a token may not see the one before it.
        rows = torch.arange(batch_size, device=device)[:, None]
        after = torch.arange(1, q_length, device=device)[None, :]
        joined = mask_function(rows, torch.zeros_like(rows), after, after - 1)
        starts = torch.ones(batch_size, q_length, dtype=torch.bool, device=device)
        starts[:, 1:] = ~joined
        if _sees_all(mask_function, starts):
            return packed_layout(starts.flatten())
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


def _sees_all(mask_function: Callable, starts: torch.Tensor) -> bool:
    """True when each token sees its whole sequence; False under a sliding window shorter than a sequence."""
    place = torch.arange(starts.shape[1], device=starts.device).expand_as(starts)
    first = torch.where(starts, place, 0).cummax(1).values
    rows = torch.arange(len(starts), device=starts.device)[:, None]
    return bool(mask_function(rows, torch.zeros_like(rows), place, first).all())


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
    """`query` [B, H, Q, D], `key` and `value` [B, H or fewer, KV, D] -> [B, Q, H, D]."""
    unknown = [name for name in ("softcap", "s_aux") if kwargs.get(name) is not None]
    if unknown:
        raise ConfigError(f"{type(module).__name__}: its attention has {' and '.join(unknown)}, which align's has not")
    groups = getattr(module, "num_key_value_groups", 1)
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    dtype = query.dtype
    if query.device.type == "cpu" and dtype != torch.float32:
        query, key, value = query.float(), key.float(), value.float()  # CPU attention in bf16 is 3x slower than fp32
    if isinstance(attention_mask, PackedLayout):
        out = _attend_packed(query, key, value, attention_mask, dropout, scaling)
    elif attention_mask is None and query.shape[2] > 1:
        out = _causal(query, key, value, dropout, scaling)
    else:
        out = F.scaled_dot_product_attention(query, key, value, attention_mask, dropout, scale=scaling)
    return out.to(dtype).transpose(1, 2).contiguous(), None


def _attend_packed(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    layout: PackedLayout,
    dropout: float,
    scaling: float | None,
) -> torch.Tensor:
    batch, heads, length, width = query.shape
    sizes = [count * longest for count, longest in layout.shapes]

    def apart(x: torch.Tensor) -> list[torch.Tensor]:  # [B, H, length, D] -> [S, H, L, D] of each group
        parts = x.transpose(1, 2).flatten(0, 1).index_select(0, layout.tokens).split(sizes)
        return [
            part.view(*shape, heads, width).transpose(1, 2) for part, shape in zip(parts, layout.shapes, strict=True)
        ]

    out = [_causal(q, k, v, dropout, scaling) for q, k, v in zip(apart(query), apart(key), apart(value), strict=True)]
    together = torch.cat([part.transpose(1, 2).flatten(0, 1) for part in out]).index_select(0, layout.places)
    return together.view(batch, length, heads, -1).transpose(1, 2)


def _causal(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, dropout: float, scaling: float | None
) -> torch.Tensor:
    length, width = query.shape[-2:]
    if query.device.type != "cpu" or length > _PLAIN_UP_TO or dropout > 0 or key.shape[-2] != length:
        return F.scaled_dot_product_attention(query, key, value, None, dropout, is_causal=True, scale=scaling)
    future = torch.full((length, length), float("-inf"), dtype=query.dtype).triu(1)
    scores = torch.matmul(query * (scaling or width**-0.5), key.transpose(-1, -2)).add_(future)
    return torch.matmul(scores.softmax(-1), value)


AttentionInterface.register(ATTENTION, _attend)
AttentionMaskInterface.register(ATTENTION, _mask)
