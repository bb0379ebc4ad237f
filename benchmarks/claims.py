"""InstructGPT's claims in miniature: what the runs of pipeline=miniature in a store say, as tables and a plot.

    align run pipeline=miniature sweep=seeds -m
    align run pipeline=miniature sweep=beta step=evaluate_ppo -m
    python benchmarks/claims.py [--store artifacts] [--json FILE] [--plot FILE.svg]

Figures are means over seeds; `+-` is half of the 95 % interval of the mean, by Student's t.
"""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

from _report import arguments, report

from align.evals.intervals import mean_and_half

SHOWN = ("gold/score", "greedy/gold/score", "win_rate", "greedy/win_rate", "kl", "pretrain_loss", "fact_recall")
TRAINED = ("reward/model", "heldout/score", "gold/score", "objective/kl", "response_tokens")


def versions(store: Path, pipeline: str, step: str) -> list[dict[str, Any]]:
    """The manifests of every version of a step."""
    found = []
    files = (store / "names" / pipeline / step).glob("v*.json")
    for file in sorted(files, key=lambda path: int(path.stem[1:])):
        record = json.loads(file.read_text())
        found.append(manifest(store, record["stage"], record["key"]))
    return found


def manifest(store: Path, stage: str, key: str) -> dict[str, Any]:
    return json.loads((store / "objects" / stage / key / "manifest.json").read_text())


def by_seed(store: Path, step: str) -> dict[int, dict[str, float]]:
    """The newest figures of each seed."""
    return {made["config"]["seed"]: made["metrics"] for made in versions(store, "miniature", step)}


def by_beta(store: Path) -> dict[float, list[dict[str, float]]]:
    """What evaluation and training say of each `kl_coef`, a run a seed."""
    found: dict[float, dict[int, dict[str, float]]] = defaultdict(dict)
    for made in versions(store, "miniature", "evaluate_ppo"):
        (trained,) = made["inputs"]["model"]
        policy = manifest(store, "ppo", trained["key"])
        metrics = {f"train/{name}": policy["metrics"][name] for name in TRAINED}
        found[policy["config"]["kl_coef"]][policy["config"]["seed"]] = made["metrics"] | metrics
    return {beta: list(seeds.values()) for beta, seeds in sorted(found.items())}


def main() -> None:
    options = arguments(__doc__, store=str, plot=str)
    store = Path(options.store or "artifacts")
    bars: dict[str, float] = {}

    def add(name: str, values: list[float]) -> None:
        bars[name], bars[f"{name} +-"] = mean_and_half(values)

    betas = by_beta(store)
    columns = {
        name: list(by_seed(store, f"evaluate_{name}").values()) for name in ("base", "sft", "ptx", "lora", "large")
    }
    columns["ppo"] = betas[0.1]
    for name, runs in columns.items():
        for metric in SHOWN:
            if runs and all(metric in run for run in runs):
                add(f"{name}/{metric}", [run[metric] for run in runs])
    for beta, runs in betas.items():
        for metric in (*SHOWN, *(f"train/{name}" for name in TRAINED)):
            add(f"beta {beta:g}/{metric}", [run[metric] for run in runs])
    report(bars, options.json)
    if options.plot:
        plot(betas, Path(options.plot))


def plot(betas: dict[float, list[dict[str, float]]], file: Path) -> None:
    """Both rewards and the gold score against KL: a point a run, a line through the means."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "align"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    panels = (
        ("train/reward/model", "last rollout: reward model PPO learns from"),
        ("train/heldout/score", "last rollout: held-out reward model"),
        ("gold/score", "test prompts: gold score"),
    )
    for axis, (metric, title) in zip(axes, panels, strict=True):
        means = []
        for beta, runs in betas.items():
            x, y = [run["kl"] for run in runs], [run[metric] for run in runs]
            axis.scatter(x, y, s=18, label=f"beta = {beta:g}")
            means.append((statistics.fmean(x), statistics.fmean(y)))
        axis.plot(*zip(*sorted(means), strict=True), color="grey", linewidth=0.8, zorder=0)
        axis.set(title=title, xlabel="KL to the SFT model, nats a response", xscale="symlog")
        axis.title.set_fontsize(10)
    axes[-1].legend(fontsize=8)
    figure.savefig(file, metadata={"Date": None})


if __name__ == "__main__":
    main()
