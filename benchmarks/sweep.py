"""What a sweep's members side by side take: sharing the cores, each with all of them, and one after the other.

    python benchmarks/sweep.py [--json FILE]

Four seeds of six iterations of the quickstart's PPO on a briefly trained model, two at once; what is upstream is made
before. Seconds are of the whole command, with its processes' start.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time

from _report import arguments, report

from align.runtime.cpu import cores

BRIEF = (
    *("steps.pretrain.num_steps=60", "steps.demonstrations.train_rows=500", "steps.compare.num_prompts=200"),
    *("steps.compare.num_validation_prompts=50", "steps.ppo.num_iterations=6", "tracker=none"),
)
WAYS = {
    "shared": ("launcher=joblib", "hydra.launcher.n_jobs=2"),
    "all_cores_each": ("launcher=joblib", "hydra.launcher.n_jobs=2", f"hardware.threads={cores()}"),
    "in_turn": ("launcher=basic",),
}


def main() -> None:
    options = arguments(__doc__)
    with tempfile.TemporaryDirectory() as store:
        _seconds(store, "step=reward")
        bars = {"cores": float(cores())}
        for i, (name, way) in enumerate(WAYS.items()):
            seeds = ",".join(str(4 * i + j) for j in range(1, 5))
            bars[f"seconds/{name}"] = _seconds(store, "step=ppo", f"steps.ppo.seed={seeds}", *way, "-m")
    bars["all_cores_each/shared"] = bars["seconds/all_cores_each"] / bars["seconds/shared"]
    bars["in_turn/shared"] = bars["seconds/in_turn"] / bars["seconds/shared"]
    report(bars, options.json)


def _seconds(store: str, *given: str) -> float:
    begun = time.monotonic()
    command = [sys.executable, "-m", "align", "run", "pipeline=quickstart", f"store={store}", *BRIEF, *given]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.monotonic() - begun


if __name__ == "__main__":
    main()
