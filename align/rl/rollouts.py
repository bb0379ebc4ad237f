"""One PPO rollout: sampled responses, with each model's log-probs and values of their tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from align.configs import Ppo
from align.configs.rollouts import RolloutConfig
from align.models.packed import pack_pairs
from align.rl.models import Actors
from align.runtime.job import Job
from align.runtime.seeds import derive_seed
from align.text.packing import Packed, micro_batches

Layout = list[list[list[int]]]  # minibatches of micro-batches of episode indices


class Samples(NamedTuple):
    """B responses, each with its prompt; those to one prompt follow each other."""

    ids: list[int]  # indices of the prompts among all training prompts
    prompts: list[list[int]]
    responses: list[list[int]]
    sampled_logprobs: torch.Tensor  # [B, T] nats, from the sampling engine
    mask: torch.Tensor  # [B, T] bool, True at the tokens of the response
    ended: torch.Tensor  # [B] bool, False where the response was cut off

    def tokens(self, i: int) -> int:
        return len(self.prompts[i]) + len(self.responses[i])


class Rollouts(NamedTuple):
    """Scored samples: everything that the update needs, computed before the policy changes."""

    samples: Samples
    logprobs: torch.Tensor  # [B, T] nats, under the policy that sampled
    ref_logprobs: torch.Tensor  # [B, T] nats, under the frozen reference
    values: torch.Tensor  # [B, T], of the state before each token; 0 without a value model
    entropies: torch.Tensor  # [B, T] nats, of the policy's distribution for each token
    rewards: torch.Tensor  # [B], of the whole response, without the KL


def make_samples(
    ids: list[int],
    prompts: list[list[int]],
    responses: list[list[int]],
    logprobs: Sequence[Sequence[float]],
    ended: Sequence[bool],
    device: torch.device,
) -> Samples:
    """Pad the engine's output to `[B, T]`.

    Args:
        ended: for each response, whether it ended on its own and was not cut off.
    """
    lengths = torch.tensor([len(response) for response in responses], device=device)
    mask = torch.arange(int(lengths.max()), device=device)[None, :] < lengths[:, None]
    flat = torch.tensor([logprob for row in logprobs for logprob in row], device=device)
    return Samples(
        ids, prompts, responses, padded(flat, mask), mask, torch.tensor(ended, device=device)
    )


def padded(flat: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return `[B, T]` with `flat` where `mask` is True, row by row, and 0 elsewhere."""
    out = torch.zeros(mask.shape, dtype=flat.dtype, device=flat.device)
    out[mask] = flat
    return out


def packed_group(
    samples: Samples, group: Sequence[int], device: torch.device
) -> tuple[Packed, list[list[int]], torch.Tensor]:
    """Return a micro-batch of episodes: the packed row, its responses, and their mask."""
    responses = [samples.responses[i] for i in group]
    return (
        pack_pairs([samples.prompts[i] for i in group], responses, device),
        responses,
        samples.mask[group],
    )


def choose_prompts(iteration: int, count: int, num_prompts: int, seed: int) -> list[int]:
    """Return the prompts of an iteration; each pass has its own order, and no prompt twice.

    The prompts left at the end of a pass, too few for a rollout, are not used in that pass.
    """
    epoch, place = divmod(iteration, num_prompts // count)
    generator = torch.Generator().manual_seed(derive_seed(seed, "ppo", "prompts", epoch))
    return torch.randperm(num_prompts, generator=generator)[
        place * count : (place + 1) * count
    ].tolist()


def lay_out(cfg: Ppo, samples: Samples, job: Job, iteration: int, epoch: int) -> Layout:
    """Return this process's part of each minibatch of one pass over the rollout.

    Each part is split into micro-batches by tokens.
    """
    generator = torch.Generator().manual_seed(
        derive_seed(cfg.random_seed, "ppo", "order", iteration, epoch)
    )
    order = torch.randperm(cfg.rollout_batch_size, generator=generator).tolist()
    layout = []
    for start in range(0, len(order), cfg.minibatch_size):
        mine = job.group.share(order[start : start + cfg.minibatch_size])
        lengths = [samples.tokens(i) for i in mine]
        groups = micro_batches(lengths, job.max_tokens)
        layout.append([[mine[i] for i in group] for group in groups])
    return layout


@torch.no_grad()
def score_tokens(
    cfg: RolloutConfig,
    actors: Actors,
    job: Job,
    samples: Samples,
    rewards: torch.Tensor,
    layout: Layout,
) -> Rollouts:
    """Compute log-probs, values and entropies of the samples.

    The passes are the same as those of the first update, which uses the same `layout`. So both
    compute the same numbers.
    """
    logprobs, ref_logprobs, values, entropies = (
        torch.zeros(samples.mask.shape, device=job.device) for _ in range(4)
    )
    for minibatch in layout:
        job.resume.stop_if_asked()
        for group in minibatch:
            packed, responses, mask = packed_group(samples, group, job.device)
            with job.compute(cfg.precision).autocast():
                new, entropy = actors.policy_likelihoods(
                    packed, responses, cfg.temperature, with_entropy=True
                )
                ref = actors.ref_logprobs(packed, responses, cfg.temperature)
                if cfg.has_value_model:
                    values[group] = padded(actors.values(packed, responses), mask)
            logprobs[group], ref_logprobs[group] = padded(new, mask), padded(ref, mask)
            entropies[group] = padded(entropy, mask)
    for part in (logprobs, ref_logprobs, values, entropies):
        job.group.all_reduce(part)
    return Rollouts(samples, logprobs, ref_logprobs, values, entropies, rewards)
