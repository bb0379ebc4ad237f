"""Does the quickstart teach, and how fast: run it for several seeds, and set its figures side by side.

    python benchmarks/quickstart.py [--json FILE] [--seeds 0,1,2] [--store FOLDER]
    python benchmarks/quickstart.py --shares 0.1,0.25,0.5,1       # by the share of dialogues that answer well

Every seed runs every stage that has one; data and tokenizer are shared. Figures are the artifacts' own metrics. With
--store what is there already is not made again. The table at the end is that of pipelines/quickstart/README.md.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence

from _report import arguments, in_table, report, written

from align.evals.intervals import mean_and_half

Metrics = Mapping[str, float]

# The figures of the account: what a row says, the step, the metric, and how it is written: a score, a share, a signed
# share, wins with their interval, or a number.
ROWS = (
    ("gold score, base, zero-shot", "evaluate_base", "baseline/gold/score", "score"),
    ("base, few-shot", "evaluate_base", "gold/score", "score"),
    ("SFT", "evaluate_sft", "gold/score", "score"),
    ("PPO", "evaluate_ppo", "gold/score", "score"),
    ("the same, greedy: base, zero-shot", "evaluate_base", "greedy/baseline/gold/score", "score"),
    ("base, few-shot", "evaluate_base", "greedy/gold/score", "score"),
    ("SFT", "evaluate_sft", "greedy/gold/score", "score"),
    ("PPO", "evaluate_ppo", "greedy/gold/score", "score"),
    ("PPO wins over SFT [95 %]", "evaluate_ppo", "win_rate", "wins"),
    ("PPO over the best prompted base", "evaluate_ppo", "prompted_base/win_rate", "wins"),
    ("SFT over the best prompted base", "evaluate_sft", "prompted_base/win_rate", "wins"),
    ("the same, greedy: PPO over SFT", "evaluate_ppo", "greedy/win_rate", "wins"),
    ("PPO over the best prompted base", "evaluate_ppo", "greedy/prompted_base/win_rate", "wins"),
    ("SFT over the best prompted base", "evaluate_sft", "greedy/prompted_base/win_rate", "wins"),
    ("KL to SFT, nats per response", "evaluate_ppo", "kl", "number"),
    ("reward model right, against gold", "reward", "gold_accuracy", "share"),
    ("labelers right, against gold", "reward", "labeler_gold_accuracy", "share"),
    ("reward model right, against labelers", "reward", "accuracy", "share"),
    ("longer answer right, against labelers", "reward", "length_accuracy", "share"),
    ("text loss, base", "evaluate_base", "pretrain_loss", "number"),
    ("SFT", "evaluate_sft", "pretrain_loss", "number"),
    ("PPO", "evaluate_ppo", "pretrain_loss", "number"),
    ("facts recalled, base", "evaluate_base", "fact_recall", "share"),
    ("SFT", "evaluate_sft", "fact_recall", "share"),
    ("PPO", "evaluate_ppo", "fact_recall", "share"),
    ("made-up facts, base, few-shot", "evaluate_base", "hallucination", "share"),
    ("SFT", "evaluate_sft", "hallucination", "share"),
    ("PPO", "evaluate_ppo", "hallucination", "share"),
    ("calibration error on the world's facts, base", "evaluate_base", "tasks/world_facts/ece", "share"),
    ("SFT", "evaluate_sft", "tasks/world_facts/ece", "share"),
    ("PPO", "evaluate_ppo", "tasks/world_facts/ece", "share"),
    ('"Be polite." adds polite answers, SFT', "evaluate_sft", "steering/polite/effect", "signed"),
    ("PPO", "evaluate_ppo", "steering/polite/effect", "signed"),
)
# The columns of the curve over shares.
CURVE = (
    ("base, zero-shot", "evaluate_base", "baseline/gold/score", "score"),
    ("base, few-shot", "evaluate_base", "gold/score", "score"),
    ("SFT", "evaluate_sft", "gold/score", "score"),
    ("PPO", "evaluate_ppo", "gold/score", "score"),
    ("PPO over the best prompted base", "evaluate_ppo", "prompted_base/win_rate", "share"),
    ("greedy", "evaluate_ppo", "greedy/prompted_base/win_rate", "share"),
    ("PPO over SFT", "evaluate_ppo", "win_rate", "share"),
    ("SFT over the best prompted base", "evaluate_sft", "prompted_base/win_rate", "share"),
)


def main() -> None:
    options = arguments(__doc__, seeds=str, store=str, shares=str)
    seeds = [int(seed) for seed in (options.seeds or "0,1,2").split(",")]
    shares = options.shares.split(",") if options.shares else [None]
    with tempfile.TemporaryDirectory() as folder:
        store = options.store or folder
        runs = {share: [_run(seed, share, store) for seed in seeds] for share in shares}
    bars: dict[str, float] = {}
    for share, steps in runs.items():
        head = "" if share is None else f"share {share}/"
        for _, step, metric, _ in (("", "", "seconds", ""), *ROWS):
            name = f"{head}{step}/{metric}" if step else f"{head}{metric}"
            values = [_figure(run, step, metric) for run in steps]
            bars |= {f"{name}/seed{seed}": value for seed, value in zip(seeds, values, strict=True)}
            bars[f"{name}/mean"], bars[f"{name}/+-"] = mean_and_half(values)
    report(bars, options.json)
    print(_curve(runs) if options.shares else _table(seeds, runs[None]))


def _run(seed: int, share: str | None, store: str) -> dict[str, Metrics]:
    """The metrics of each step, and the seconds of all."""
    given = [] if share is None else [f"steps.text.options.good_dialogue_share={share}"]
    command = [sys.executable, "-m", "align", "run", "pipeline=quickstart", f"seed={seed}", f"store={store}", "--json"]
    done = subprocess.run([*command, *given], check=True, stdout=subprocess.PIPE, text=True)
    outcomes = json.loads(done.stdout)
    steps = {outcome["step"].partition("/")[2]: outcome["metrics"] for outcome in outcomes}
    return steps | {"": {"seconds": sum(outcome["seconds"] for outcome in outcomes)}}


def _figure(run: Mapping[str, Metrics], step: str, metric: str) -> float:
    return run[step][metric]


def _table(seeds: Sequence[int], runs: Sequence[Mapping[str, Metrics]]) -> str:
    rows = []
    for label, step, metric, kind in ROWS:
        values = [_figure(run, step, metric) for run in runs]
        share = "share" if kind == "wins" else kind
        cells = [written(value, share) for value in values]
        if kind == "wins":
            bounds = [[_figure(run, step, f"{metric}_{end}") for end in ("low", "high")] for run in runs]
            cells = [f"{cell} [{100 * a:.1f}, {100 * b:.1f}]" for cell, (a, b) in zip(cells, bounds, strict=True)]
        rows.append([label, *cells, written(mean_and_half(values)[0], share)])
    return in_table(["", *(f"seed {seed}" for seed in seeds), "mean"], rows)


def _curve(runs: Mapping[str | None, Sequence[Mapping[str, Metrics]]]) -> str:
    rows = []
    for share, steps in runs.items():
        cells = [str(share)]
        for _, step, metric, kind in CURVE:
            mean, half = mean_and_half([_figure(run, step, metric) for run in steps])
            cells.append(f"{written(mean, kind)} +- {written(half, kind)}")
        rows.append(cells)
    return in_table(["share", *(label for label, *_ in CURVE)], rows)


if __name__ == "__main__":
    main()
