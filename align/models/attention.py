"""One attention function for every model: packed without leaks, and in the precision that is fast on the device.

`transformers` hands each layer whatever its mask function returned. Ours returns, for a packed row, a `PackedLayout`:
attention then runs on the sequences side by side, each padded to the longest, while every other layer of the model
sees no padding at all. A dense mask over the whole row would cost its length squared.

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

ATTENTION = "align"

# On CPUs the fused kernel's backward is slower than plain matrix products for short sequences (half the speed at 48
# tokens, even at 256); for long ones the plain products need memory by the length squared.
_PLAIN_UP_TO = 256


class PackedLayout(NamedTuple):
    """Where the S sequences of a packed batch lie among its N = rows x length tokens."""

    tokens: torch.Tensor  # [S, L] index into the N tokens; padding repeats the sequence's last token
    places: torch.Tensor  # [N] index into S * L: where each token stands in `tokens`


def packed_layout(starts: torch.Tensor) -> PackedLayout:
    """`starts` [N] bool: True where a sequence begins; `starts[0]` must be True."""
    first = starts.nonzero().squeeze(1)
    lengths = torch.diff(first, append=first.new_tensor([starts.numel()]))
    longest = int(lengths.max())
    offsets = torch.arange(longest, device=starts.device).expand(len(first), longest)
    tokens = first[:, None] + torch.minimum(offsets, lengths[:, None] - 1)
    sequence = torch.cumsum(starts.long(), 0) - 1
    places = sequence * longest + torch.arange(starts.numel(), device=starts.device) - first[sequence]
    return PackedLayout(tokens, places)


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
    batch, heads, length, _ = query.shape

    def apart(x: torch.Tensor) -> torch.Tensor:  # [B, H, length, D] -> [S, H, L, D]
        return x.transpose(1, 2).flatten(0, 1)[layout.tokens].transpose(1, 2)

    out = _causal(apart(query), apart(key), apart(value), dropout, scaling)
    together = out.transpose(1, 2).flatten(0, 1)[layout.places]  # [N, H, D]
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
