"""Do we and lm-eval give a model the same figures on the same items? A table, task by task.

    python benchmarks/agreement.py MODEL_FOLDER DATA_FOLDER [--items 300] [--json FILE]

MODEL_FOLDER is a model artifact's (`align artifacts show REF` says where it lies), DATA_FOLDER what `data_root` is. The
rows of each card are written back as documents of the set that lm-eval loads, and lm-eval 0.4.13's own task file makes
prompts of them. Its HFLM scores these in float32, one at a time (`lm-eval`); our scorer scores them under that task, as
`align evaluate tasks=[lm_eval:...]` does (`lm_eval:`); and we score our own items of the rows (`items`). So the first
figure depends on our prompts, and the last on none of our code. `_gap` is the largest difference from lm-eval's figure,
of a perplexity's logarithm. `prompts alike` counts the items that we ask word for word as lm-eval does.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import math
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lm_eval
import torch
import yaml
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import AutoModelForCausalLM, AutoTokenizer

from align.data.cards import load_card, resolve
from align.data.files import read_file
from align.data.formats import FORMATS
from align.evals.harness import Scorer, run_tasks
from align.evals.items import score_items
from align.evals.measures import measures
from align.models.load import load_model

THEIRS = {"accuracy": "acc", "accuracy_norm": "acc_norm", "perplexity": "perplexity"}


def question_and_choices(row: dict[str, Any], question: str) -> dict[str, Any]:
    letters = [chr(ord("A") + place) for place in range(len(row["choices"]))]
    choices = {"text": row["choices"], "label": letters}
    return {question: row["query"].removeprefix("Question: "), "choices": choices, "answerKey": letters[row["gold"]]}


def boolq(row: dict[str, Any]) -> dict[str, Any]:
    passage, _, question = row["query"].removeprefix("Passage: ").rpartition("\nQuestion: ")
    return {"passage": passage, "question": question.removesuffix("?"), "label": row["gold"]}


def copa(row: dict[str, Any]) -> dict[str, Any]:
    premise, _, connector = row["query"].rpartition(", ")
    kind = {"because": "cause", "therefore": "effect"}[connector]
    one, two = row["choices"]
    return {"premise": f"{premise}.", "question": kind, "choice1": one, "choice2": two, "label": row["gold"]}


def piqa(row: dict[str, Any]) -> dict[str, Any]:
    goal = row["query"].removeprefix("Question: ").removesuffix("\n")
    return {"goal": goal, "sol1": row["choices"][0], "sol2": row["choices"][1], "label": row["gold"]}


def winogrande(row: dict[str, Any]) -> dict[str, Any]:
    first, second = row["context_options"]
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False))
    before = "".join(character for character, _ in same)
    one, two = first.removeprefix(before), second.removeprefix(before)
    sentence = f"{before}_ {row['continuation']}"
    return {"sentence": sentence, "option1": one, "option2": two, "answer": str(row["gold"] + 1)}


# Card: the task file of lm-eval, and how a row is written in the columns of the set that it loads.
TASKS: dict[str, tuple[str, Callable[[dict[str, Any]], dict[str, Any]]]] = {
    "lambada": ("lambada/lambada_openai.yaml", dict),
    "arithmetic": ("arithmetic/arithmetic_2da.yaml", dict),
    "arc_easy": ("arc/arc_easy.yaml", lambda row: question_and_choices(row, "question")),
    "openbook_qa": ("openbookqa/openbookqa.yaml", lambda row: question_and_choices(row, "question_stem")),
    "copa": ("super_glue/copa/default.yaml", copa),
    "piqa": ("piqa/piqa.yaml", piqa),
    "boolq": ("super_glue/boolq/default.yaml", boolq),
    "winogrande": ("winogrande/default.yaml", winogrande),
}


def rows_of(card: str, root: str, count: int) -> list[dict[str, Any]]:
    """Rows of a card's files, evenly from all of them."""
    files = resolve(f"card:{card}", root, None).files
    rows = []
    for file in files:
        rows += [raw.row for raw in itertools.islice(read_file(file), math.ceil(count / len(files)))]
    return rows[:count]


def as_task(card: str, rows: list[dict[str, Any]], folder: Path) -> str:
    """A YAML file of lm-eval's own task with these rows in place of its data."""
    included, as_document = TASKS[card]
    documents = "".join(json.dumps(as_document(row)) + "\n" for row in rows)
    (folder / f"{card}.jsonl").write_text(documents, encoding="utf-8")
    task = {
        "include": str(Path(lm_eval.__file__).parent / "tasks" / included),
        "task": card,
        "tag": None,
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {"test": str(folder / f"{card}.jsonl")}},
        "training_split": None,
        "validation_split": None,
        "test_split": "test",
    }
    path = folder / f"{card}.yaml"
    path.write_text(yaml.safe_dump(task), encoding="utf-8")
    return str(path)


def asked(task_file: str) -> list[list[tuple[str, str]]]:
    """The contexts and completions that lm-eval scores, by document."""
    (task,) = TaskManager(include_defaults=False).load([task_file])["tasks"].values()
    found = []
    for document in task.test_docs():
        requests = task.construct_requests(document, task.fewshot_context(document, num_fewshot=0))
        found.append([request.args for request in (requests if isinstance(requests, list) else [requests])])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("--items", type=int, default=300)
    parser.add_argument("--json")
    options = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    mine = load_model(Path(options.model))
    plain = AutoModelForCausalLM.from_pretrained(options.model, attn_implementation="eager", dtype=torch.float32)
    peer = HFLM(pretrained=plain, tokenizer=tokenizer, device="cpu", batch_size=1)
    scorer = Scorer(mine, tokenizer, 4096, 0, lambda total: contextlib.nullcontext(lambda done: None))
    figures: dict[str, float] = {}
    print("| task | prompts alike | measure | as items | as `lm_eval:` | lm-eval itself |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as where:
        for card in TASKS:
            rows = rows_of(card, options.data, options.items)
            items = [item for row in rows for item in FORMATS[load_card(card).format][1](row)]
            task = as_task(card, rows, Path(where))
            pairs = [list(zip(item["contexts"], item["completions"], strict=True)) for item in items]
            alike = sum(ours == theirs for ours, theirs in zip(pairs, asked(task), strict=True))
            found = measures(items, score_items(mine, tokenizer, items, 4096))
            own = {measure: sum(values) / len(values) for measure, values in found.items()}
            own |= {"perplexity": math.exp(-own["logprob"])} if "logprob" in own else {}
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
                    print(f"| {card} | {alike} of {len(items)} | {name} | {' | '.join(shown)} |", flush=True)
    print(f"\nlargest gap: {max(figures.values()):.2g}", file=sys.stderr)
    if options.json:
        Path(options.json).write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
