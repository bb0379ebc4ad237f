"""How a forward pass runs: device, tokens per pass, precision."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True, slots=True)
class Compute:
    """Settings of a forward and backward pass.

    Attributes:
        device: the device of all tensors.
        max_tokens: tokens per pass; a longer sequence gets a pass of its own.
        precision: fp32, or bf16 for autocast over fp32 weights.
    """

    device: torch.device
    max_tokens: int
    precision: str = "fp32"

    def autocast(self) -> AbstractContextManager[Any]:
        """Return a context in which matrix products run in bf16 if `precision` is bf16."""
        return torch.autocast(
            self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16"
        )


def emulates_bf16(device: torch.device) -> bool:
    """Return True for a CPU that computes bf16 in software."""
    known = torch.backends.mkldnn.is_available()
    return device.type == "cpu" and not (known and torch.ops.mkldnn._is_mkldnn_bf16_supported())
