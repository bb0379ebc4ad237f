"""Tokenize documents once, for every run that trains on them.

Takes: documents; a tokenizer, or a model that has one.
Makes: tokens: <split>.npy, which training memory-maps; tokens.json; the tokenizer.
"""

from __future__ import annotations

from align.configs import Tokens
from align.data.records import SPLITS, count_rows, read_info, read_rows
from align.models.load import load_tokenizer
from align.runtime.job import Inputs, Job
from align.runtime.log import Metrics
from align.text.tokens import Counts, write_info, write_tokens


def run(cfg: Tokens, inputs: Inputs, job: Job) -> Metrics:
    tokenizer = load_tokenizer(
        next(inputs.one(slot).path for slot in cfg.OPTIONAL if slot in inputs)
    )
    data = inputs.one("data").path
    counts: dict[str, Counts] = {}
    metrics: Metrics = {"vocab_size": float(len(tokenizer))}
    for split in SPLITS:
        texts = (row["text"] for row in read_rows([data], split))
        with job.progress(count_rows(data, split), "documents") as advance:
            found = write_tokens(job.out, split, texts, tokenizer, advance)
        if found.documents:
            counts[split] = found
            metrics |= {f"{split}/{name}": float(value) for name, value in found._asdict().items()}
            metrics[f"{split}/bytes_per_token"] = found.bytes / found.tokens
    write_info(job.out, read_info(data)["source"], counts)
    tokenizer.save_pretrained(job.out)
    return metrics
