"""Items are asked as lm-eval asks them: its own task files and code make the other side of each comparison."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from align.data.cards import load_card
from align.data.formats import FORMATS, infer_format

lm_eval = pytest.importorskip("lm_eval", reason="lm-eval is not installed (extra eval)")

# Task of lm-eval: its file, a row in the columns of the set it loads, the same item in our files, and our card.
CASES = {
    "piqa": (
        "piqa/piqa.yaml",
        {"goal": "open a jar", "sol1": "Twist its lid.", "sol2": "Twist its label.", "label": 0},
        {"query": "Question: open a jar\n", "choices": ["Twist its lid.", "Twist its label."], "gold": 0},
        "piqa",
    ),
    "social_iqa": (
        "siqa/siqa.yaml",
        {
            "context": "Kim lent Lee a coat.",
            "question": "How would Lee feel?",
            "answerA": "warm",
            "answerB": "cold, as before",
            "answerC": "hungry",
            "label": "2",
        },
        {
            "query": "Context: Kim lent Lee a coat.\nQuestion: How would Lee feel?\nChoices:\n"
            "A. warm\nB. cold, as before\nC. hungry\nAnswer:",
            "choices": ["A", "B", "C"],
            "gold": 1,
        },
        None,
    ),
    "arc_easy": (
        "arc/arc_easy.yaml",
        {"question": "What is ice?", "choices": {"text": ["water", "air"], "label": ["A", "B"]}, "answerKey": "A"},
        {"query": "Question: What is ice?", "choices": ["water", "air"], "gold": 0},
        "arc_easy",
    ),
    "boolq": (
        "super_glue/boolq/default.yaml",
        {"passage": "Ice floats. Question: why? It is light.", "question": "does ice float", "label": 1},
        {
            "query": "Passage: Ice floats. Question: why? It is light.\nQuestion: does ice float?",
            "choices": ["no", "yes"],
            "gold": 1,
        },
        "boolq",
    ),
    "copa_effect": (
        "super_glue/copa/default.yaml",
        {"premise": "It rained.", "choice1": "A car got wet.", "choice2": "I ran.", "question": "effect", "label": 0},
        {"query": "It rained, therefore", "choices": ["a car got wet.", "i ran."], "gold": 0},
        "copa",
    ),
    "copa_cause": (
        "super_glue/copa/default.yaml",
        {"premise": "I ran, and fast.", "choice1": "A dog ran.", "choice2": "I left.", "question": "cause", "label": 0},
        {"query": "I ran, and fast, because", "choices": ["a dog ran.", "i left."], "gold": 0},
        "copa",
    ),
    "winogrande": (
        "winogrande/default.yaml",
        {"sentence": "Kim thanked Lee, for _ had helped.", "option1": "Kim", "option2": "Lee", "answer": "2"},
        {
            "context_options": ["Kim thanked Lee, for Kim", "Kim thanked Lee, for Lee"],
            "continuation": "had helped.",
            "gold": 1,
        },
        "winogrande",
    ),
    "openbookqa": (
        "openbookqa/openbookqa.yaml",
        {
            "question_stem": "A stove makes",
            "choices": {"text": ["heat", "a noise"], "label": ["A", "B"]},
            "answerKey": "A",
        },
        {"query": "A stove makes", "choices": ["heat", "a noise"], "gold": 0},
        "openbook_qa",
    ),
    "hellaswag": (
        "hellaswag/hellaswag.yaml",
        {
            "ctx_a": "A man is on a roof.",
            "ctx_b": "he",
            "activity_label": "Roofing",
            "endings": ["sits down.", "swims."],
            "label": "0",
        },
        {"query": "Roofing: A man is on a roof. He", "choices": ["sits down.", "swims."], "gold": 0},
        None,
    ),
    "commonsense_qa": (
        "commonsense_qa/default.yaml",
        {
            "question": "Where is ice?",
            "choices": {"text": ["here", "there", "sea", "pole", "cup"], "label": list("ABCDE")},
            "answerKey": "D",
        },
        {
            "query": "Question: Where is ice?\nChoices:\nA. here\nB. there\nC. sea\nD. pole\nE. cup\nAnswer:",
            "choices": list("ABCDE"),
            "gold": 3,
        },
        None,
    ),
    "lambada_openai": (
        "lambada/lambada_openai.yaml",
        {"text": "He sat down.\n\n\"So,\" he said,  \"I am here"},
        {"text": "He sat down.\n\n\"So,\" he said,  \"I am here"},
        "lambada",
    ),
    "lambada of LLM Foundry": (
        "lambada/lambada_openai.yaml",
        {"text": "He sat down. \"I am here"},
        {"context": "He sat down. \"I am", "continuation": "here"},
        None,
    ),
    "lambada_cloze": (
        "lambada_cloze/lambada_openai_cloze.yaml",
        {"text": "He sat down. \"I am here"},
        {"text": "He sat down. \"I am here"},
        "lambada_fill_in",
    ),
    "arithmetic": (
        "arithmetic/arithmetic_2da.yaml",
        {"context": "\n\nQ: What is 12 plus 7?\n\nA:", "completion": " 19"},
        {"context": "\n\nQ: What is 12 plus 7?\n\nA:", "completion": " 19"},
        "arithmetic",
    ),
}  # fmt: skip


def asked_by_lm_eval(file: str, doc: dict, folder: Path) -> list[tuple[str, str]]:
    """The pairs of context and completion that lm-eval scores for a document, and those that are right first."""
    from lm_eval.tasks import TaskManager

    (folder / "docs.jsonl").write_text(json.dumps(doc) + "\n", encoding="utf-8")
    task_file = folder / "mine.yaml"
    included = Path(lm_eval.__file__).parent / "tasks" / file
    task_file.write_text(
        f"include: {included}\ntask: mine\ndataset_path: json\ndataset_name: null\n"
        f"dataset_kwargs: {{data_files: {{test: {folder}/docs.jsonl}}}}\n"
        "test_split: test\nvalidation_split: null\ntraining_split: null\n",
        encoding="utf-8",
    )
    (task,) = TaskManager(include_defaults=False).load([str(task_file)])["tasks"].values()
    (found,) = task.test_docs()
    requests = task.construct_requests(found, task.fewshot_context(found, num_fewshot=0))
    requests = requests if isinstance(requests, list) else [requests]
    return [request.args for request in requests]


@pytest.mark.parametrize("name", CASES)
def test_an_item_is_asked_as_lm_eval_asks_it(name, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    file, doc, row, card = CASES[name]
    wanted = asked_by_lm_eval(file, doc, tmp_path)
    formats = [infer_format(row, "items")] if card is None else [load_card(card).format]
    if card in ("piqa", "arc_easy", "boolq", "copa", "winogrande", "openbook_qa"):
        assert formats == [infer_format(row, "items")]  # a user's own file is read as the card's is
    (item,) = FORMATS[formats[0]][1](row)
    assert list(zip(item["contexts"], item["completions"], strict=True)) == wanted
