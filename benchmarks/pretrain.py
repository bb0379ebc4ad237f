"""Pretraining beside `transformers.Trainer`, beside a plain loop, and beside the machine's bf16 matmul peak.

    python benchmarks/pretrain.py [--json FILE] [--rounds 7]

Every side is a process of its own that starts from the same weights and sees the same rows (8 of 256 tokens a step, no
dropout), and they take turns, a step each. Ours is the stage in bf16 with `hardware.compile=true`, `ours_eager`
without; the trainer is as its defaults have it on a CPU (fp32), in an order of its own, its clock begun with the batch
at hand; the plain loop is forward, backward, clipping and AdamW, in fp32 and in bf16 autocast.
The peak is a bf16 product of two 2048 x 2048 matrices, the best of 20, taken by our process before the race and again
after it. Model FLOPs are 6 for each parameter of a matrix (the tied embedding once, as the head) and a token, and 6 L d
T for causal attention. Memory is the peak resident size of a process less what its imports take.

`loss_gap` is how far our loss is from the plain fp32 loop's, the mean of the last ten of LOSS_STEPS steps on documents
of smallworld, where both are still falling; the plain bf16 loop's is printed beside them. `tokenise` is our writing of
tokens to disk against the bare `encode_batch_fast` of the same text.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _peer import Side
from _ppo_child import bf16_peak
from _report import arguments, medians, report
from _workload import gpt2_config, tokenizer_of
from transformers import AutoModelForCausalLM

from align.data.smallworld import rows
from align.text.tokenizers import train_tokenizer
from align.text.tokens import write_tokens

HERE = Path(__file__).parent
SIZES = {
    "14m": {"layers": 6, "width": 384, "heads": 6, "vocabulary": 8192, "context": 256},
    "124m": {"layers": 12, "width": 768, "heads": 12, "vocabulary": 50_257, "context": 1024},
}
ROWS, LENGTH = 8, 256
LOSS_STEPS = 60
SIDES = {
    "ours": {"side": "ours", "precision": "bf16", "compile": True},
    "ours_eager": {"side": "ours", "precision": "bf16", "compile": False},
    "trainer": {"side": "trainer"},
    "plain_fp32": {"side": "plain", "precision": "fp32"},
    "plain_bf16": {"side": "plain", "precision": "bf16"},
}


def markov_tokens(count: int, vocabulary: int) -> np.ndarray:
    """Each token followed by one of four."""
    rng = np.random.default_rng(0)
    table = rng.integers(2, vocabulary, (vocabulary, 4))
    chain = np.empty(count, np.uint16)
    token = 2
    for i, turn in enumerate(rng.integers(0, 4, count)):
        token = table[token % 64, turn]
        chain[i] = token
    return chain


def documents() -> list[str]:
    return [row["text"] for row in rows("documents", ["train"], {"train": 16_000}, {})["train"]]


def document_tokens(vocabulary: int) -> np.ndarray:
    texts = documents()
    tokenizer = train_tokenizer(texts, vocabulary)
    ids = [[*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id] for text in texts]
    return np.concatenate(ids).astype(np.uint16)


def race(
    size: dict[str, int], rounds: int, names: tuple[str, ...], tokens: np.ndarray, learning_rate: float = 1e-4
) -> dict[str, Side]:
    """The sides on one model, turn by turn, over as many of `tokens` as the rounds take."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        torch.manual_seed(0)
        shape = (size["layers"], size["width"], size["heads"], size["vocabulary"], size["context"])
        AutoModelForCausalLM.from_config(gpt2_config(*shape)).save_pretrained(folder / "model")
        tokenizer_of(size["vocabulary"], "<pad>").save_pretrained(folder / "model")
        np.save(folder / "tokens.npy", tokens[: (rounds + 3) * ROWS * LENGTH])
        common: dict[str, Any] = {
            "model": str(folder / "model"),
            "tokens": str(folder / "tokens.npy"),
            "steps": rounds + 2,
            "batch_size": ROWS,
            "length": LENGTH,
            "learning_rate": learning_rate,
        }
        sides = {}
        for name in names:
            command = [sys.executable, str(HERE / "_pretrain_child.py")]
            sides[name] = Side(command, common | SIDES[name], folder, {})
            stack.callback(sides[name].close)
        for _ in range(rounds + 1):
            for side in sides.values():
                side.turn()
    return sides


def model_flops(size: dict[str, int]) -> float:
    """Of a token, forward and backward."""
    matrices = size["layers"] * 12 * size["width"] ** 2 + size["vocabulary"] * size["width"]
    return 6 * matrices + 6 * size["layers"] * size["width"] * LENGTH


def speed(name: str, rounds: int) -> dict[str, float]:
    size, tokens = SIZES[name], ROWS * LENGTH
    sides = race(size, rounds, tuple(SIDES), markov_tokens((rounds + 3) * tokens, size["vocabulary"]))
    peak = statistics.mean((sides["ours"].ready["bf16_flops"], bf16_peak(torch.device("cpu"))))
    seconds = {side: sides[side].median("seconds") for side in sides}
    loading = sides["ours"].median("loading_seconds")
    bars = {
        f"ratio_{name}": seconds["trainer"] / seconds["ours"],
        f"ratio_{name}_eager": seconds["trainer"] / seconds["ours_eager"],
        f"peak_share_{name}": model_flops(size) * tokens / seconds["ours"] / peak,
        f"peak_share_{name}_eager": model_flops(size) * tokens / seconds["ours_eager"] / peak,
        f"memory_ratio_{name}_eager": sides["ours_eager"].memory() / sides["trainer"].memory(),
        f"memory_ratio_{name}": sides["ours"].memory() / sides["trainer"].memory(),
        f"{name}/bf16_peak_gflops": peak / 1e9,
        f"{name}/loader_stall": loading / seconds["ours"],
    }
    for side in sides:
        bars[f"{name}/{side}_tokens_per_second"] = tokens / seconds[side]
        bars[f"{name}/{side}_mebibytes"] = sides[side].memory() / 2**20
    return bars


def loss_gap() -> dict[str, float]:
    size = SIZES["14m"]
    names = ("ours", "plain_fp32", "plain_bf16")
    sides = race(size, LOSS_STEPS, names, document_tokens(size["vocabulary"]), 3e-4)
    last = {name: statistics.mean(answer["loss"] for answer in side.answers[-10:]) for name, side in sides.items()}
    first = sides["ours"].answers[0]["loss"]
    return {
        "loss_gap": abs(last["ours"] - last["plain_fp32"]),
        "loss/first": first,
        "loss/ours": last["ours"],
        "loss/fp32": last["plain_fp32"],
        "loss/bf16": last["plain_bf16"],
    }


def tokenising() -> dict[str, float]:
    texts = documents()
    tokenizer = train_tokenizer(texts, 8192)
    size = sum(len(text.encode()) for text in texts)
    with tempfile.TemporaryDirectory() as folder:
        ours, bare = medians(
            [
                lambda: write_tokens(Path(folder), "train", texts, tokenizer, lambda n: None),
                lambda: tokenizer.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=False),
            ],
            rounds=5,
        )
    return {"tokenise/megabytes_per_second": size / ours / 1e6, "tokenise/over_bare": bare / ours}


def main() -> None:
    options = arguments(__doc__, rounds=int)
    rounds = options.rounds or 7
    bars = speed("14m", rounds * 2) | speed("124m", rounds) | loss_gap() | tokenising()
    bars["loader_stall"] = max(bars["14m/loader_stall"], bars["124m/loader_stall"])
    report(bars, options.json)


if __name__ == "__main__":
    main()
