"""lm-eval's tasks under our scorer: the same numbers as under its own, on local tasks of each kind of request."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import lm_eval
import pytest
import torch
from conftest import mostly_slow
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from tiny_models import tiny_model, tiny_tokenizer
from transformers import AutoModelForCausalLM, PreTrainedModel

from align.evals.harness import Scorer, run_tasks

CONTEXT = 64


@pytest.fixture(scope="module", params=mostly_slow(["gpt2", "llama"], ["llama"]))
def model(request) -> PreTrainedModel:
    torch.manual_seed(1)
    return tiny_model(request.param, CONTEXT)


@pytest.fixture(scope="module")
def theirs(model, tmp_path_factory) -> HFLM:
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    plain = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    return HFLM(
        pretrained=plain, tokenizer=tiny_tokenizer(), device="cpu", batch_size=1
    )  # its rolling figures hang on the batch


@pytest.fixture
def ours(model) -> Scorer:
    return Scorer(model, tiny_tokenizer(), 4096, 0, lambda total: contextlib.nullcontext(lambda done: None))


TASKS = {
    "choices": """
task: choices
dataset_path: json
dataset_kwargs: {data_files: {train: FOLDER/train.jsonl, test: FOLDER/test.jsonl}}
training_split: train
test_split: test
fewshot_split: train
output_type: multiple_choice
doc_to_text: "{{q}}"
doc_to_target: label
doc_to_choice: choices
metric_list: [{metric: acc}, {metric: acc_norm}]
""",
    "written": """
task: written
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/test.jsonl}}
test_split: test
output_type: generate_until
doc_to_text: "{{q}}"
doc_to_target: " {{choices[label]}}"
generation_kwargs: {until: ["\\n", " dog"], max_gen_toks: 8, do_sample: false}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
""",
    "last": """
task: last
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/test.jsonl}}
test_split: test
output_type: loglikelihood
doc_to_text: "{{q}}"
doc_to_target: " {{choices[0]}}"
metric_list: [{metric: perplexity}, {metric: acc}]
""",
    "text": """
task: text
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/test.jsonl}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{long}}"
metric_list: [{metric: word_perplexity}, {metric: bits_per_byte}]
""",
}

for _shots in (0, 1):
    _task = TASKS["choices"].replace("task: choices", f"task: of_{_shots}")
    TASKS[f"of_{_shots}"] = f"{_task}num_fewshot: {_shots}\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    words = "the cat sat on the mat and the dog ran home".split()
    rows = [
        {
            "q": " ".join(words[: 3 + i % 8]),
            "choices": [words[i % 11], words[(i + 3) % 11] + " mat", "no"],
            "label": i % 3,
            "long": " ".join(words[i % 5 :] * (1 + 3 * (i % 6))),
        }
        for i in range(24)
    ]
    for split, own in (("train", rows[:8]), ("test", rows[8:])):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in own))
    for name, text in TASKS.items():
        (folder / f"{name}.yaml").write_text(text.replace("FOLDER", str(folder)))
    return folder


@pytest.fixture(autouse=True)
def _no_traces(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))


def test_log_probs_are_those_of_lm_eval_s_own_model(ours, theirs):
    long = "the cat sat on the mat and " * 20
    pairs = [("the cat", " sat on the mat"), ("", "the dog"), ("the dog ran ", "home"), (long, " home")]
    pairs += [
        ("the cat sat on the m", "at and the dog ran"),
        ("the c", "at sat on the mat"),
    ]  # tokens across the border
    requests = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]
    expected = theirs.loglikelihood(requests, disable_tqdm=True)
    for (logprob, greedy), (other, other_greedy) in zip(ours.loglikelihood(requests), expected, strict=True):
        assert logprob == pytest.approx(other, abs=1e-4)
        assert greedy == other_greedy


def test_rolling_log_probs_are_those_of_lm_eval_s_own_model(ours, theirs):
    texts = [
        ("the cat sat",),
        ("the cat sat on the mat and the dog ran home " * 9,),
        ("x" * (CONTEXT - 1),),
        ("y" * 64,),
    ]
    requests = [Instance("loglikelihood_rolling", {}, text, i) for i, text in enumerate(texts)]
    expected = theirs.loglikelihood_rolling(requests, disable_tqdm=True)
    assert ours.loglikelihood_rolling(requests) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("num_shots", mostly_slow([None, 2], [2]))
def test_a_task_s_figures_are_those_of_lm_eval_s_own_model(ours, theirs, folder, num_shots):
    """Shots that are asked for count also where a task says how many it has; but not where it says none."""
    names = [str(folder / f"{name}.yaml") for name in (TASKS if num_shots is None else ["choices", "of_0", "of_1"])]
    found = run_tasks(ours, names, num_shots, None, 0)
    expected = lm_eval.simple_evaluate(
        model=theirs,
        tasks=names,
        num_fewshot=num_shots,
        bootstrap_iters=0,
        task_manager=TaskManager(include_defaults=False),
        random_seed=0,
        numpy_random_seed=0,
        torch_random_seed=0,
        fewshot_random_seed=0,
    )
    assert set(found) == set(expected["results"])
    for name, scores in found.items():
        figures = {k.partition(",")[0]: v for k, v in expected["results"][name].items() if k.endswith(",none")}
        means = {measure: sum(values) / len(values) for measure, values in scores.by_item.items()}
        for measure, value in (means | scores.whole).items():
            assert value == pytest.approx(figures[measure], rel=1e-4)
        assert (means | scores.whole).keys() == {k for k in figures if not k.endswith("_stderr")}
    assert len(found["choices"].by_item["acc"]) == 16
    if num_shots is None:
        assert found["last"].by_item.keys() == {"acc"}
        assert found["last"].whole.keys() == {"perplexity"}


def test_text_ends_before_a_stop_string_as_lm_eval_s_own_model_ends_it(ours, theirs):
    def written(scorer, until):
        options = {"until": until, "max_gen_toks": 8, "do_sample": False}
        requests = [Instance("generate_until", {}, (text, options), i) for i, text in enumerate(["the cat", "the dog"])]
        return scorer.generate_until(requests, disable_tqdm=True)

    whole = written(ours, [])
    assert all(len(text) > 4 for text in whole)
    stops = [text[2:4] for text in whole]
    ended = written(ours, stops)
    assert ended == written(theirs, stops)
    assert [len(text) <= 2 for text in ended] == [True, True]


def test_a_limit_is_kept(ours, folder):
    found = run_tasks(ours, [str(folder / "choices.yaml")], None, 5, 0)
    assert len(found["choices"].by_item["acc"]) == 5


@pytest.mark.slow  # it takes 9 s to list lm-eval's own tasks
@pytest.mark.parametrize("model", ["gpt2"], indirect=True)
def test_a_task_that_is_not_there_is_named(ours):
    with pytest.raises(ValueError, match=r"lm-eval 0\.4\.\d+ has no task 'no_such_task'; lm-eval ls tasks lists them"):
        run_tasks(ours, ["no_such_task"], None, None, 0)


def test_data_that_cannot_be_had_is_one_line(ours, folder, tmp_path):
    task = (
        (folder / "choices.yaml").read_text().replace("test.jsonl", "gone.jsonl").replace("task: choices", "task: gone")
    )
    (tmp_path / "gone.yaml").write_text(task)
    with pytest.raises(ValueError, match=r"gone\.yaml: FileNotFoundError: ") as error:
        run_tasks(ours, [str(tmp_path / "gone.yaml")], None, None, 0)
    assert "\n" not in str(error.value)
