"""What rankings are worth: other labelers, what to rank next, rounds of ranking and PPO, and other algorithms.

    python benchmarks/feedback.py --pipeline labeler_groups [--store artifacts] [--seeds 0,1,2] [--plot FILE.svg]
    python benchmarks/feedback.py --pipeline label_choice ...
    python benchmarks/feedback.py --pipeline iterated ...
    python benchmarks/feedback.py --pipeline algorithms ...

Runs the pipeline for each seed and prints the table of its account. With --store what is there already is
not made again, so the same command goes on where it stopped. Means are over seeds, with a 95 % interval (Student's t).
"""

from __future__ import annotations

import itertools
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from _report import arguments, in_table, report, written

from align.evals.intervals import mean_and_half

Run = Mapping[str, Mapping[str, float]]  # the metrics of each step
STARTS, ADDED = 200, (200, 400, 800)  # rankings in label_choice: at first, and what each round adds


class Row(NamedTuple):
    """A line of a table: its label, its figure in each run, and how that is written."""

    label: str
    values: list[float]
    kind: str


def main() -> None:
    options = arguments(__doc__, pipeline=str, seeds=str, store=str, plot=str)
    if options.pipeline not in FIGURES:
        raise SystemExit(f"--pipeline: expected {' or '.join(FIGURES)}, got {options.pipeline}")
    seeds = [int(seed) for seed in (options.seeds or "0,1,2").split(",")]
    with tempfile.TemporaryDirectory() as folder:
        runs = [_run(options.pipeline, seed, options.store or folder) for seed in seeds]
    rows, draw = FIGURES[options.pipeline]
    table, bars = [], {}
    for row in rows(runs):
        cells = ["never" if math.isnan(value) else written(value, row.kind) for value in row.values]
        if "never" in cells:
            table.append([row.label, *cells, ""])
            continue
        mean, half = mean_and_half(row.values)
        width = written(half, "share" if row.kind == "signed" else row.kind)
        table.append([row.label, *cells, f"{written(mean, row.kind)} +- {width}"])
        bars |= {f"{row.label}/mean": mean, f"{row.label}/+-": half}
    report(bars, options.json)
    print(in_table(["", *(f"seed {seed}" for seed in seeds), "mean"], table))
    if options.plot:
        _plot(options.plot, lambda axes: draw(runs, axes))


def _run(pipeline: str, seed: int, store: str) -> Run:
    command = [sys.executable, "-m", "align", "run", f"pipeline={pipeline}", f"seed={seed}", f"store={store}", "--json"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return {outcome["step"].partition("/")[2]: outcome["metrics"] for outcome in json.loads(done.stdout)}


def _plot(file: str, draw: Callable[[Any], None]) -> None:
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "align"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 3.6), layout="constrained")
    draw(axes)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(file, metadata={"Date": None})


# -- labelers from whom nothing was learned --------------------------------------------------------------------------


def group_rows(runs: Sequence[Run]) -> list[Row]:
    folds = [f"reward_{group}" for group in range(1, 6)]
    learned = [[run[fold]["accuracy"] for fold in folds] for run in runs]
    others = [[run[fold]["held_out_labelers/accuracy"] for fold in folds] for run in runs]
    means = [(sum(a) / 5, sum(b) / 5) for a, b in zip(learned, others, strict=True)]
    return [
        Row("labelers of the training data", [a for a, _ in means], "share"),
        Row("labelers who were left out", [b for _, b in means], "share"),
        Row("difference", [b - a for a, b in means], "signed"),
        Row(
            "the labelers' own agreement with each other",
            [run["compare"]["labelers/agreement"] for run in runs],
            "share",
        ),
    ]


def draw_groups(runs: Sequence[Run], axes: Any) -> None:
    for number, run in enumerate(runs):
        for group in range(1, 6):
            found = run[f"reward_{group}"]
            for place, name, colour in ((-0.1, "accuracy", "C0"), (0.1, "held_out_labelers/accuracy", "C1")):
                label = {"accuracy": "labelers of the training data"}.get(name, "labelers who were left out")
                axes.plot(
                    group + place, 100 * found[name], "o", color=colour, label="" if number or group > 1 else label
                )
    axes.set(xlabel="group that is left out", ylabel="pairs predicted, %")


# -- what to rank next -----------------------------------------------------------------------------------------------


def curve(run: Run, arm: str, metric: str) -> list[tuple[int, float]]:
    """(rankings, figure) of an arm after each round."""
    points, count = [(STARTS, run["reward_0"][metric])], STARTS
    for number, added in enumerate(ADDED, 1):
        count += added
        points.append((count, run[f"reward_{arm}_{number}"][metric]))
    return points


def needed(points: Sequence[tuple[int, float]], goal: float) -> float:
    """The rankings at which a curve reaches a figure first, between points on a line; NaN: never."""
    for (before, low), (after, high) in itertools.pairwise(points):
        if low < goal <= high:
            return before + (after - before) * (goal - low) / (high - low)
    return points[0][0] if points[0][1] >= goal else float("nan")


def choice_rows(runs: Sequence[Run]) -> list[Row]:
    rows = [Row(f"{STARTS:,} rankings, by labelers", [run["reward_0"]["accuracy"] for run in runs], "share")]
    for metric, name in (("accuracy", "labelers"), ("gold_accuracy", "gold")):
        for number in range(1, len(ADDED) + 1):
            for arm in ("random", "chosen"):
                values = [curve(run, arm, metric)[number] for run in runs]
                rows.append(Row(f"{values[0][0]:,} {arm}, by {name}", [value for _, value in values], "share"))
    ends = {arm: [curve(run, arm, "accuracy")[-1] for run in runs] for arm in ("random", "chosen")}
    gaps = [chosen - random for (_, random), (_, chosen) in zip(ends["random"], ends["chosen"], strict=True)]
    rows.append(Row(f"{ends['random'][0][0]:,} chosen less as many random, by labelers", gaps, "signed"))
    goals = [goal for _, goal in ends["random"]]
    ratios = [
        needed(curve(run, "chosen", "accuracy"), goal) / (STARTS + sum(ADDED))
        for run, goal in zip(runs, goals, strict=True)
    ]
    return [*rows, Row("chosen rankings for the accuracy of all random ones, as a share of these", ratios, "share")]


def draw_choice(runs: Sequence[Run], axes: Any) -> None:
    for arm, style in (("random", "o--"), ("chosen", "o-")):
        points = [curve(run, arm, "accuracy") for run in runs]
        counts = [count for count, _ in points[0]]
        found = [mean_and_half([own[i][1] for own in points]) for i in range(len(counts))]
        axes.errorbar(counts, [100 * m for m, _ in found], [100 * h for _, h in found], fmt=style, capsize=3, label=arm)
    axes.set(xlabel="rankings", ylabel="held-out pairs predicted, %", xscale="log", xticks=counts, xticklabels=counts)


# -- rounds ----------------------------------------------------------------------------------------------------------


POLICIES = {"SFT": "sft", "round 1": "1", "round 2": "2", "round 3": "3", "one long round": "long"}


def round_rows(runs: Sequence[Run]) -> list[Row]:
    rows = []
    for label, metric, kind in (
        ("gold score", "gold/score", "score"),
        ("greedy gold score", "greedy/gold/score", "score"),
        ("KL to SFT, nats per response", "kl", "number"),
        ("wins over SFT", "win_rate", "share"),
    ):
        for policy, step in POLICIES.items():
            if metric in runs[0][f"evaluate_{step}"] and not (step == "sft" and metric in ("kl", "win_rate")):
                rows.append(Row(f"{label}, {policy}", [run[f"evaluate_{step}"][metric] for run in runs], kind))
    models = {"round 1": "reward_1", "round 2": "reward_2", "round 3": "reward_3", "one long round": "reward"}
    for name, step in models.items():
        rows.append(Row(f"reward model against gold, {name}", [run[step]["gold_accuracy"] for run in runs], "share"))
    return rows


def draw_rounds(runs: Sequence[Run], axes: Any) -> None:
    for number, run in enumerate(runs):
        points = [run[f"evaluate_{step}"] for step in ("sft", "1", "2", "3")]
        kls = [0.0, *(found["kl"] for found in points[1:])]
        axes.plot(
            kls, [found["gold/score"] for found in points], "o-", color="C0", label="" if number else "rounds 1 to 3"
        )
        long = run["evaluate_long"]
        axes.plot(long["kl"], long["gold/score"], "s", color="C1", label="" if number else "one long round")
    axes.set(xlabel="KL to SFT, nats per response", ylabel="gold score")


# -- algorithms ------------------------------------------------------------------------------------------------------

ALGORITHMS = ("ppo", "grpo", "rloo", "raft", "dpo", "kto")


def algorithm_rows(runs: Sequence[Run]) -> list[Row]:
    """The figures of each algorithm, then of the best of n; gold scores of the SFT model first."""
    best = f"best of {runs[0]['best_of_n']['n']:.0f}"
    steps = {name.upper(): f"evaluate_{name}" for name in ALGORITHMS} | {best: "best_of_n"}
    rows = []
    for label, metric, kind in (
        ("gold score", "gold/score", "score"),
        ("greedy gold score", "greedy/gold/score", "score"),
        ("wins over SFT", "win_rate", "share"),
        ("lower end of its interval", "win_rate_low", "share"),
        ("KL to SFT, nats per response", "kl", "number"),
        ("tokens per response", "response_tokens", "number"),
    ):
        shown = ({"SFT": "evaluate_sft"} if label.endswith("gold score") else {}) | steps
        for name, step in shown.items():
            if metric in runs[0][step]:  # the best of n has no greedy answers
                rows.append(Row(f"{label}, {name}", [run[step][metric] for run in runs], kind))
    return rows


def draw_algorithms(runs: Sequence[Run], axes: Any) -> None:
    for number, name in enumerate(ALGORITHMS):
        made = [run[f"evaluate_{name}"] for run in runs]
        points = [each["kl"] for each in made], [each["gold/score"] for each in made]
        axes.plot(*points, "o", color=f"C{number}", label=name.upper())
    best = [run["best_of_n"] for run in runs]
    points = [each["kl"] for each in best], [each["gold/score"] for each in best]
    axes.plot(*points, "^", color="black", label=f"SFT, best of {best[0]['n']:.0f}")
    sft = [run["evaluate_sft"]["gold/score"] for run in runs]
    axes.plot([0.0] * len(sft), sft, "s", color="gray", label="SFT")
    axes.set(xlabel="KL to SFT, nats per response", ylabel="gold score")


FIGURES: dict[str, tuple[Callable[[Sequence[Run]], list[Row]], Callable[[Sequence[Run], Any], None]]] = {
    "labeler_groups": (group_rows, draw_groups),
    "label_choice": (choice_rows, draw_choice),
    "iterated": (round_rows, draw_rounds),
    "algorithms": (algorithm_rows, draw_algorithms),
}


if __name__ == "__main__":
    main()
