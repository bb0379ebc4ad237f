"""One rollout of PPO: responses sampled from the policy, and what every model says of each of their tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from align.models.packed import pack_pairs
from align.text.packing import Packed

Layout = list[list[list[int]]]  # minibatches of micro-batches of episodes


class Samples(NamedTuple):
    """B prompts with a response to each."""

    ids: list[int]  # which prompts they are, of all there are to train on
    prompts: list[list[int]]
    responses: list[list[int]]
    sampled_logprobs: torch.Tensor  # [B, T] nats, as the sampling engine saw them
    mask: torch.Tensor  # [B, T] bool, True where the token counts
    ended: torch.Tensor  # [B] bool, False where the response was cut off

    def tokens(self, i: int) -> int:
        return len(self.prompts[i]) + len(self.responses[i])


class Rollouts(NamedTuple):
    """Samples, scored: everything the update needs, computed before the first change of the policy."""

    samples: Samples
    logprobs: torch.Tensor  # [B, T] nats, under the policy as it sampled
    ref_logprobs: torch.Tensor  # [B, T] nats, under the frozen reference
    values: torch.Tensor  # [B, T] of the state before each token
    entropies: torch.Tensor  # [B, T] nats, of the policy before each token
    rewards: torch.Tensor  # [B] of the whole response, without the KL


def make_samples(
    ids: list[int],
    prompts: list[list[int]],
    responses: list[list[int]],
    logprobs: Sequence[Sequence[float]],
    ended: Sequence[bool],
    device: torch.device,
) -> Samples:
    """Pad what the engine gave; `ended` says of each response whether it ended by itself and was not cut off."""
    lengths = torch.tensor([len(response) for response in responses], device=device)
    mask = torch.arange(int(lengths.max()), device=device)[None, :] < lengths[:, None]
    flat = torch.tensor([logprob for row in logprobs for logprob in row], device=device)
    return Samples(ids, prompts, responses, padded(flat, mask), mask, torch.tensor(ended, device=device))


def padded(flat: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """[B, T] with `flat` where `mask` is True, row by row, and 0 elsewhere."""
    out = torch.zeros(mask.shape, dtype=flat.dtype, device=flat.device)
    out[mask] = flat
    return out


def packed_group(
    samples: Samples, group: Sequence[int], device: torch.device
) -> tuple[Packed, list[list[int]], torch.Tensor]:
    """A micro-batch of episodes: the packed row, its responses, and their mask."""
    responses = [samples.responses[i] for i in group]
    return pack_pairs([samples.prompts[i] for i in group], responses, device), responses, samples.mask[group]
