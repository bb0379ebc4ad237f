"""Train a tokenizer on documents, or take one whose vocabulary was published.

Takes: documents; or a source outside the store.
Makes: a tokenizer folder that `AutoTokenizer` loads, with a padding token that is not the end-of-text token, a chat
template and its role tokens, and sentinels on demand.
Departs from GPT-2 and T5: padding and three role tokens are outside what is learned; T5's pieces are of bytes. Departs
from GPT-1: it gets an end-of-text token.
"""

from __future__ import annotations

import itertools

from transformers import PreTrainedTokenizerBase

from align.configs import Tokenizer
from align.data.cards import resolve_tokenizer
from align.data.records import read_rows
from align.errors import ConfigError
from align.job import Inputs, Job, Metrics
from align.text.encoding import encode_texts
from align.text.published import open_tokenizer
from align.text.tokenizers import add_sentinels, complete, train_tokenizer


def run(cfg: Tokenizer, inputs: Inputs, job: Job) -> Metrics:
    try:
        tokenizer = _published(cfg, job) if cfg.source else _trained(cfg, inputs)
    except (OSError, ValueError) as error:
        where = f"source {cfg.source!r}: " if cfg.source else ""
        raise ConfigError(where + " ".join(str(error).split())[:300]) from None
    tokenizer.save_pretrained(job.out)
    metrics = {"vocab_size": float(len(tokenizer))}
    held_out = [] if cfg.source else [row["text"] for row in read_rows(inputs.folders("data"), "validation")]
    if held_out:
        tokens = sum(map(len, encode_texts(tokenizer, held_out)))
        metrics["bytes_per_token"] = sum(len(text.encode()) for text in held_out) / tokens
    return metrics


def _trained(cfg: Tokenizer, inputs: Inputs) -> PreTrainedTokenizerBase:
    documents = (row["text"] for row in read_rows(inputs.folders("data"), "train"))
    return train_tokenizer(
        itertools.islice(documents, cfg.num_documents),
        cfg.vocab_size,
        algorithm=cfg.algorithm,
        split_digits=cfg.split_digits,
        num_sentinels=cfg.num_sentinels,
    )


def _published(cfg: Tokenizer, job: Job) -> PreTrainedTokenizerBase:
    tokenizer = open_tokenizer(resolve_tokenizer(cfg.source, None))
    if added := complete(tokenizer):
        job.info(f"added {', '.join(added)}")
    add_sentinels(tokenizer, cfg.num_sentinels)
    return tokenizer
