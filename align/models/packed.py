"""Log-probs, values and scores of responses, computed in packed rows.

Flat results hold the response tokens of the first sequence, then of the second, and so on. A mask
[B, T] selects tokens of a padded tensor in the same order, so `padded[mask] = flat` is correct.
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
# Has the signature of `ScalarModel.forward`.
Scalar = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def pack_pairs(
    prompts: Sequence[Ids], responses: Sequence[Ids], device: torch.device | str
) -> Packed:
    """Pack each prompt, followed by its response, into one row."""
    return pack(
        [[*prompt, *response] for prompt, response in zip(prompts, responses, strict=True)], device
    )


def before_responses(packed: Packed, responses: Sequence[Ids]) -> torch.Tensor:
    """Return the index in the packed row of the token before each response token; flat.

    The model predicts a response token from the state at this index. The value is taken there, too.
    """
    lengths = torch.tensor([len(r) for r in responses], device=packed.ends.device)
    total = int(lengths.sum())
    offsets = torch.arange(total, device=lengths.device) - torch.repeat_interleave(
        lengths.cumsum(0) - lengths, lengths
    )
    return torch.repeat_interleave(packed.ends - lengths, lengths) + offsets


def response_logprobs(
    model: PreTrainedModel, packed: Packed, responses: Sequence[Ids], temperature: float = 1.0
) -> torch.Tensor:
    """Return log p of each response token given the tokens before it.

    The result is in nats, at the sampling temperature; flat, float32.
    """
    return response_likelihoods(model, packed, responses, temperature).logprobs


def response_likelihoods(
    model: PreTrainedModel,
    packed: Packed,
    responses: Sequence[Ids],
    temperature: float = 1.0,
    with_entropy: bool = False,
) -> TokenLogprobs:
    """Return log p of each response token and, on request, the entropy of its distribution.

    Both are in nats; flat, float32. Logits are computed only for response positions.
    """
    at = before_responses(packed, responses)
    targets = torch.tensor(
        [token for response in responses for token in response], device=at.device
    )
    return _likelihoods(model, packed, at, targets, temperature, with_entropy)


def learned_logprobs(model: PreTrainedModel, packed: Packed, learned: torch.Tensor) -> torch.Tensor:
    """Return log p of each learned token given the tokens before it in its sequence.

    The result is in nats; flat, float32.

    Args:
        learned: [N'] bool, True for tokens whose loss counts, never for the first token of a
            sequence. N' may be less than the length of the packed row, which may end with filler.
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
    """Return log p of `targets` [n] after the tokens at `at` [n] of a packed row.

    Logits are computed only there.
    """
    count = len(at)
    # Pad with index 0 for few different shapes; the results are dropped below.
    at, targets = (F.pad(x, (0, -count % ROUND)) for x in (at, targets))
    where = {"input_ids": packed.input_ids, "position_ids": packed.position_ids, "use_cache": False}
    if head_is_plain(model):
        hidden = model.base_model(**where).last_hidden_state[0].index_select(0, at)
        found = head_logprobs(hidden, *_head_weights(model), targets, temperature, with_entropy)
        return TokenLogprobs(*(part[:count] for part in found))
    logprobs = (model(**where, logits_to_keep=at).logits[0].float() / temperature).log_softmax(-1)
    entropies = (
        -(logprobs.exp() * logprobs).sum(-1)
        if with_entropy
        else torch.zeros(len(at), device=at.device)
    )
    return TokenLogprobs(logprobs.gather(1, targets[:, None])[:count, 0], entropies[:count])


_PLAIN: weakref.WeakKeyDictionary[PreTrainedModel, bool] = weakref.WeakKeyDictionary()
_AFTER_HEAD = ("final_logit_softcapping", "logits_soft_cap", "logits_scaling", "logit_scale")


@torch.no_grad()
def head_is_plain(model: PreTrainedModel) -> bool:
    """Return True if logits are exactly the head applied to the last hidden state.

    Some models scale or cap the logits afterwards. If the config says so, the result is False
    without a test, because a cap has no effect on small logits. Otherwise a short forward pass
    decides.
    """
    config = model.config.get_text_config(decoder=True)
    if any(getattr(config, name, None) not in (None, 1.0) for name in _AFTER_HEAD):
        return False
    if model not in _PLAIN:
        head, ids = model.get_output_embeddings(), torch.arange(4, device=model.device)[None]
        training = model.training
        model.eval()  # dropout would make the two passes differ and consume random numbers
        with torch.autocast(model.device.type, enabled=False):
            hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
            expected = model(input_ids=ids, use_cache=False).logits
            known = isinstance(head, torch.nn.Linear | AuxiliaryTrainingWrapper)
            _PLAIN[model] = known and torch.allclose(head(hidden), expected, atol=1e-4)
        model.train(training)
    return _PLAIN[model]


def _head_weights(model: PreTrainedModel) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return weight [V, H] and bias of the head.

    The weight includes the rows that an active adapter trains.
    """
    head = model.get_output_embeddings()
    if isinstance(head, AuxiliaryTrainingWrapper) and head.disable_adapters:
        head = head.original_module
    return head.weight, getattr(head, "bias", None)


def response_values(model: Scalar, packed: Packed, responses: Sequence[Ids]) -> torch.Tensor:
    """Return the value of the state before each response token; flat."""
    return model(packed.input_ids, packed.position_ids, before_responses(packed, responses))


def response_scores(model: Scalar, packed: Packed) -> torch.Tensor:
    """Return the scalar at the last token of each sequence, [S]."""
    return model(packed.input_ids, packed.position_ids, packed.ends)
