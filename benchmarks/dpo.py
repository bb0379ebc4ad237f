"""Time DPO beside trl.DPOTrainer on the same rankings.

    python benchmarks/dpo.py [--rounds 2] [--json FILE]

A small LLaMA with random weights learns a batch of rankings a step; all weights are trained. The rankings, lengths,
precision, and TRL's best form are those of reward.py, and so are the cases: `pairs`, and `kwise` with 4 to 9 responses
to a prompt. Both sides compute the reference's log-probs before the first step (TRL: `precompute_ref_log_probs=True`),
and that time counts on both sides, as in a run of one epoch.

    CASE_ratio              seconds of TRL over ours: the reference's log-probs, and one step
    CASE_cpu_ratio          the same in CPU time, which other work on the machine disturbs less
    CASE/memory_ratio       peak memory of our process beyond its imports over that of TRL's
    CASE/SIDE_tokens_per_second
                            tokens of the rankings, each response once, over these seconds
    pairs/loss_gap          largest difference of the two losses of a step, nats per pair; every step learns
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from _race import PRECISION, save_llama
from _rankings import CASES, race
from _report import arguments, report


def main() -> None:
    options = arguments(__doc__, rounds=int)
    print(f"precision: {PRECISION} on both sides")
    bars: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_llama(folder / "model")
        config = {"beta": 0.1, "precompute_ref_log_probs": True}
        for case in CASES:
            bars |= race(folder, "dpo", case, options.rounds or 2, folder / "model", config)
    report(bars, options.json)


if __name__ == "__main__":
    main()
