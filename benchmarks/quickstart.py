"""Does the quickstart teach, and how fast: run it for several seeds from nothing, and set its figures side by side.

    python benchmarks/quickstart.py [--json FILE] [--seeds 0,1,2] [--store FOLDER]

Every seed runs every stage that has one; data and tokenizer are shared. Figures are the artifacts' own metrics.
"""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import sys
import tempfile

from _report import arguments, report


def main() -> None:
    options = arguments(__doc__, seeds=str, store=str)
    seeds = [int(seed) for seed in (options.seeds or "0,1,2").split(",")]
    with tempfile.TemporaryDirectory() as folder:
        runs = [_run(seed, options.store or folder) for seed in seeds]
    bars: dict[str, float] = {}
    for name in runs[0]:
        values = [run[name] for run in runs]
        bars |= {f"{name}/seed{seed}": value for seed, value in zip(seeds, values, strict=True)}
        bars[f"{name}/mean"] = statistics.fmean(values)
        if len(values) == 3:
            # The 95 % interval of the mean by Student's t with 2 degrees of freedom: half its width.
            bars[f"{name}/half_interval"] = 4.303 * statistics.stdev(values) / math.sqrt(3)
    report(bars, options.json)


def _run(seed: int, store: str) -> dict[str, float]:
    command = [sys.executable, "-m", "align", "run", "pipeline=quickstart", f"seed={seed}", f"store={store}", "--json"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    steps = {outcome["step"].partition("/")[2]: outcome for outcome in json.loads(done.stdout)}
    metrics = {name: step["metrics"] for name, step in steps.items()}
    base, sft, ppo = (metrics[f"evaluate_{name}"] for name in ("base", "sft", "ppo"))
    return {
        "seconds": sum(step["seconds"] for step in steps.values()),
        "base/gold": base["gold/score"],
        "base/gold_greedy": base["greedy/gold/score"],
        "sft/gold": sft["gold/score"],
        "sft/gold_greedy": sft["greedy/gold/score"],
        "ppo/gold": ppo["gold/score"],
        "ppo/gold_greedy": ppo["greedy/gold/score"],
        "ppo/gain": ppo["gold/score"] - sft["gold/score"],
        "ppo/win_rate": ppo["win_rate"],
        "ppo/win_rate_low": ppo["win_rate_low"],
        "ppo/win_rate_high": ppo["win_rate_high"],
        "ppo/win_rate_greedy": ppo["greedy/win_rate"],
        "ppo/win_rate_greedy_low": ppo["greedy/win_rate_low"],
        "ppo/win_rate_greedy_high": ppo["greedy/win_rate_high"],
        "ppo/kl": ppo["kl"],
        "reward/gold_accuracy": metrics["reward"]["gold_accuracy"],
        "reward/labeler_gold_accuracy": metrics["reward"]["labeler_gold_accuracy"],
        "reward/accuracy": metrics["reward"]["accuracy"],
        "reward/length_accuracy": metrics["reward"]["length_accuracy"],
        "base/text_loss": base["pretrain_loss"],
        "sft/text_loss": sft["pretrain_loss"],
        "ppo/text_loss": ppo["pretrain_loss"],
        "reward/held_out_prompts": metrics["reward"]["held_out_prompts"],
    } | {
        f"{who}/{name}": own[f"{head}{name}"]
        for who, own in (("base", base), ("sft", sft), ("ppo", ppo))
        for head, name in (
            *(("", "hallucination"), ("tasks/world_facts/", "ece"), ("tasks/world_facts/", "ece_chance_high")),
            *(("", "gold/helpfulness"), ("", "gold/manner"), ("", "gold/harmlessness"), ("", "fact_recall")),
            *(
                ("steering/", "polite/effect"),
                ("steering/", "brief/effect"),
                ("steering/", "polite/effect_in_conflict"),
            ),
        )
        if f"{head}{name}" in own
    }


if __name__ == "__main__":
    main()
