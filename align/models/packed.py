"""Prompts and responses through a model in packed rows: log-probs and values of response tokens, scores of responses.

Flat results hold the response tokens of the first sequence, then of the second, and so on: the order in which a mask
[B, T] picks them from a padded tensor, so that `padded[mask] = flat` puts them in place.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from align.losses.lm import token_losses
from align.models.heads import ScalarModel
from align.text.packing import Packed, pack

Ids = Sequence[int]


def pack_pairs(prompts: Sequence[Ids], responses: Sequence[Ids], device: torch.device | str) -> Packed:
    """Each prompt with its response after it, end to end."""
    return pack([[*prompt, *response] for prompt, response in zip(prompts, responses, strict=True)], device)


def before_responses(packed: Packed, responses: Sequence[Ids]) -> torch.Tensor:
    """For each response token, the index of the token before it: the state that it is drawn from, and valued at."""
    lengths = torch.tensor([len(r) for r in responses], device=packed.ends.device)
    total = int(lengths.sum())
    offsets = torch.arange(total, device=lengths.device) - torch.repeat_interleave(lengths.cumsum(0) - lengths, lengths)
    return torch.repeat_interleave(packed.ends - lengths, lengths) + offsets


def response_logprobs(
    model: PreTrainedModel, packed: Packed, responses: Sequence[Ids], temperature: float = 1.0
) -> torch.Tensor:
    """log p of each response token given what precedes it, nats, at the sampling temperature; flat, float32.

    Logits are computed for response positions alone.
    """
    at = before_responses(packed, responses)
    logits = model(
        input_ids=packed.input_ids, position_ids=packed.position_ids, use_cache=False, logits_to_keep=at
    ).logits[0]
    targets = torch.tensor([token for response in responses for token in response], device=logits.device)
    return -token_losses(logits.float() / temperature, targets)


def response_values(model: ScalarModel, packed: Packed, responses: Sequence[Ids]) -> torch.Tensor:
    """The value of the state before each response token; flat."""
    return model(packed.input_ids, packed.position_ids, before_responses(packed, responses))


def response_scores(model: ScalarModel, packed: Packed) -> torch.Tensor:
    """The scalar at the last token of each sequence, [S]."""
    return model(packed.input_ids, packed.position_ids, packed.ends)
