"""lm-eval's own scorer over items, one pass at a time, so that a benchmark can alternate with it.

    make peers
    .venv-peers/bin/python benchmarks/peers/lm_eval_items.py SETTINGS.json

The settings: `model` (a folder with its tokenizer), `candidates` (of each kind, pairs of context and completion),
`batch_size`. It waits for a line on standard input, scores all candidates, one kind after the other, and writes to the
descriptor in ANSWERS_FD, or to standard output:
{"seconds": {kind: CPU seconds}, "scores": {kind: [[log-prob, is greedy], ...]}}.
"""

import json
import os
import sys
import time
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import AutoModelForCausalLM, AutoTokenizer


def main(path: str) -> None:
    settings = json.loads(Path(path).read_text())
    channel = os.fdopen(int(os.environ.get("ANSWERS_FD", "1")), "w")
    model = AutoModelForCausalLM.from_pretrained(settings["model"], dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(settings["model"])
    peer = HFLM(pretrained=model, tokenizer=tokenizer, device="cpu", batch_size=settings["batch_size"])
    print(json.dumps({"ready": True}), file=channel, flush=True)
    while sys.stdin.readline():
        seconds: dict[str, float] = {}
        found: dict[str, list[tuple[float, bool]]] = {}
        for kind, pairs in settings["candidates"].items():
            requests = [Instance("loglikelihood", {}, tuple(pair), i) for i, pair in enumerate(pairs)]
            started = time.process_time()
            scores = peer.loglikelihood(requests, disable_tqdm=True)
            seconds[kind] = time.process_time() - started
            found[kind] = [(float(logprob), bool(greedy)) for logprob, greedy in scores]
        print(json.dumps({"seconds": seconds, "scores": found}), file=channel, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
