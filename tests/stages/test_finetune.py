"""The finetune stage: each task through the command line, exact resumes, and what is refused."""

from __future__ import annotations

import csv
import hashlib
import itertools
import json
import random
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import align, mostly_slow
from safetensors.torch import load_file
from tiny_models import tiny_model, tiny_tokenizer
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from align.cli.main import main
from align.configs import Finetune, HardwareConfig, LoraConfig, RunConfig
from align.data.records import SPLITS, Row, read_rows, write_rows
from align.errors import ConfigError, HealthStop
from align.models.load import save_model
from align.pipeline.worker import run_stage
from align.runtime.job import Inputs, Job
from align.runtime.log import Metrics
from align.runtime.tracking import NoTracker
from align.store.artifacts import Artifact, ArtifactStore
from align.text.task_formats import find_goal

DATA = Path(__file__).parents[3] / "shared/data"
ANIMALS, PLACES = ("cat", "dog"), ("mat", "home", "the mat", "the home", "the dog", "the cat")
KNOBS: dict[str, Any] = {"batch_size": 8, "learning_rate": 3e-3, "seed": 3}


def pairs(count: int, seed: int = 0) -> list[Row]:
    """Whether the second animal is the first."""
    rng = random.Random(seed)
    rows = []
    for _ in range(count):
        one, other, place = rng.choice(ANIMALS), rng.choice(ANIMALS), rng.choice(PLACES)
        label = "same" if one == other else "another"
        rows.append({"texts": [f"the {one} sat on {place}", f"the {other} ran"], "label": label})
    return rows


def of_task(task: str, count: int, seed: int = 0) -> list[Row]:
    rows = pairs(count, seed)
    if task == "classification":
        return [{"texts": row["texts"][:1], "label": row["texts"][0].split()[1]} for row in rows]
    if task == "multiple_choice":
        return [{"texts": row["texts"][:1], "choices": ["cat", "dog"], "label": i % 2} for i, row in enumerate(rows)]
    if task == "similarity":
        return [{"texts": row["texts"], "score": 4.0 if row["label"] == "same" else 1.5} for row in rows]
    return rows


def artifact(stage: str, kind: str, folder: Path) -> tuple[Artifact, ...]:
    return (Artifact(stage, "a" * 64, kind, folder),)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With dropout, which has a random stream of its own."""
    folder = tmp_path_factory.mktemp("model") / ("a" * 64)
    torch.manual_seed(0)
    lm = tiny_model("gpt2", context=32, spread=0.1)
    for name in ("embd_pdrop", "attn_pdrop", "resid_pdrop"):
        setattr(lm.config, name, 0.1)
    save_model(lm, tiny_tokenizer(), folder)
    return folder


def inputs_of(model: Path, folder: Path, **splits: list[Row]) -> Inputs:
    folder.mkdir(parents=True, exist_ok=True)
    for split, rows in splits.items():
        write_rows(folder, split, rows)
    return Inputs(model=artifact("sft", "model", model), data=artifact("data", "labelled", folder))


def run(
    inputs: Inputs, work: Path, tracker: NoTracker | None = None, hardware: dict[str, Any] | None = None, **knobs: Any
) -> Metrics:
    (work / "out").mkdir(parents=True, exist_ok=True)
    settings = RunConfig(hardware=HardwareConfig(**{"device": "cpu", "checkpoint_seconds": 1e9, **(hardware or {})}))
    return run_stage(Finetune(**{**KNOBS, **knobs}), inputs, Job("test", work, settings, tracker))


def logged(work: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (work / "out/metrics.jsonl").read_text().splitlines()]


def files(work: Path) -> dict[str, str]:
    out = work / "out"
    return {
        str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(out.rglob("*"))
        if path.is_file()
    }


# -- it learns -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "task",
    mostly_slow(["classification", "entailment", "similarity", "multiple_choice"], ["multiple_choice"]),
)
def test_each_task_is_learned_and_told_beside_its_baseline(task: str, model: Path, tmp_path: Path) -> None:
    rows = of_task(task, 96)
    if task == "multiple_choice":  # right is the animal that is named
        rows = [{**row, "label": row["choices"].index(row["texts"][0].split()[1])} for row in rows]
    inputs = inputs_of(model, tmp_path / "data", train=rows, validation=rows[:20], test=rows[:40])
    metrics = run(inputs, tmp_path / "work", task=task, num_epochs=10, learning_rate=1e-2)
    predictions = [json.loads(line) for line in (tmp_path / "work/out/predictions.jsonl").read_text().splitlines()]
    assert len(predictions) == metrics["rows/test"] == 40
    assert [p["texts"] for p in predictions] == [row["texts"] for row in rows[:40]]
    if task == "similarity":
        assert metrics["test/mse"] < 0.3 * metrics["test/baseline/mse"]
        assert metrics["test/pearson"] > 0.85
        errors = [(p["predicted"] - p["score"]) ** 2 for p in predictions]
        assert sum(errors) / 40 == pytest.approx(metrics["test/mse"])
    else:
        assert metrics["test/accuracy"] > 0.9 > metrics["test/baseline/accuracy"]
        assert sum(p["predicted"] == p["label"] for p in predictions) / 40 == metrics["test/accuracy"]
        assert all(0.5 <= p["probability"] <= 1 for p in predictions)
    assert {name.partition("/")[0] for name in metrics if name.endswith("_low")} == {"validation", "test"}
    log = logged(tmp_path / "work")
    for row in log:
        assert row["loss"] == pytest.approx(row["task_loss"] + 0.5 * row["lm_loss"], rel=1e-5)
    assert log[-1]["lm_loss"] < log[0]["lm_loss"]


@pytest.mark.parametrize(
    "knobs", [{}, {"lora": LoraConfig(rank=4)}, {"from_scratch": True}], ids=["full", "lora", "scratch"]
)
def test_the_artifact_predicts_as_was_told(knobs: dict[str, Any], model: Path, tmp_path: Path) -> None:
    """By plain Transformers, one row at a time, its text put together here."""
    rows = pairs(40)
    inputs = inputs_of(model, tmp_path / "data", train=rows, test=rows[:10])
    run(inputs, tmp_path / "work", task="entailment", **knobs)
    out = tmp_path / "work/out"
    plain = AutoModelForSequenceClassification.from_pretrained(out, attn_implementation="eager").eval()
    tokenizer = AutoTokenizer.from_pretrained(out)
    told = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    for row, prediction in zip(rows[:10], told, strict=True):
        text = f"<|start|> {row['texts'][0]}<|delimiter|> {row['texts'][1]}<|extract|>"
        shares = plain(tokenizer.encode(text, return_tensors="pt")).logits[0].detach().softmax(0)
        assert plain.config.id2label[int(shares.argmax())] == prediction["predicted"]
        assert float(shares.max()) == pytest.approx(prediction["probability"], abs=1e-5)
    assert (out / "adapter/adapter_model.safetensors").exists() == ("lora" in knobs)


def test_from_scratch_nothing_of_the_model_is_left(model: Path, tmp_path: Path) -> None:
    inputs = inputs_of(model, tmp_path / "data", train=pairs(16))
    for name, knobs in (("tuned", {}), ("scratch", {"from_scratch": True})):
        run(inputs, tmp_path / name, task="entailment", learning_rate=1e-6, num_epochs=1, **knobs)
    before = load_file(model / "model.safetensors")["transformer.h.0.mlp.c_fc.weight"]
    tuned, scratch = (
        load_file(tmp_path / name / "out/model.safetensors")["transformer.h.0.mlp.c_fc.weight"]
        for name in ("tuned", "scratch")
    )
    torch.testing.assert_close(tuned, before, atol=1e-4, rtol=0)
    assert abs(float(torch.corrcoef(torch.stack([before.flatten(), scratch.flatten()]))[0, 1])) < 0.1
    assert not torch.isclose(scratch, before, atol=1e-4).all()


def test_with_adapters_the_rest_of_the_model_stays(model: Path, tmp_path: Path) -> None:
    inputs = inputs_of(model, tmp_path / "data", train=pairs(16))
    knobs = {"task": "entailment", "learning_rate": 0.05}
    found = run(inputs, tmp_path / "work", **knobs, lora=LoraConfig(rank=2))
    assert found["parameters"] == run(inputs, tmp_path / "whole", **knobs)["parameters"]
    before, after = load_file(model / "model.safetensors"), load_file(tmp_path / "work/out/model.safetensors")
    size = len(before["transformer.wte.weight"])
    assert torch.equal(after["transformer.wte.weight"][:size], before["transformer.wte.weight"])
    assert torch.equal(after["transformer.ln_f.weight"], before["transformer.ln_f.weight"])
    moved = "transformer.h.0.attn.c_attn.weight"
    assert not torch.equal(after[moved], before[moved])


def test_so_many_training_rows_are_the_first_and_no_language_loss_is_none(model: Path, tmp_path: Path) -> None:
    few, many = (inputs_of(model, tmp_path / f"data{n}", train=pairs(48)[:n]) for n in (24, 48))
    run(few, tmp_path / "few", task="entailment", lm_coef=0.0)
    metrics = run(many, tmp_path / "many", task="entailment", lm_coef=0.0, num_train_rows=24)
    assert metrics["rows/train"] == 24
    assert files(tmp_path / "few") == files(tmp_path / "many")
    assert all("lm_loss" not in row and row["loss"] == row["task_loss"] for row in logged(tmp_path / "few"))


def test_few_steps_and_cut_rows_are_said_first(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    long = {"texts": ["the cat sat on the mat " * 10, "the cat ran"], "label": "same"}
    inputs = inputs_of(model, tmp_path / "data", train=[*pairs(7), long])
    run(inputs, tmp_path, task="entailment", num_epochs=1)
    said = capsys.readouterr().err
    assert "only 1 optimizer step: fewer than 50" in said
    assert "1 of 8 rows cut: longer than the context of 32 tokens, they lose the end of their first text" in said


def test_no_pass_has_more_tokens_than_asked_and_layers_compute_twice_where_asked(model, tmp_path, passes) -> None:
    inputs = inputs_of(model, tmp_path / "data", train=pairs(8), validation=pairs(16, seed=1))
    hardware = {"micro_batch_tokens": 64, "activation_checkpointing": True}
    run(inputs, tmp_path, hardware=hardware, task="entailment", num_epochs=1)
    assert max(passes.tokens) <= 64
    assert len(passes.twice) == 2


def test_splitting_a_batch_changes_nothing_but_rounding(model: Path, tmp_path: Path) -> None:
    """Without dropout, whose draws differ; of sums in another order Adam makes a little more than rounding."""
    plain = tmp_path / ("a" * 64)
    save_model(tiny_model("gpt2", context=32, spread=0.1), tiny_tokenizer(), plain)
    inputs = inputs_of(plain, tmp_path / "data", train=of_task("similarity", 24))
    for tokens in (30, 4096):
        knobs = {"task": "similarity", "classifier_dropout": 0.0, "num_epochs": 1}
        run(inputs, tmp_path / str(tokens), hardware={"micro_batch_tokens": tokens}, **knobs)
    small, large = logged(tmp_path / "30"), logged(tmp_path / "4096")
    assert small[0] == pytest.approx(large[0], rel=1e-4)
    assert [row["loss"] for row in small] == pytest.approx([row["loss"] for row in large], rel=1e-3)


# -- killed --------------------------------------------------------------------------------------------------------


class Killed(Exception):
    """What a power cut would be."""


class Fuse(NoTracker):
    """Ends the process, as it were, when step `at` is told of: after it was made, before it is saved."""

    def __init__(self, at: int):
        self._at = at

    def log(self, metrics: dict[str, float], step: int) -> None:
        if step == self._at:
            raise Killed


@pytest.mark.parametrize(
    ("knobs", "steps"),
    [
        pytest.param({}, (1, 4, 5, 12), id="full, some"),
        pytest.param({}, range(1, 13), id="full", marks=pytest.mark.slow),
        pytest.param({"lora": LoraConfig(rank=2, dropout=0.1)}, range(1, 13), id="lora", marks=pytest.mark.slow),
    ],
)
def test_killed_at_any_of_12_steps_it_goes_on_to_the_same_bytes(
    knobs: dict[str, Any], steps: Sequence[int], model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    knobs = {"task": "similarity", **knobs}
    rows = of_task("similarity", 30)  # four steps an epoch, the last of them short
    inputs = inputs_of(model, tmp_path / "data", train=rows, test=rows[:6])
    metrics = run(inputs, tmp_path / "whole", **knobs)
    expected = files(tmp_path / "whole")
    assert [row["step"] for row in logged(tmp_path / "whole")] == list(range(1, 13))
    every_step = {"checkpoint_seconds": 0.0}
    for at in steps:
        work = tmp_path / f"killed{at}"
        with pytest.raises(Killed):
            run(inputs, work, Fuse(at), every_step, **knobs)
        assert "model.safetensors" not in files(work)
        torch.manual_seed(at)  # of another process
        assert run(inputs, work, **knobs) == metrics
        assert files(work) == expected, at
        assert (f"going on from {at - 1}\n" in capsys.readouterr().err) == (at > 1)
        shutil.rmtree(work)


# -- what is refused -----------------------------------------------------------------------------------------------


def test_a_rate_that_is_too_high_stops_the_run(model: Path, tmp_path: Path) -> None:
    inputs = inputs_of(model, tmp_path / "data", train=pairs(24))
    with pytest.raises(HealthStop, match="lower learning_rate"):
        run(inputs, tmp_path / "work", task="entailment", learning_rate=1e30, max_grad_norm=1e30)


def test_rows_are_checked_before_the_model_is_read(tmp_path: Path) -> None:
    inputs = inputs_of(tmp_path / "no_model", tmp_path / "data", train=pairs(8))
    with pytest.raises(ConfigError, match="task: classification takes one text"):
        run(inputs, tmp_path / "work", task="classification")


def test_a_batch_of_more_rows_than_there_are_is_refused(model: Path, tmp_path: Path) -> None:
    inputs = inputs_of(model, tmp_path / "data", train=pairs(8))
    with pytest.raises(ConfigError, match="batch_size: expected at most the 8 training rows, got 9"):
        run(inputs, tmp_path / "work", task="entailment", batch_size=9)


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"task": "cloze"}, "task: expected classification, entailment, similarity or multiple_choice, got 'cloze'"),
        ({"num_train_rows": 0}, "num_train_rows: expected a number above 0, or null, got 0"),
        ({"classifier_dropout": 1.0}, "classifier_dropout: expected a number below 1, got 1.0"),
        (
            {"warmup_steps": 2.5},
            "warmup_steps: expected a whole number of steps, or a fraction of them below 1, got 2.5",
        ),
        ({"lm_coef": -1.0}, "lm_coef: expected a number from 0 up"),
        ({"from_scratch": True, "lora": LoraConfig(rank=2)}, "from_scratch: expected false with lora.rank"),
    ],
    ids=str,
)
def test_a_knob_that_is_wrong_is_refused(knobs: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Finetune(**knobs)
    assert str(caught.value).startswith(message)


# -- through the command line --------------------------------------------------------------------------------------


def written(folder: Path, rows: list[Row], form: Callable[[Row], dict[str, Any]]) -> str:
    """A user's folder with a file a split."""
    folder.mkdir()
    for split, part in (("train", rows[:32]), ("validation", rows[32:44]), ("test", rows[44:])):
        with (folder / f"{split}.csv").open("w", newline="") as file:
            table = [form(row) for row in part]
            writer = csv.DictWriter(file, list(table[0]))
            writer.writeheader()
            writer.writerows(table)
    return f"path:{folder}"


def several(count: int) -> list[Row]:
    """Pairs that are all different, so that no split holds another's."""
    every = itertools.product(ANIMALS, PLACES, ANIMALS, PLACES)
    rows = [
        {"texts": [f"the {a} sat on {p}", f"the {b} ran on {q}"], "label": "same" if a == b else "another"}
        for a, p, b, q in every
    ]
    random.Random(0).shuffle(rows)
    return rows[:count]


def made_of_a_table(model: Path, folder: Path, *arguments: str) -> tuple[Metrics, list[dict[str, float]], str]:
    """By `align finetune` of a user's CSV files: its metrics, its log, and the kind of the artifact."""
    source = written(
        folder / "mine",
        several(60),
        lambda row: {"sentence1": row["texts"][0], "sentence2": row["texts"][1], "label": row["label"]},
    )
    knobs = ("task=similarity", "batch_size=8", "learning_rate=0.003", "classifier_dropout=0", *arguments)
    given = (f"data={source}", f"model=path:{model}", *knobs, f"store={folder}/store", "tracker=none", "--json")
    path = Path(json.loads(align("finetune", *given).stdout)[-1]["path"])
    manifest = json.loads((path / "manifest.json").read_text())
    log = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return manifest["metrics"], log, manifest["kind"]


def test_a_user_s_table_becomes_a_classifier(model: Path, tmp_path: Path) -> None:
    metrics, log, kind = made_of_a_table(model, tmp_path)
    assert kind == "classifier"
    assert (metrics["rows/train"], metrics["rows/validation"], metrics["rows/test"]) == (32, 12, 16)
    assert len(log) == 12
    assert {"loss", "task_loss", "lm_loss", "grad_norm", "learning_rate"} < log[0].keys()


@pytest.mark.slow
def test_two_processes_do_what_one_does(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    save_model(tiny_model("gpt2", context=32, spread=0.1), tiny_tokenizer(), plain)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    alone, log, _ = made_of_a_table(plain, tmp_path / "one")
    together, log_of_two, _ = made_of_a_table(plain, tmp_path / "two", "hardware.num_processes=2")
    assert log_of_two[0] == pytest.approx(log[0], rel=1e-4)
    # Adam makes a step of full size out of a gradient that is nothing but rounding.
    assert log_of_two[-1]["loss"] == pytest.approx(log[-1]["loss"], rel=5e-3)
    assert together == pytest.approx(alone, rel=5e-3, abs=5e-4)


@pytest.mark.skipif(not DATA.is_dir(), reason="the local copies of the real data are not here")
@pytest.mark.parametrize(
    ("card", "task", "train", "validation", "test"),
    [
        # 19,666 labelled pairs, two of them twice
        pytest.param("snli", "entailment", 17_627, 1_012, 1_025, marks=pytest.mark.slow),
        pytest.param("sick_entailment", "entailment", 4_420, 495, 4_927, marks=pytest.mark.slow),
        ("sick_relatedness", "similarity", 4_435, 495, 4_927),
        pytest.param("boolq", "entailment", 1_661, 796, 813, marks=pytest.mark.slow),
        pytest.param("commonsense_qa", "multiple_choice", 9_741, 0, 1_221, marks=pytest.mark.slow),
    ],
)
def test_the_cards_hold_rows_of_their_task(
    card: str, task: str, train: int, validation: int, test: int, tmp_path: Path
) -> None:
    given = [f"source=card:{card}", "record=labelled", f"data_root={DATA}", f"store={tmp_path}", "tracker=none"]
    assert main(["data", *given, "name=mine/rows"]) == 0
    found = ArtifactStore(tmp_path).find("mine/rows")
    rows = {split: list(read_rows([found.path], split)) for split in SPLITS}
    assert {split: len(own) for split, own in rows.items()} == {"train": train, "validation": validation, "test": test}
    assert find_goal(task, rows).num_outputs == {"snli": 3, "sick_entailment": 3, "boolq": 2}.get(card, 1)
