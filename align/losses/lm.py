"""Language-model likelihoods. Logits in float32; every mean over tokens is weighted by the caller's own count."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def token_losses(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """-log p(target) in nats. `logits` [N, V] and `targets` [N] -> [N], float32."""
    return F.cross_entropy(logits.float(), targets, reduction="none")
