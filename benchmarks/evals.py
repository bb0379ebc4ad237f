"""Scoring items by likelihood beside lm-eval's own scorer: do the numbers agree, and how fast are they?

    make peers                                                    # lm-eval 0.4.13 in an environment of its own, once
    python benchmarks/evals.py [--model FOLDER] [--json FILE] [--rounds 3]

Three kinds of items: `choices`, four completions of 1 to 8 words of one context of 20 to 100 words; `single`, one
completion of 1 or 2 words of such a context; `pairs`, two texts of 10 to 30 words behind nothing. 60, 40 and 40 of
them for a random GPT-2 with 4 layers of width 256, whose words are numbers. With `--model`, a folder of Transformers
with its tokenizer, a quarter of them for that model, and the words are the embedded world's documents.

Both sides compute in float32. A pass of lm-eval's has 16 candidates; for a model of your own 4, because 16 of so few
items would be padded more than those of a real task. A pass of ours has at most as many tokens as those would have if
all were as long as the longest. Each side has one thread, and CPU seconds are measured: other work on the machine
changes them little.

`logprob_gap` is the largest difference of a candidate's log-prob in nats, `greedy_disagreements` how many candidates
only one side finds greedy. `rate_ratio` is our candidates per second divided by lm-eval's, the median over rounds;
`_least` and `_most` are those of single rounds.
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

from align.data import smallworld
from align.evals.items import encode_pair, score_items
from align.models.load import load_model
from align.runtime.memory import reuse_freed_memory

HERE = Path(__file__).parent
VOCABULARY, CONTEXT = 4096, 128
COUNTS = {"choices": 60, "single": 40, "pairs": 40}


def numbered_words() -> list[str]:
    rng = random.Random(0)
    return [f"w{rng.randrange(2, VOCABULARY)}" for _ in range(50_000)]


def real_words() -> list[str]:
    documents = smallworld.rows("documents", ["test"], {"test": 500}, {})["test"]
    return " ".join(document["text"] for document in documents).split()


def items_of(words: list[str], share: float) -> dict[str, list[dict[str, Any]]]:
    """Items of each kind; the first completion is what follows the context in `words`."""
    rng = random.Random(0)

    def start() -> int:
        return rng.randrange(len(words) - 200)

    def excerpt(begin: int, least: int, most: int) -> list[str]:
        return words[begin : begin + rng.randint(least, most)]

    found: dict[str, list[dict[str, Any]]] = {}
    for kind, count in COUNTS.items():
        found[kind] = []
        for _ in range(round(count * share)):
            begin = start()
            if kind == "pairs":
                texts = [" ".join(excerpt(place, 10, 30)) for place in (begin, start())]
                found[kind].append({"contexts": ["", ""], "completions": texts})
                continue
            context = excerpt(begin, 20, 100)
            after = begin + len(context)
            places = [after, start(), start(), start()] if kind == "choices" else [after]
            most = 8 if kind == "choices" else 2
            completions = [" " + " ".join(excerpt(place, 1, most)) for place in places]
            found[kind].append({"contexts": [" ".join(context)] * len(places), "completions": completions})
    return found


def main() -> None:
    options = arguments(__doc__, model=Path, rounds=int)
    rounds = options.rounds or 3
    reuse_freed_memory()
    torch.set_num_threads(1)
    batch_size = 4 if options.model else 16
    items = items_of(real_words(), 0.25) if options.model else items_of(numbered_words(), 1.0)
    pairs = {
        kind: [pair for row in rows for pair in zip(row["contexts"], row["completions"], strict=True)]
        for kind, rows in items.items()
    }
    with tempfile.TemporaryDirectory() as folder:
        where = options.model or Path(folder, "policy")
        if not options.model:
            save_workload(Path(folder), gpt2_config(4, 256, 4, VOCABULARY, CONTEXT), 0.0)
        model, tokenizer = load_model(where, torch.device("cpu")).float().eval(), AutoTokenizer.from_pretrained(where)
        encoded = [encode_pair(tokenizer, *pair) for every in pairs.values() for pair in every]
        max_tokens = batch_size * max(len(context) + len(completion) for context, completion in encoded)
        settings = {"model": str(where), "candidates": pairs, "batch_size": batch_size}
        peer = Side(
            [str(PEER_PYTHON), str(HERE / "peers/lm_eval_items.py")], settings, Path(folder), {"OMP_NUM_THREADS": "1"}
        )
        ours: dict[str, list[Any]] = {}
        seconds: dict[str, list[float]] = {kind: [] for kind in items}
        for _ in range(rounds + 1):
            for kind, rows in items.items():
                begun = time.process_time()
                scored = score_items(model, tokenizer, rows, max_tokens)
                seconds[kind].append(time.process_time() - begun)
                ours[kind] = [candidate for row in scored for candidate in row]
            peer.turn()
        peer.close()
    theirs = peer.answers[-1]["scores"]
    both = [(a, *b) for kind in items for a, b in zip(ours[kind], theirs[kind], strict=True)]
    figures = {
        "logprob_gap": max(abs(a.logprob - logprob) for a, logprob, _ in both),
        "greedy_disagreements": float(sum(a.is_greedy != greedy for a, _, greedy in both)),
        "greedy": float(sum(a.is_greedy for a, *_ in both)),
        "candidates": float(len(both)),
    }
    for kind in ("all", *items):
        kinds = list(items) if kind == "all" else [kind]
        mine = [sum(seconds[each][turn] for each in kinds) for turn in range(1, rounds + 1)]
        its = [sum(answer["seconds"][each] for each in kinds) for answer in peer.answers[1:]]
        count = sum(len(pairs[each]) for each in kinds)
        ratios = [b / a for a, b in zip(mine, its, strict=True)]
        figures[f"{kind}/rate_ratio"] = statistics.median(ratios)
        figures[f"{kind}/rate_ratio_least"] = min(ratios)
        figures[f"{kind}/rate_ratio_most"] = max(ratios)
        figures[f"{kind}/ours/candidates_per_second"] = count / statistics.median(mine)
        figures[f"{kind}/lm_eval/candidates_per_second"] = count / statistics.median(its)
    report(figures, options.json)


if __name__ == "__main__":
    if not PEER_PYTHON.exists():
        sys.exit("the peer is missing: make peers")
    main()
