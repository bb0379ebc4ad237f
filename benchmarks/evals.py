"""Scoring items by likelihood beside lm-eval's own scorer: do the numbers agree, and how fast are they?

    make peers                                            # lm-eval 0.4.13 in an environment of its own, once
    python benchmarks/evals.py [--json FILE] [--rounds 3]

300 items of four choices behind contexts of 20 to 100 words, 200 single completions, 200 pairs of whole sentences; a
4-layer, 256-wide GPT-2 in float32 on both sides, lm-eval with batches of 16. `logprob_gap` is the largest difference of
a candidate's log-prob in nats, `greedy_disagreements` how many candidates only one of them finds greedy.
"""

from __future__ import annotations

import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from _peer import PEER_PYTHON, Side
from _report import arguments, report
from _workload import gpt2_config, save_workload
from transformers import AutoTokenizer

from align.evals.items import score_items
from align.models.load import load_model
from align.worker import reuse_freed_memory

HERE = Path(__file__).parent
VOCABULARY, CONTEXT = 4096, 128


def items() -> list[dict[str, Any]]:
    rng = random.Random(0)

    def words(least: int, most: int) -> str:
        return " ".join(f"w{rng.randrange(2, VOCABULARY)}" for _ in range(rng.randint(least, most)))

    found = []
    for _ in range(300):
        found.append({"contexts": [words(20, 100)] * 4, "completions": [f" {words(1, 8)}" for _ in range(4)]})
    for _ in range(200):
        found.append({"contexts": [words(20, 100)], "completions": [f" {words(1, 2)}"]})
    for _ in range(200):
        found.append({"contexts": ["", ""], "completions": [words(10, 30), words(10, 30)]})
    return found


def main() -> None:
    options = arguments(__doc__, rounds=int)
    rounds = options.rounds or 3
    reuse_freed_memory()
    rows = items()
    pairs = [pair for row in rows for pair in zip(row["contexts"], row["completions"], strict=True)]
    with tempfile.TemporaryDirectory() as folder:
        save_workload(Path(folder), gpt2_config(4, 256, 4, VOCABULARY, CONTEXT), 0.0)
        where = Path(folder, "policy")
        model, tokenizer = load_model(where, torch.device("cpu")), AutoTokenizer.from_pretrained(where)
        settings = {"model": str(where), "candidates": pairs, "batch_size": 16}
        peer = Side([str(PEER_PYTHON), str(HERE / "peers/lm_eval_items.py")], settings, Path(folder), {})
        seconds = []
        for _ in range(rounds + 1):
            begun = time.perf_counter()
            ours = [candidate for row in score_items(model, tokenizer, rows, 4096) for candidate in row]
            seconds.append(time.perf_counter() - begun)
            peer.turn()
        peer.close()
    theirs = peer.answers[-1]["scores"]
    mine = statistics.median(seconds[1:])
    report(
        {
            "logprob_gap": max(abs(a.logprob - b[0]) for a, b in zip(ours, theirs, strict=True)),
            "greedy_disagreements": float(sum(a.is_greedy != b[1] for a, b in zip(ours, theirs, strict=True))),
            "items_per_second_ratio": peer.median("seconds") / mine,
            "ours/candidates_per_second": len(pairs) / mine,
            "lm_eval/candidates_per_second": len(pairs) / peer.median("seconds"),
        },
        options.json,
    )


if __name__ == "__main__":
    if not PEER_PYTHON.exists():
        sys.exit("the peer is missing: make peers")
    main()
