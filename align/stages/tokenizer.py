"""Train a tokenizer on documents, or import a published one.

Takes: documents; or a source outside the store.
Makes: a tokenizer folder that `AutoTokenizer` loads. It has a padding token that is not the
end-of-text token, a chat template and its role tokens, and sentinels if asked for.
Departs from GPT-2 and T5: padding and three role tokens are not learned but added; with T5's
algorithm, unigram, pieces are of bytes. Departs from GPT-1: its tokenizer gets an end-of-text
token.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from transformers import PreTrainedTokenizerBase

from align.configs import Tokenizer
from align.data.cards import resolve_tokenizer
from align.data.records import count_rows, read_rows
from align.errors import ConfigError
from align.runtime.job import Inputs, Job
from align.runtime.log import Metrics
from align.text.encoding import encode_texts
from align.text.published import open_tokenizer
from align.text.tokenizers import add_sentinels, complete, train_tokenizer
from align.text.tokens import groups_of


def run(cfg: Tokenizer, inputs: Inputs, job: Job) -> Metrics:
    try:
        tokenizer = _published(cfg, job) if cfg.source else _trained(cfg, inputs, job)
    except ValueError as error:
        where = f"source: {cfg.source}: " if cfg.source else ""
        raise ConfigError(where + " ".join(str(error).split())[:300]) from None
    tokenizer.save_pretrained(job.out)
    metrics = {"vocab_size": float(len(tokenizer))}
    if not cfg.source:
        num_bytes, num_tokens = _held_out(tokenizer, inputs, job)
        if num_tokens:
            metrics["bytes_per_token"] = num_bytes / num_tokens
    return metrics


def _trained(cfg: Tokenizer, inputs: Inputs, job: Job) -> PreTrainedTokenizerBase:
    folders = inputs.folders("data")
    total = sum(count_rows(folder, "train") for folder in folders)
    if cfg.num_documents is not None:
        total = min(total, cfg.num_documents)
    documents = (row["text"] for row in read_rows(folders, "train"))
    with job.progress(total, "documents read") as advance:

        def read() -> Iterator[str]:
            for text in itertools.islice(documents, cfg.num_documents):
                yield text
                advance(1)

        return train_tokenizer(
            read(),
            cfg.vocab_size,
            algorithm=cfg.algorithm,
            split_digits=cfg.split_digits,
            num_sentinels=cfg.num_sentinels,
        )


def _held_out(tokenizer: PreTrainedTokenizerBase, inputs: Inputs, job: Job) -> tuple[int, int]:
    """Return the number of bytes and of tokens of the validation documents.

    Some megabytes of documents are in memory at a time.
    """
    folders, num_bytes, num_tokens = inputs.folders("data"), 0, 0
    texts = (row["text"] for row in read_rows(folders, "validation"))
    with job.progress(
        sum(count_rows(folder, "validation") for folder in folders), "held-out documents"
    ) as advance:
        for group in groups_of(texts):
            num_bytes += sum(len(text.encode()) for text in group)
            num_tokens += sum(map(len, encode_texts(tokenizer, group)))
            advance(len(group))
    return num_bytes, num_tokens


def _published(cfg: Tokenizer, job: Job) -> PreTrainedTokenizerBase:
    tokenizer = open_tokenizer(resolve_tokenizer(cfg.source, None))
    if added := complete(tokenizer):
        job.log.info(f"added {', '.join(added)}")
    add_sentinels(tokenizer, cfg.num_sentinels)
    return tokenizer
