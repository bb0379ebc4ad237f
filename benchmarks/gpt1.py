"""GPT-1's ablations in miniature: what the runs of pipeline=gpt1 in a store say, as a table.

    align run pipeline=gpt1 data_root=FOLDER of_all.lm_coef=0.5,0 seed=0,1,2,3,4,5 -m
    align run pipeline=gpt1 data_root=FOLDER of_all.from_scratch=true seed=0,1,2,3,4,5 -m
    python benchmarks/gpt1.py [--store artifacts] [--json FILE]

Test rows; accuracy in percent, of `relatedness` Pearson's correlation times 100. Means over seeds, `+-` is half of the
95 % interval of the mean, by Student's t. `baseline` says always what the training rows say most often. What is
added is a mean of differences, seed by seed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from _report import arguments, report
from claims import versions

from align.evals.intervals import mean_and_half

TASKS = {
    "boolq": "test/accuracy",
    "snli": "test/accuracy",
    "sick": "test/accuracy",
    "relatedness": "test/pearson",
    "commonsense": "test/accuracy",
}
CASES = {
    "pretrained, with LM loss": (False, 0.5),
    "pretrained, without": (False, 0.0),
    "from scratch, with LM loss": (True, 0.5),
}
ADDED = {
    "pretraining adds": ("pretrained, with LM loss", "from scratch, with LM loss"),
    "the LM loss adds": ("pretrained, with LM loss", "pretrained, without"),
}


def alike(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those that differ from the newest in no more than the seed and what the cases differ in."""

    def recipe(made: dict[str, Any]) -> tuple[dict[str, Any], Any]:
        varied = ("seed", "from_scratch", "lm_coef")
        return {name: value for name, value in made["config"].items() if name not in varied}, made["inputs"]

    return [made for made in found if recipe(made) == recipe(found[-1])]


def main() -> None:
    options = arguments(__doc__, store=str)
    store = Path(options.store or "artifacts")
    bars: dict[str, float] = {}
    for task, metric in TASKS.items():
        found = alike(versions(store, "gpt1", task))
        figures: dict[str, dict[int, float]] = {}
        for name, (from_scratch, lm_coef) in CASES.items():
            figures[name] = {
                made["config"]["seed"]: 100 * made["metrics"][metric]
                for made in found
                if (made["config"]["from_scratch"], made["config"]["lm_coef"]) == (from_scratch, lm_coef)
            }
        rows = {name: list(by_seed.values()) for name, by_seed in figures.items()}
        for name, (more, less) in ADDED.items():
            rows[name] = [
                figures[more][seed] - figures[less][seed] for seed in figures[more].keys() & figures[less].keys()
            ]
        for name, values in rows.items():
            if len(values) > 1:
                bars[f"{task}/{name}"], bars[f"{task}/{name} +-"] = mean_and_half(values)
        if found and "test/baseline/accuracy" in found[-1]["metrics"]:
            bars[f"{task}/baseline"] = 100 * found[-1]["metrics"]["test/baseline/accuracy"]
    report(bars, options.json)


if __name__ == "__main__":
    main()
