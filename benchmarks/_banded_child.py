"""Attention of one layer, forward and backward, in each of the ways that banded.py compares.

    python benchmarks/_banded_child.py SIDE CONTEXT

prints what it holds at its peak beyond what the process held before, in bytes.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from transformers import AttentionInterface
from transformers.models.gpt2.modeling_gpt2 import eager_attention_forward

from align.models.attention import ATTENTION, packed_layout

HEADS, HEAD_WIDTH, WINDOW = 12, 64, 256

Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]  # [1, H, L, D] each -> [1, L, H, D]


class Way(NamedTuple):
    make: Callable[[int, torch.dtype], Attend]  # for a context
    dtype: torch.dtype


def _banded(context: int, dtype: torch.dtype) -> Attend:
    """As a banded layer calls it, with the layout of a row that is one sequence."""
    layer, function = torch.nn.Module(), AttentionInterface()[ATTENTION]
    layout = packed_layout(torch.arange(context) == 0, WINDOW)
    return lambda query, key, value: function(layer, query, key, value, layout, scaling=HEAD_WIDTH**-0.5)[0]


def _fused(context: int, dtype: torch.dtype) -> Attend:
    return lambda *inputs: F.scaled_dot_product_attention(*inputs, is_causal=True).transpose(1, 2).contiguous()


def _eager(context: int, dtype: torch.dtype) -> Attend:
    """`transformers`' own under a mask of the band."""
    distance = torch.arange(context)[:, None] - torch.arange(context)
    seen = (distance >= 0) & (distance < WINDOW)
    mask = torch.where(seen, 0.0, torch.finfo(dtype).min).to(dtype)[None, None]
    layer = torch.nn.Module()
    return lambda *inputs: eager_attention_forward(layer, *inputs, mask)[0]


WAYS = {
    "banded": Way(_banded, torch.bfloat16),
    "banded_fp32": Way(_banded, torch.float32),
    "fused_fp32": Way(_fused, torch.float32),
    "fused_bf16": Way(_fused, torch.bfloat16),
    "eager": Way(_eager, torch.bfloat16),
    "eager_fp32": Way(_eager, torch.float32),
}


def step(way: str, context: int) -> Callable[[], None]:
    """One forward and backward pass; inputs lie as a layer's projection leaves them."""
    make, dtype = WAYS[way]
    attend = make(context, dtype)
    torch.manual_seed(0)
    inputs = [torch.randn(1, context, HEADS * HEAD_WIDTH).to(dtype).requires_grad_() for _ in range(3)]
    gradient = torch.randn(1, context, HEADS, HEAD_WIDTH).to(dtype)

    def work() -> None:
        attend(*(x.view(1, context, HEADS, HEAD_WIDTH).transpose(1, 2) for x in inputs)).backward(gradient)
        for x in inputs:
            x.grad = None

    return work


def _resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def main() -> None:
    way, context = sys.argv[1], int(sys.argv[2])
    step(way, 2 * WINDOW)()  # what the libraries set up once
    work = step(way, context)
    ctypes.CDLL(None).malloc_trim(0)  # or what is free already would be used, and not be counted
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    before = _resident("VmRSS")
    work()
    with os.fdopen(int(os.environ.get("ANSWERS_FD", "1")), "w") as answers:
        print(_resident("VmHWM") - before, file=answers)


if __name__ == "__main__":
    main()
