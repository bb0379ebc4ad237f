"""Do we and lm-eval give a model the same figures on the same items? A table, task by task.

    python benchmarks/agreement.py MODEL_FOLDER DATA_FOLDER [--items 300] [--json FILE]

MODEL_FOLDER is a model artifact's (align artifacts show REF says where it lies), DATA_FOLDER what `data_root` is. Each
task's items are given to lm-eval 0.4.13 as a local task of its own kind and scored by its HFLM in float32, one at a
time (`lm-eval`); by our scorer under that task, as `align evaluate tasks=[lm_eval:...]` does (`lm_eval:`); and as our
own items (`items`). `_gap` is the largest difference from lm-eval's figure, of a perplexity's logarithm.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import sys
import tempfile
from pathlib import Path
from typing import Any

import lm_eval
import yaml
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import AutoModelForCausalLM, AutoTokenizer

from align.configs import Data, RunConfig
from align.data.records import read_rows
from align.evals.harness import Scorer, run_tasks
from align.evals.items import score_items
from align.evals.measures import measures
from align.job import Inputs, Job
from align.models.load import load_model
from align.stages import data

CARDS = (
    "lambada",
    "arithmetic",
    "arc_easy",
    "openbook_qa",
    "copa",
    "piqa",
    "boolq",
    "commonsense_qa",
    "truthfulqa_mc1",
)
THEIRS = {"accuracy": "acc", "accuracy_norm": "acc_norm", "perplexity": "perplexity"}


def items_of(card: str, root: str, count: int, folder: Path) -> list[dict[str, Any]]:
    job = Job(card, folder / card, RunConfig(data_root=root))
    job.out.mkdir(parents=True)
    data.run(Data(source=f"card:{card}", record="items", test_rows=count), Inputs(), job)
    return list(read_rows([job.out], "test"))


def as_task(card: str, items: list[dict[str, Any]], folder: Path) -> str:
    """A YAML file of a task of lm-eval with these items."""
    single = len(items[0]["completions"]) == 1
    rows = [
        {
            "context": item["contexts"][0],
            "choices": [text.removeprefix(" ") for text in item["completions"]],
            "label": item["labels"].index(1),
        }
        for item in items
    ]
    (folder / f"{card}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    metrics = ("perplexity", "acc") if single else ("acc", "acc_norm")
    task = {
        "task": card,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / f"{card}.jsonl")}},
        "test_split": "test",
        "output_type": "loglikelihood" if single else "multiple_choice",
        "doc_to_text": "{{context}}",
        "doc_to_target": "{{' ' + choices[0]}}" if single else "label",  # a single one gets no delimiter
        "target_delimiter": " ",
        "metric_list": [{"metric": metric} for metric in metrics],
    }
    path = folder / f"{card}.yaml"
    path.write_text(yaml.safe_dump(task if single else task | {"doc_to_choice": "choices"}), encoding="utf-8")
    return str(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("--items", type=int, default=300)
    parser.add_argument("--json")
    options = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    mine = load_model(Path(options.model))
    plain = AutoModelForCausalLM.from_pretrained(options.model, attn_implementation="eager")
    peer = HFLM(pretrained=plain, tokenizer=tokenizer, device="cpu", batch_size=1)
    scorer = Scorer(mine, tokenizer, 4096, 0, lambda total: contextlib.nullcontext(lambda done: None))
    figures: dict[str, float] = {}
    print("| task | number | measure | as items | as `lm_eval:` | lm-eval itself |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as where:
        folder = Path(where)
        for card in CARDS:
            items = items_of(card, options.data, options.items, folder)
            found = measures(items, score_items(mine, tokenizer, items, 4096))
            own = {measure: sum(values) / len(values) for measure, values in found.items()}
            own |= {"perplexity": math.exp(-own["logprob"])} if "logprob" in own else {}
            task = as_task(card, items, folder)
            under = run_tasks(scorer, [task], None, None, 0)[card]
            harness = {m: sum(values) / len(values) for m, values in under.by_item.items()} | under.whole
            theirs = lm_eval.simple_evaluate(
                model=peer, tasks=[task], bootstrap_iters=0, task_manager=TaskManager(include_defaults=False)
            )["results"][card]
            for name, measure in THEIRS.items():
                if name in own and f"{measure},none" in theirs:
                    three = (own[name], harness[measure], theirs[f"{measure},none"])
                    scaled = [math.log(x) for x in three] if name == "perplexity" else three
                    figures[f"{card}/{name}_gap"] = max(abs(x - scaled[2]) for x in scaled)
                    shown = [f"{x:.6g}" if name == "perplexity" else f"{100 * x:.2f} %" for x in three]
                    print(f"| {card} | {len(items)} | {name} | {' | '.join(shown)} |", flush=True)
    print(f"\nlargest gap: {max(figures.values()):.2g}", file=sys.stderr)
    if options.json:
        Path(options.json).write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
