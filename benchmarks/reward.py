"""Time an optimizer step of a reward model beside trl.RewardTrainer on the same rankings.

    python benchmarks/reward.py [--rounds 2] [--json FILE]

A small LLaMA with random weights and one head learns a batch of rankings a step; all weights are trained. `pairs`: 32
rankings of two responses. `kwise`: six rankings, of 4 to 9 responses. Our stage reads each response once; TRL gets
every pair of a ranking as a row, so it reads a response up to eight times. Lengths are log-normal, as in public
instruction sets. Both sides compute in fp32, or in bf16 where this machine's bf16 products are fast. TRL is in its best
form here: pairs of like length together, no gradient checkpointing, and the micro-batch size that was fastest in a
warm-up.

    CASE_ratio              seconds of a step of TRL over ours, on the same rankings
    CASE_cpu_ratio          the same in CPU time, which other work on the machine disturbs less
    CASE/memory_ratio       peak memory of our process beyond its imports over that of TRL's
    CASE/SIDE_tokens_per_second
                            tokens of the rankings, each response once, over the seconds of a step
    pairs/loss_gap          largest difference of the two losses of a step, nats per pair; every step learns
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from _race import PRECISION, save_llama
from _rankings import CASES, race
from _report import arguments, report
from transformers import AutoTokenizer

from align.models.heads import scalar_from_lm
from align.runtime.seeds import derive_seed


def main() -> None:
    options = arguments(__doc__, rounds=int)
    print(f"precision: {PRECISION} on both sides")
    bars: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        folder, peer = Path(name), Path(name, "peer")
        save_llama(folder / "model")
        torch.manual_seed(derive_seed(0, "reward"))  # with which our stage draws its head
        scalar_from_lm(folder / "model").save(peer)
        AutoTokenizer.from_pretrained(folder / "model").save_pretrained(peer)
        for case in CASES:
            bars |= race(folder, "reward", case, options.rounds or 2, peer, {})
    report(bars, options.json)


if __name__ == "__main__":
    main()
