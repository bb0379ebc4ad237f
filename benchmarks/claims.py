"""InstructGPT's claims in miniature: what the runs of pipeline=miniature in a store say, as tables and a plot.

    align run pipeline=miniature sweep=seeds -m
    align run pipeline=miniature sweep=beta step=evaluate_ppo -m
    python benchmarks/claims.py [--store artifacts] [--json FILE] [--plot FILE.svg]

Figures are means over seeds; `+-` is half of the 95 % interval of the mean, by Student's t. The table of models is of
the test prompts, that of coefficients, which is to choose by, of the validation prompts.
"""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from _report import arguments, in_table, report, written

from align.evals.intervals import mean_and_half

TRAINED = ("reward/model", "heldout/score")  # of the last rollout of training
# The columns of the models: what it says, the metric, how it is written.
COLUMNS = (
    ("gold score", "gold/score", "score"),
    ("greedy", "greedy/gold/score", "score"),
    ("wins over SFT", "win_rate", "share"),
    ("greedy", "greedy/win_rate", "share"),
    ("wins over the best prompted base", "prompted_base/win_rate", "share"),
    ("greedy", "greedy/prompted_base/win_rate", "share"),
    ("KL to SFT, nats per response", "kl", "number"),
    ("text loss, nats per token", "pretrain_loss", "number"),
    ("facts recalled", "fact_recall", "share"),
)
# The rows: a model, the step that evaluates it, the prefix of its metrics there, and its empty columns.
OVER_ITSELF = ("win_rate", "greedy/win_rate", "prompted_base/win_rate", "greedy/prompted_base/win_rate", "kl")
MODELS = (
    ("base, zero-shot", "base", "baseline/", (*OVER_ITSELF, "fact_recall")),  # the same model as the next: asked once
    ("base, few-shot", "base", "", OVER_ITSELF),
    ("SFT", "sft", "", ("win_rate", "greedy/win_rate", "kl")),
    ("PPO", "ppo", "", ()),
    ("PPO-ptx", "ptx", "", ()),
    ("PPO, low-rank adapters", "lora", "", ()),
)
BETA_COLUMNS = (
    ("score of the reward model", "train/reward/model", "score"),
    ("held-out reward model", "train/heldout/score", "score"),
    ("gold score", "gold/score", "score"),
    ("greedy", "greedy/gold/score", "score"),
    ("wins over SFT", "win_rate", "share"),
    ("KL", "kl", "number"),
)
LARGE = (
    ("the large base in its best form, gold score", "prompted_base/gold/score", "score"),
    ("greedy", "greedy/prompted_base/gold/score", "score"),
    ("PPO wins over it", "prompted_base/win_rate", "share"),
    ("greedy", "greedy/prompted_base/win_rate", "share"),
)
Runs = Mapping[int, Mapping[str, float]]  # by seed


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


def by_seed(store: Path, step: str) -> Runs:
    """The newest figures of each seed on the test prompts."""
    made = [each for each in versions(store, "miniature", step) if each["config"].get("split") == "test"]
    newest = {each["config"]["seed"]: each["metrics"] for each in made}
    if not newest:
        raise SystemExit(f"{store}: no version of miniature/{step} on test prompts; this file's top says how to run it")
    return dict(sorted(newest.items()))


def by_beta(store: Path) -> dict[float, list[dict[str, float]]]:
    """What evaluation on validation prompts and training say of each `kl_coef`, a run a seed."""
    found: dict[float, dict[int, dict[str, float]]] = defaultdict(dict)
    for made in versions(store, "miniature", "evaluate_ppo"):
        if made["config"].get("split") != "validation":
            continue
        (trained,) = made["inputs"]["model"]
        policy = manifest(store, "ppo", trained["key"])
        metrics = {f"train/{name}": policy["metrics"][name] for name in TRAINED}
        found[policy["config"]["kl_coef"]][policy["config"]["seed"]] = made["metrics"] | metrics
    return {beta: list(seeds.values()) for beta, seeds in sorted(found.items())}


def main() -> None:
    options = arguments(__doc__, store=str, plot=str)
    store = Path(options.store or "artifacts")
    bars: dict[str, float] = {}
    betas = by_beta(store)
    models = {name: by_seed(store, f"evaluate_{step}") for name, step, _, _ in MODELS}
    large = by_seed(store, "evaluate_large")

    def cells(about: str, columns: Sequence[tuple[str, str, str]], runs: Sequence[Mapping[str, float]]) -> list[str]:
        found = []
        for _, metric, kind in columns:
            mean, half = mean_and_half([run[metric] for run in runs])
            bars[f"{about}/{metric}"], bars[f"{about}/{metric} +-"] = mean, half
            found.append(f"{written(mean, kind)} +- {written(half, kind)}")
        return found

    model_rows = []
    for name, _, prefix, lacks in MODELS:
        columns = [column for column in COLUMNS if column[1] not in lacks]
        runs = [{metric: _figure(run, prefix, metric) for _, metric, _ in columns} for run in models[name].values()]
        known = iter(cells(name, columns, runs))
        model_rows.append([name, *("" if metric in lacks else next(known) for _, metric, _ in COLUMNS)])
    beta_rows = [[f"{beta:g}", *cells(f"beta {beta:g}", BETA_COLUMNS, runs)] for beta, runs in betas.items()]
    large_row = cells("large", LARGE, list(large.values()))
    wins = [("PPO over SFT", models["PPO"], "win_rate"), ("PPO-ptx over SFT", models["PPO-ptx"], "win_rate")]
    wins += [("adapters over SFT", models["PPO, low-rank adapters"], "win_rate")]
    wins += [("PPO over the large base", large, "prompted_base/win_rate")]
    report(bars, options.json)
    print(in_table(["", *(label for label, *_ in COLUMNS)], model_rows), end="\n\n")
    print(in_table([label for label, *_ in LARGE], [large_row]), end="\n\n")
    seeds = sorted({seed for _, runs, _ in wins for seed in runs})
    print(in_table(["", *(f"seed {seed}" for seed in seeds)], [_each(seeds, *row) for row in wins]), end="\n\n")
    print(in_table(["beta", *(label for label, *_ in BETA_COLUMNS)], beta_rows))
    if options.plot:
        plot(betas, Path(options.plot))


def _figure(run: Mapping[str, float], prefix: str, metric: str) -> float:
    """A metric of the model, or of its baseline: "greedy/baseline/gold/score"."""
    greedy, name = ("greedy/", metric.removeprefix("greedy/")) if metric.startswith("greedy/") else ("", metric)
    return run[f"{greedy}{prefix}{name}"]


def _each(seeds: Sequence[int], label: str, runs: Runs, metric: str) -> list[str]:
    """Each seed's wins, with the 95 % interval over its prompts; empty where a seed has no run."""
    cells = [label]
    for seed in seeds:
        if seed in runs:
            mean, low, high = (runs[seed][f"{metric}{end}"] for end in ("", "_low", "_high"))
            cells.append(f"{written(mean, 'share')} [{100 * low:.1f}, {100 * high:.1f}]")
        else:
            cells.append("")
    return cells


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
        ("gold/score", "validation prompts: gold score"),
    )
    for axis, (metric, title) in zip(axes, panels, strict=True):
        means = []
        for beta, runs in betas.items():
            x, y = [run["kl"] for run in runs], [run[metric] for run in runs]
            axis.scatter(x, y, s=18, label=f"beta = {beta:g}")
            means.append((statistics.fmean(x), statistics.fmean(y)))
        axis.plot(*zip(*sorted(means), strict=True), color="grey", linewidth=0.8, zorder=0)
        axis.set(title=title, xlabel="KL to the SFT model, nats per response", xscale="symlog")
        axis.title.set_fontsize(10)
    axes[-1].legend(fontsize=8)
    figure.savefig(file, metadata={"Date": None})


if __name__ == "__main__":
    main()
