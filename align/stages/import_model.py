"""Bring a causal language model in from the Hub or a local folder.

Takes: nothing from the store; a source outside it.
Makes: a model, with what the other stages count on: a padding token that is not the end-of-text token, and a chat
template that marks what the assistant says.
"""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from align.configs import ImportModel
from align.data.cards import resolve_model
from align.errors import ConfigError
from align.job import Inputs, Job, Metrics
from align.models.build import fuse_activation
from align.models.load import save_model
from align.text.chat import CHAT_TEMPLATE, ROLE_TOKENS
from align.text.tokenizers import PAD


def run(cfg: ImportModel, inputs: Inputs, job: Job) -> Metrics:
    source = resolve_model(cfg.source, None)
    place: dict[str, str | Path] = {"pretrained_model_name_or_path": source.root or source.card.name}
    if source.root is None:
        place["revision"] = str(source.card.hub).partition("@")[2]
    try:
        tokenizer = AutoTokenizer.from_pretrained(**place, trust_remote_code=False)
        model = AutoModelForCausalLM.from_pretrained(**place, trust_remote_code=False, dtype=torch.float32)
    except (OSError, ValueError) as error:
        raise ConfigError(f"source {cfg.source!r}: {' '.join(str(error).split())[:300]}") from None
    added = _complete(tokenizer)
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(len(tokenizer))  # new rows start at the mean of the old ones
    model.config.pad_token_id, model.config.eos_token_id = tokenizer.pad_token_id, tokenizer.eos_token_id
    fuse_activation(model.config)
    if added:
        job.info(f"added {', '.join(added)}")
    save_model(model, tokenizer, job.out)
    return {"parameters": float(model.num_parameters())}


def _complete(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Give a tokenizer what it lacks, and say what that was."""
    if tokenizer.eos_token_id is None:
        raise ConfigError("source: its tokenizer has no end-of-text token, so no response could end")
    added = []
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        tokenizer.add_special_tokens({"pad_token": PAD})
        added.append("a padding token")
    if "{% generation %}" not in (tokenizer.chat_template or ""):
        tokenizer.add_special_tokens({"additional_special_tokens": list(ROLE_TOKENS.values())})
        tokenizer.chat_template = CHAT_TEMPLATE
        added.append("our chat template")
    return added
