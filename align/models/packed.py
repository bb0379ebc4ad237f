"""Prompts and responses through a model in packed rows: log-probs and values of response tokens, scores of responses.

Flat results hold the response tokens of the first sequence, then of the second, and so on: the order in which a mask
[B, T] picks them from a padded tensor, so that `padded[mask] = flat` puts them in place.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from peft.utils.other import AuxiliaryTrainingWrapper
from transformers import PreTrainedModel

from align.losses.lm import TokenLogprobs, head_logprobs
from align.text.packing import ROUND, Packed, pack

Ids = Sequence[int]
Scalar = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]  # called as a ScalarModel is


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
    """log p of each response token given what precedes it, nats, at the sampling temperature; flat, float32."""
    return response_likelihoods(model, packed, responses, temperature).logprobs


def response_likelihoods(
    model: PreTrainedModel,
    packed: Packed,
    responses: Sequence[Ids],
    temperature: float = 1.0,
    with_entropy: bool = False,
) -> TokenLogprobs:
    """log p of each response token and, where asked for, the entropy of what it was drawn from; nats, flat, float32.

    Logits are computed for response positions alone.
    """
    at = before_responses(packed, responses)
    targets = torch.tensor([token for response in responses for token in response], device=at.device)
    return _likelihoods(model, packed, at, targets, temperature, with_entropy)


def learned_logprobs(model: PreTrainedModel, packed: Packed, learned: torch.Tensor) -> torch.Tensor:
    """log p of each learned token given what precedes it in its sequence, nats; flat, float32.

    Args:
        learned: [N'] bool, True at the tokens whose loss counts; the first token of a sequence never is. N' may be less
            than the packed row, which may end with filler.
    """
    targets = learned.nonzero()[:, 0]
    ids = packed.input_ids[0, targets]
    return _likelihoods(model, packed, targets - 1, ids, 1.0, with_entropy=False).logprobs


def _likelihoods(
    model: PreTrainedModel,
    packed: Packed,
    at: torch.Tensor,
    targets: torch.Tensor,
    temperature: float,
    with_entropy: bool,
) -> TokenLogprobs:
    """log p of `targets` [n] after the tokens at `at` [n] of a packed row; logits are computed there alone."""
    count = len(at)
    at, targets = (F.pad(x, (0, -count % ROUND)) for x in (at, targets))  # the first token again, for nothing
    where = {"input_ids": packed.input_ids, "position_ids": packed.position_ids, "use_cache": False}
    if head_is_plain(model):
        hidden = model.base_model(**where).last_hidden_state[0].index_select(0, at)
        found = head_logprobs(hidden, *_head_weights(model), targets, temperature, with_entropy)
        return TokenLogprobs(*(part[:count] for part in found))
    logprobs = (model(**where, logits_to_keep=at).logits[0].float() / temperature).log_softmax(-1)
    entropies = -(logprobs.exp() * logprobs).sum(-1) if with_entropy else torch.zeros(len(at), device=at.device)
    return TokenLogprobs(logprobs.gather(1, targets[:, None])[:count, 0], entropies[:count])


_PLAIN: weakref.WeakKeyDictionary[PreTrainedModel, bool] = weakref.WeakKeyDictionary()
_AFTER_HEAD = ("final_logit_softcapping", "logits_soft_cap", "logits_scaling", "logit_scale")


@torch.no_grad()
def head_is_plain(model: PreTrainedModel) -> bool:
    """True where logits are the output embeddings times the last hidden state; some models scale or cap them after.

    A config that says so is believed, for a cap is not felt while logits are small; what no config says is measured.
    """
    config = model.config.get_text_config(decoder=True)
    if any(getattr(config, name, None) not in (None, 1.0) for name in _AFTER_HEAD):
        return False
    if model not in _PLAIN:
        head, ids = model.get_output_embeddings(), torch.arange(4, device=model.device)[None]
        training = model.training
        model.eval()  # dropout would make two passes differ, and draw random numbers
        with torch.autocast(model.device.type, enabled=False):
            hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
            expected = model(input_ids=ids, use_cache=False).logits
            known = isinstance(head, torch.nn.Linear | AuxiliaryTrainingWrapper)
            _PLAIN[model] = known and torch.allclose(head(hidden), expected, atol=1e-4)
        model.train(training)
    return _PLAIN[model]


def _head_weights(model: PreTrainedModel) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Weight [V, H] and bias of the head; with the rows in place that an adapter trains, where that is on."""
    head = model.get_output_embeddings()
    if isinstance(head, AuxiliaryTrainingWrapper) and head.disable_adapters:
        head = head.original_module
    return head.weight, getattr(head, "bias", None)


def response_values(model: Scalar, packed: Packed, responses: Sequence[Ids]) -> torch.Tensor:
    """The value of the state before each response token; flat."""
    return model(packed.input_ids, packed.position_ids, before_responses(packed, responses))


def response_scores(model: Scalar, packed: Packed) -> torch.Tensor:
    """The scalar at the last token of each sequence, [S]."""
    return model(packed.input_ids, packed.position_ids, packed.ends)
