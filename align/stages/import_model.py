"""Bring a language model in from the Hub or a local folder.

Takes: nothing from the store; a source outside it: a model as `transformers` saves it, decoder-only or an
encoder-decoder, or GPT-1's parameters and vocabulary as OpenAI published them.
Makes: a model, with what the other stages count on: a padding token that is not the end-of-text token, and a chat
template that marks what the assistant says; or, of an encoder-decoder, a seq2seq_model with its own tokenizer, to which
nothing but a missing padding token is added, so that its sentinels keep their place.
"""

from __future__ import annotations

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from align.configs import ImportModel
from align.data.cards import Source, resolve_model
from align.errors import ConfigError
from align.job import Inputs, Job, Metrics
from align.models.build import fuse_activation
from align.models.gpt1_import import gpt1_from_release, is_gpt1_release
from align.models.load import save_model
from align.text.published import open_tokenizer
from align.text.tokenizers import complete


def run(cfg: ImportModel, inputs: Inputs, job: Job) -> Metrics:
    model, tokenizer = _open(cfg, resolve_model(cfg.source, None))
    try:
        added = complete(tokenizer, chat=cfg.kind == "model")
    except ValueError as error:
        raise ConfigError(f"source {cfg.source!r}: {error}") from None
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(len(tokenizer))  # new rows start at the mean of the old ones
    model.config.pad_token_id, model.config.eos_token_id = tokenizer.pad_token_id, tokenizer.eos_token_id
    fuse_activation(model.config)
    if added:
        job.info(f"added {', '.join(added)}")
    save_model(model, tokenizer, job.out)
    return {"parameters": float(model.num_parameters())}


def _open(cfg: ImportModel, source: Source) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model and its tokenizer, as they were published."""
    try:
        if source.root is not None and is_gpt1_release(source.root):
            return gpt1_from_release(source.root), open_tokenizer(source)
        found = "seq2seq_model" if AutoConfig.from_pretrained(**source.pretrained).is_encoder_decoder else "model"
        if found != cfg.kind:
            what = "an encoder-decoder" if found == "seq2seq_model" else "no encoder-decoder"
            raise ConfigError(f"source {cfg.source!r}: it is {what}; say kind={found}")
        auto = AutoModelForSeq2SeqLM if found == "seq2seq_model" else AutoModelForCausalLM
        return auto.from_pretrained(**source.pretrained, dtype=torch.float32), open_tokenizer(source)
    except (OSError, ValueError) as error:
        raise ConfigError(f"source {cfg.source!r}: {' '.join(str(error).split())[:300]}") from None
