"""Load encoder-decoders of T5's type, compute log-probs of targets, and decode greedily."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForSeq2SeqLM, GenerationConfig, PreTrainedModel

from align.errors import ConfigError
from align.losses.lm import head_logprobs
from align.models.load import stored_dtype
from align.text.pairs import Padded, pad
from align.text.spans import Pair


def load_seq2seq(folder: Path, device: torch.device | str = "cpu") -> PreTrainedModel:
    """Load the encoder-decoder of a seq2seq_model artifact, in float32 and in eval mode.

    Raises:
        ConfigError: the head after the decoder does not work like T5's.
    """
    stored = stored_dtype(AutoConfig.from_pretrained(folder, trust_remote_code=False))
    model = AutoModelForSeq2SeqLM.from_pretrained(
        folder, dtype=torch.float32, trust_remote_code=False
    )
    model = model.to(device).eval()
    model.stored_dtype = stored
    _check_head(model)
    return model


@torch.no_grad()
def _check_head(model: PreTrainedModel) -> None:
    ids = torch.arange(2, 6, device=model.device)[None]
    ours = target_logprobs(model, Padded(ids, None, ids, torch.ones_like(ids, dtype=torch.bool)))
    logits = (
        model(input_ids=ids, decoder_input_ids=_shifted(model, ids), use_cache=False)
        .logits[0]
        .float()
    )
    theirs = logits.log_softmax(-1).gather(1, ids[0, :, None])[:, 0]
    if not torch.allclose(ours, theirs, rtol=1e-3, atol=1e-3):
        raise ConfigError(
            f"{model.config.model_type}: its head is not one that align computes; choose t5"
        )


def target_logprobs(model: PreTrainedModel, batch: Padded) -> torch.Tensor:
    """Return log p of each target token that counts, given the input and the target before it.

    The result is in nats; flat, float32. Logits exist for one chunk of tokens at a time. T5 scales
    the decoder's states by 1 / sqrt(width) before the embedding that is also its head
    [mesh_tensorflow's `shared_embedding_and_softmax_weights`]. T5 1.1 does not.
    """
    read = model.get_encoder()(
        input_ids=batch.input_ids, attention_mask=batch.input_mask
    ).last_hidden_state
    written = model.get_decoder()(
        input_ids=_shifted(model, batch.target_ids),
        encoder_hidden_states=read,
        encoder_attention_mask=batch.input_mask,
        use_cache=False,
    ).last_hidden_state[batch.target_mask]
    if getattr(model.config, "scale_decoder_outputs", False):
        written = written * model.config.d_model**-0.5
    head = model.get_output_embeddings()
    return head_logprobs(
        written, head.weight, head.bias, batch.target_ids[batch.target_mask]
    ).logprobs


def _shifted(model: PreTrainedModel, target_ids: torch.Tensor) -> torch.Tensor:
    """Return the decoder's input: its start token, then the target without its last token."""
    start = torch.full_like(target_ids[:, :1], model.config.decoder_start_token_id)
    return torch.cat([start, target_ids[:, :-1]], 1)


@torch.no_grad()
def greedy_answers(
    model: PreTrainedModel, inputs: Sequence[list[int]], max_new_tokens: int
) -> list[list[int]]:
    """Decode each input greedily, for at most `max_new_tokens` tokens.

    Decoding stops at the end-of-text token, which is not part of the result.
    """
    config = model.config
    batch = pad(
        [Pair(ids, [config.eos_token_id]) for ids in inputs], config.pad_token_id, model.device
    )
    own = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
        decoder_start_token_id=config.decoder_start_token_id,
    )
    out = model.generate(
        input_ids=batch.input_ids, attention_mask=batch.input_mask, generation_config=own
    )
    answers = out[:, 1:].tolist()  # without the start token
    return [
        ids[: ids.index(config.eos_token_id)] if config.eos_token_id in ids else ids
        for ids in answers
    ]
