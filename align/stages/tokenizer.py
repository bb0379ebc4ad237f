"""Train a byte-level BPE tokenizer with a chat template.

Takes: documents.
Makes: a tokenizer folder that `AutoTokenizer` loads.
Departs from GPT-2: a padding token of its own and three role tokens, all outside the merges.
"""

from __future__ import annotations

import itertools

from align.configs import Tokenizer
from align.data.records import read_rows
from align.job import Inputs, Job, Metrics
from align.text.tokenizers import train_tokenizer


def run(cfg: Tokenizer, inputs: Inputs, job: Job) -> Metrics:
    documents = (row["text"] for row in read_rows(inputs.folders("data"), "train"))
    tokenizer = train_tokenizer(itertools.islice(documents, cfg.num_documents), cfg.vocab_size)
    tokenizer.save_pretrained(job.out)
    held_out = [row["text"] for row in read_rows(inputs.folders("data"), "validation")]
    metrics = {"vocab_size": float(len(tokenizer))}
    if held_out:
        tokens = sum(map(len, tokenizer(held_out, split_special_tokens=True)["input_ids"]))
        metrics["bytes_per_token"] = sum(len(text.encode()) for text in held_out) / tokens
    return metrics
