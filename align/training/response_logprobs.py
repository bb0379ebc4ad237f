"""Compute log p of whole responses under a model, in packed passes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from transformers import PreTrainedModel

from align.models.packed import learned_logprobs
from align.runtime.job import Job
from align.text.chat import Encoded
from align.text.packing import micro_batches, pack


def response_logprobs(
    model: PreTrainedModel, sequences: Sequence[Encoded], job: Job, precision: str
) -> torch.Tensor:
    """Return log p of each response, `[N]` in nats: the sum over its marked tokens.

    All sequences go through the model in one pass.
    """
    packed = pack([sequence.ids for sequence in sequences], job.device)
    learned = torch.tensor(
        [flag for sequence in sequences for flag in sequence.by_assistant], device=job.device
    )
    with job.compute(precision).autocast():
        logprobs = learned_logprobs(model, packed, learned)
    owners = torch.repeat_interleave(
        torch.arange(len(sequences)), torch.tensor([sum(s.by_assistant) for s in sequences])
    ).to(job.device)
    return torch.zeros(len(sequences), device=job.device).index_add(0, owners, logprobs)


@torch.no_grad()
def all_response_logprobs(
    model: PreTrainedModel,
    sequences: Sequence[Encoded],
    job: Job,
    precision: str,
    advance: Callable[[int], None] = lambda count: None,
) -> torch.Tensor:
    """Return log p of each response without gradients, `[N]` in nats, in every process.

    The processes share the work. Each pass has at most `job.max_tokens` tokens.

    Args:
        advance: called with the number of this process's sequences that are just done. It may raise
            to stop. It must not wait for other processes: each has its own number of passes.
    """
    flat = torch.zeros(len(sequences), device=job.device)
    mine = job.group.share(range(len(sequences)))
    for group in micro_batches([len(sequences[i].ids) for i in mine], job.max_tokens):
        places = [mine[i] for i in group]
        flat[places] = response_logprobs(model, [sequences[i] for i in places], job, precision)
        advance(len(places))
    job.group.all_reduce(flat)  # each process filled in its own part; the rest is 0
    return flat
