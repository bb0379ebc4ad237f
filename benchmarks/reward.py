"""Time an optimizer step of a reward model beside trl.RewardTrainer on the same rankings.

    python benchmarks/reward.py [--rounds 3] [--json FILE]
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from _race import (
    PRECISION,
    loss_gap,
    our_side,
    pairs_of,
    rankings,
    save_llama,
    save_rows,
    seconds,
    take_turns,
    trl_side,
)
from _report import arguments, report

from transformers import AutoTokenizer

from align.models.heads import scalar_from_lm
from align.runtime.seeds import derive_seed

RATE = 1e-5
BATCHES = {"pairs": [2] * 16, "kwise": [4, 5]}
MICRO_BATCHES = (4, 8, 16)


def main() -> None:
    options = arguments(__doc__, rounds=int)
    turns = 1 + (options.rounds or 3)
    bars: dict[str, float] = {}
    print(f"precision: {PRECISION} on both sides")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_llama(folder / "model")
        # The head that our stage draws.
        torch.manual_seed(derive_seed(0, "reward"))
        scalar_from_lm(folder / "model").save(folder / "scalar")
        AutoTokenizer.from_pretrained(folder / "model").save_pretrained(folder / "scalar")
        for case, sizes in BATCHES.items():
            rows = rankings(sizes)
            pairs = pairs_of(rows)
            data = save_rows(folder / case, "comparisons", rows)
            inputs = {"model": ("model", folder / "model"), "data": ("comparisons", data)}

            ours = our_side(folder, "reward", inputs, {"num_epochs": turns, "batch_size": len(rows), "learning_rate": RATE, "final_learning_rate_fraction": 1.0})
            size = 8
            trl = trl_side(folder, "reward", folder / "scalar", pairs, per_device_train_batch_size=size, gradient_accumulation_steps=-(-len(pairs) // size), max_steps=turns, learning_rate=RATE, train_sampling_strategy="sequential")
            take_turns([ours, trl], turns)
            print(ours.answers, trl.answers)
            bars |= {f"{case}_ratio": seconds(trl) / seconds(ours), f"{case}/loss_gap": loss_gap(ours, trl)}
    report(bars, options.json)


if __name__ == "__main__":
    main()
