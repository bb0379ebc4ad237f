"""The text-to-text stage: what it learns, its loss against the library's, exact resumes, what it refuses."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import mostly_slow
from stage_jobs import Dead, dying_after, job_with
from tiny_models import sentinel_tokenizer, tiny_t5, tiny_tokenizer
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from align.cli.main import main
from align.configs import HardwareConfig, ModelConfig, RunConfig, TextToText
from align.data.records import read_rows, write_rows
from align.data.records import write_info as write_rows_info
from align.errors import ConfigError, HealthStop
from align.models.load import save_model
from align.runtime.distributed import Rank
from align.runtime.job import Inputs, Job
from align.stages import text_to_text
from align.store.artifacts import Artifact
from align.store.checkpoints import load_checkpoint
from align.text.tokens import write_info, write_tokens

WORDS = "the cat sat on the mat and the dog ran home".split()
SMALL = ModelConfig(architecture="t5", hidden_size=32, num_layers=1, num_heads=4, dropout=0.0, initializer_range=1.0)
KNOBS: dict[str, Any] = {
    "model": SMALL,
    "num_steps": 12,
    "batch_size": 8,
    "input_length": 32,
    "target_length": 16,
    "eval_every": 5,
    "eval_rows": 16,
    "warmup_steps": 4,
    "seed": 3,
}
# Enough to write words in reverse.
LEARNING: dict[str, Any] = {
    "model": dataclasses.replace(SMALL, hidden_size=64),
    "batch_size": 32,
    "learning_rate": 0.05,
    "warmup_steps": 100,
    "eval_rows": None,
}


def artifact(folder: Path, kind: str) -> tuple[Artifact, ...]:
    return (Artifact(kind, "0" * 64, kind, folder),)


def made_tokens(folder: Path, tokenizer: Any, documents: int = 60) -> Path:
    folder.mkdir(parents=True)
    drawn = random.Random(0)
    counts = {}
    for split, count in (("train", documents), ("validation", 12)):
        texts = [" ".join(drawn.choices(WORDS, k=20)) for _ in range(count)]
        counts[split] = write_tokens(folder, split, texts, tokenizer, lambda _: None)
    write_info(folder, "path:books.txt", counts)
    tokenizer.save_pretrained(folder)
    return folder


def made_tasks(folder: Path, seed: int = 0, splits: tuple[str, ...] = ("train", "validation", "test")) -> Path:
    """Words to be written in reverse; no row comes twice."""
    folder.mkdir(parents=True)
    drawn, seen = random.Random(seed), set()
    for split in splits:
        rows: list[dict[str, Any]] = []
        while len(rows) < (400 if split == "train" else 40):
            words = tuple(drawn.choices(WORDS, k=drawn.randint(1, 3)))
            if words not in seen:
                said = {"role": "user", "content": " ".join(words)}
                rows.append({"messages": [said, {"role": "assistant", "content": " ".join(words[::-1])}]})
            seen.add(words)
        write_rows(folder, split, rows)
    write_rows_info(folder, source=f"path:{folder.name}.jsonl")
    return folder


@pytest.fixture(scope="module")
def tokenizer():
    return sentinel_tokenizer(20)


@pytest.fixture(scope="module")
def inputs(tokenizer, tmp_path_factory) -> Inputs:
    """Text and tasks."""
    folder = tmp_path_factory.mktemp("inputs")
    return Inputs(
        data=artifact(made_tokens(folder / "tokens", tokenizer), "tokens"),
        tasks=artifact(made_tasks(folder / "reverse"), "demonstrations"),
    )


@pytest.fixture(scope="module")
def tasks_alone(inputs, tokenizer, tmp_path_factory) -> Inputs:
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save_pretrained(folder)
    return Inputs(tasks=inputs["tasks"], tokenizer=artifact(folder, "tokenizer"))


def job_at(folder: Path, kind: type[Job] = Job, **hardware: Any) -> Job:
    (folder / "out").mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)  # as whoever runs a stage does
    settings = RunConfig(hardware=HardwareConfig(**{"checkpoint_seconds": 1e9, "device": "cpu", **hardware}))
    return kind("test", folder, settings)


def run(inputs: Inputs, folder: Path, hardware: dict[str, Any] | None = None, **knobs: Any) -> dict[str, float]:
    return text_to_text.run(TextToText(**{**KNOBS, **knobs}), inputs, job_at(folder, **(hardware or {})))


def logged(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "out/metrics.jsonl").read_text().splitlines()]


def files_of(folder: Path) -> dict[str, str]:
    out = folder / "out"
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(out.rglob("*")) if p.is_file()}


# -- learning ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_it_learns_to_write_words_in_reverse(tasks_alone, tmp_path):
    found = run(
        tasks_alone,
        tmp_path,
        **LEARNING,
        num_steps=250,
        eval_every=125,
    )
    for split in ("eval", "test"):
        assert found[f"{split}/tasks/accuracy"] > 0.6
        assert found[f"{split}/tasks/accuracy_low"] < found[f"{split}/tasks/accuracy"]
        assert found[f"{split}/tasks/rows"] == 40
    answered = [json.loads(line) for line in (tmp_path / "out/predictions.jsonl").read_text().splitlines()]
    assert len(answered) == 20
    assert all(row["target"].split() == row["prompt"].split()[::-1] for row in answered)
    assert sum(row["answer"] == row["target"] for row in answered) > 10
    before, after = (row["eval/tasks/accuracy"] for row in logged(tmp_path) if "eval/tasks/accuracy" in row)
    assert after > before


def test_it_learns_to_fill_in_what_was_taken_out(inputs, tmp_path):
    found = run(Inputs(data=inputs["data"]), tmp_path, num_steps=60, batch_size=16, learning_rate=0.02)
    rows = logged(tmp_path)
    assert rows[-1]["loss"] < rows[0]["loss"] - 2
    assert found["eval/text/loss"] == pytest.approx(rows[-1]["loss"], abs=0.5)
    assert not [name for name in found if name.startswith(("eval/tasks", "test"))]


def test_trained_on_it_goes_on_from_where_it_was(inputs, tokenizer, tmp_path):
    first = run(inputs, tmp_path / "first", num_steps=40)
    model = artifact(tmp_path / "first/out", "seq2seq_model")
    more = Inputs(data=inputs["data"], tasks=inputs["tasks"], model=model)
    second = run(more, tmp_path / "second", num_steps=1, learning_rate=1e-30, schedule="constant")
    assert second == pytest.approx(first, rel=1e-6)
    opened = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "second/out")
    assert opened.config.vocab_size == len(AutoTokenizer.from_pretrained(tmp_path / "second/out")) == len(tokenizer)


# -- losses and rows -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def first_loss(tasks_alone, tokenizer) -> float:
    """The mean over the target tokens of all training rows that the library gives, row by row, for first weights."""
    torch.manual_seed(0)
    model = tiny_t5(tokenizer, SMALL.num_layers)
    nats = tokens = 0.0
    for row in read_rows([tasks_alone.one("tasks").path], "train"):
        said, answer = (tokenizer(message["content"])["input_ids"] for message in row["messages"])
        labels = torch.tensor([[*answer, tokenizer.eos_token_id]])
        loss = model(input_ids=torch.tensor([[*said, tokenizer.eos_token_id]]), labels=labels).loss
        nats += float(loss.detach()) * labels.shape[1]
        tokens += labels.shape[1]
    return nats / tokens


@pytest.mark.parametrize("micro_batch_tokens", mostly_slow([4096, 64], [64]))
def test_the_first_loss_is_the_librarys_over_all_target_tokens(tasks_alone, tmp_path, first_loss, micro_batch_tokens):
    """A batch of as many rows as there are is each of them once, in whatever order and groups."""
    run(tasks_alone, tmp_path, {"micro_batch_tokens": micro_batch_tokens}, num_steps=1, batch_size=400)
    assert logged(tmp_path)[0]["loss"] == pytest.approx(first_loss, rel=1e-5)


def test_how_a_batch_goes_through_changes_nothing_beyond_rounding(inputs, tmp_path):
    for tokens in (64, 4096):
        run(inputs, tmp_path / str(tokens), {"micro_batch_tokens": tokens}, num_steps=2, batch_size=32)
    for one, other in zip(logged(tmp_path / "64"), logged(tmp_path / "4096"), strict=True):
        assert (one["loss"], one["grad_norm"]) == pytest.approx((other["loss"], other["grad_norm"]), rel=1e-4)


def test_no_pass_has_more_tokens_than_asked_and_layers_compute_twice_where_asked(inputs, tmp_path, passes):
    hardware = {"micro_batch_tokens": 64, "activation_checkpointing": True, "generation_batch_size": 1}
    run(inputs, tmp_path, hardware, num_steps=1, batch_size=32)
    assert max(passes.tokens) <= 64
    assert len(passes.twice) == 2  # the encoder's layer and the decoder's


def rows_of(inputs: Inputs, tokenizer: Any, **knobs: Any) -> Any:
    cfg = TextToText(**{**KNOBS, **knobs})
    corruption = text_to_text._corruption(cfg, tokenizer) if "data" in inputs else None
    return text_to_text._rows(cfg, inputs, tokenizer, corruption, None)  # type: ignore[arg-type]


def test_a_step_has_its_share_of_tasks_and_every_row_comes_once_a_pass(inputs, tokenizer):
    rows = rows_of(inputs, tokenizer, batch_size=10, tasks_share=0.2)
    steps = [rows.draw(step) for step in range(200)]
    assert {sum(row.source is None for row in step) for step in steps} == {2}
    tasks = [row.row for step in steps for row in step if row.source is None]
    assert sorted(tasks) == list(range(400))
    text = [(row.source, row.row) for step in steps for row in step if row.source is not None]
    count = len(rows.text)
    assert sorted(text[:count]) == sorted(text[count : 2 * count])
    assert len(set(text[:count])) == count
    seeds = [row.seed for step in steps for row in step if row.source is not None]
    assert len(set(seeds)) == len(seeds)  # what is taken out of a row differs from pass to pass


def test_a_rows_targets_are_counted_before_it_is_made(inputs, tokenizer):
    rows = rows_of(inputs, tokenizer)
    for drawn in rows.draw(0):
        assert len(rows.pair(drawn).target) == rows.num_targets(drawn)
        assert len(rows.pair(drawn).input) <= 32


def test_text_fills_its_input_to_the_last_token(inputs, tokenizer):
    rows = rows_of(Inputs(data=inputs["data"]), tokenizer)
    assert {len(rows.pair(drawn).input) for drawn in rows.draw(0)} == {32}


def test_held_out_spans_are_the_same_whatever_the_seed(inputs, tokenizer, tmp_path):
    torch.manual_seed(0)
    save_model(tiny_t5(tokenizer), tokenizer, tmp_path / "model")
    given = Inputs(data=inputs["data"], model=artifact(tmp_path / "model", "seq2seq_model"))
    one, two = (
        run(given, tmp_path / str(seed), num_steps=1, learning_rate=1e-30, schedule="constant", seed=seed)
        for seed in (1, 2)
    )
    assert one["eval/text/loss"] == two["eval/text/loss"]
    assert logged(tmp_path / "1")[0]["loss"] != logged(tmp_path / "2")[0]["loss"]


def test_several_tasks_are_told_apart_and_together(tasks_alone, tmp_path):
    both = (tasks_alone.one("tasks"), *artifact(made_tasks(tmp_path / "again", seed=1), "demonstrations"))
    found = run(Inputs(tasks=both, tokenizer=tasks_alone["tokenizer"]), tmp_path / "job", num_steps=2)
    each = [found[f"test/{name}/loss"] for name in ("reverse", "again")]
    assert min(each) < found["test/tasks/loss"] < max(each)
    assert found["test/tasks/rows"] == found["test/reverse/rows"] + found["test/again/rows"] == 32


@pytest.mark.slow
def test_held_out_rows_that_are_too_long_are_answered_wrong_and_told(tasks_alone, tokenizer, tmp_path, capsys):
    answers = [row["messages"][1]["content"] for row in read_rows(tasks_alone.folders("tasks"), "test")]
    long = sum(len(tokenizer(answer)["input_ids"]) + 1 > 4 for answer in answers)  # 1 for the end
    assert 20 <= long < 40  # so that all that are kept are shown
    found = run(tasks_alone, tmp_path, **LEARNING, num_steps=100, target_length=4)
    told = capsys.readouterr().err
    assert f"{long} of 40 test rows of reverse left out, which counts as answered wrong: longer than 32" in told
    answered = [json.loads(line) for line in (tmp_path / "out/predictions.jsonl").read_text().splitlines()]
    right = sum(row["answer"] == row["target"] for row in answered)
    assert (len(answered), found["test/tasks/rows"]) == (40 - long, 40)
    assert 0 < found["test/tasks/accuracy"] == right / 40


def test_rows_that_are_not_to_be_learned_are_counted_and_left_out(tokenizer, tmp_path, capsys):
    folder = made_tasks(tmp_path / "mine", splits=("train",))
    rows = list(read_rows([folder], "train"))
    rows[0]["messages"][-1]["weight"] = 0
    write_rows(folder, "train", rows)
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    given = Inputs(tasks=artifact(folder, "demonstrations"), tokenizer=artifact(tmp_path / "tokenizer", "tokenizer"))
    with pytest.raises(ConfigError, match=f"{len(rows)} rows of a step are tasks, and there are only {len(rows) - 1}"):
        run(given, tmp_path / "run", num_steps=1, batch_size=len(rows))
    said = capsys.readouterr().err
    assert f"1 of {len(rows)} train rows of tasks left out: with turns of tools, or an answer of weight 0" in said


def test_a_set_called_as_what_stands_for_all_has_metrics_of_its_own(tasks_alone, tmp_path):
    both = (tasks_alone.one("tasks"), *artifact(made_tasks(tmp_path / "tasks", seed=1), "demonstrations"))
    found = run(Inputs(tasks=both, tokenizer=tasks_alone["tokenizer"]), tmp_path / "job", num_steps=2)
    assert found["test/tasks/rows"] == found["test/reverse/rows"] + found["test/tasks_1/rows"] == 32


def test_the_learning_rate_is_flat_and_then_falls_with_the_square_root(tasks_alone, tmp_path):
    run(tasks_alone, tmp_path / "falling", learning_rate=0.01, warmup_steps=4)
    rates = [row["learning_rate"] for row in logged(tmp_path / "falling")]
    assert rates == pytest.approx([0.02 / max(n, 4) ** 0.5 for n in range(12)])
    run(tasks_alone, tmp_path / "flat", learning_rate=0.001, schedule="constant", num_steps=3)
    assert [row["learning_rate"] for row in logged(tmp_path / "flat")] == [0.001] * 3


def test_in_bf16_the_loss_is_near_that_of_fp32(inputs, tmp_path):
    losses = []
    for precision in ("fp32", "bf16"):
        run(inputs, tmp_path / precision, num_steps=2, precision=precision)
        losses.append(logged(tmp_path / precision)[0]["loss"])
    assert losses[1] != losses[0]
    assert losses[1] == pytest.approx(losses[0], rel=0.01)


# -- exact resumes -------------------------------------------------------------------------------------------------


FULL: dict[str, Any] = {  # everything that has a state of its own
    **KNOBS,
    "model": dataclasses.replace(SMALL, dropout=0.1),
    "max_loss_rise": 5.0,
    "max_grad_norm": 1.0,
    "eval_rows": 4,
}


@pytest.fixture(scope="module")
def unbroken(inputs, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("unbroken")
    text_to_text.run(TextToText(**FULL), inputs, job_at(folder, checkpoint_seconds=0))
    return folder


def broken(inputs: Inputs, folder: Path, after: int) -> None:
    job = job_at(folder, dying_after(after), checkpoint_seconds=0)
    with pytest.raises(Dead):
        text_to_text.run(TextToText(**FULL), inputs, job)


def digest(state: Any) -> str:
    if isinstance(state, torch.Tensor):
        return hashlib.sha256(state.contiguous().numpy().tobytes()).hexdigest()
    if isinstance(state, dict):
        return str({str(key): digest(value) for key, value in state.items()})
    if isinstance(state, list | tuple):
        return str([digest(value) for value in state])
    return repr(state)


@pytest.mark.parametrize("after", mostly_slow(range(1, 12), [6]))
def test_a_run_that_died_ends_as_if_it_had_not(inputs, unbroken, tmp_path, after):
    broken(inputs, tmp_path, after)
    text_to_text.run(TextToText(**FULL), inputs, job_at(tmp_path, checkpoint_seconds=0))
    assert files_of(tmp_path) == files_of(unbroken)
    one, two = (load_checkpoint(folder / "checkpoints") for folder in (tmp_path, unbroken))
    assert one is not None
    assert two is not None
    assert digest(one) == digest(two)


@pytest.mark.parametrize("part", mostly_slow(["model", "optimizers", "taken", "recent"], ["taken"]))
def test_every_part_of_the_state_is_needed(inputs, unbroken, tmp_path, part):
    broken(inputs, tmp_path, 6)

    def forgetful(last: Callable[[], Any]) -> Any:
        found = last()
        assert found is not None
        state = found[1]
        if part == "model":
            state["model"] = {name: value * 0.9 for name, value in state["model"].items()}
        elif part == "optimizers":
            for entry in state["optimizers"][0]["state"].values():
                entry.update({name: value * 0 for name, value in entry.items() if name != "step"})
        else:
            state[part] = [0] * len(state["taken"]) if part == "taken" else []
        return found

    job = job_at(tmp_path, job_with({"resume.last": forgetful}), checkpoint_seconds=0)
    text_to_text.run(TextToText(**FULL), inputs, job)
    one, two = (load_checkpoint(folder / "checkpoints") for folder in (tmp_path, unbroken))
    assert one is not None
    assert two is not None
    assert digest(one[1]["state"]) != digest(two[1]["state"])


def one_of_two(rank: int, folder: Path, inputs: Inputs, knobs: dict[str, Any]) -> None:
    torch.distributed.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2)
    torch.manual_seed(0)
    settings = RunConfig(hardware=HardwareConfig(device="cpu", checkpoint_seconds=1e9))
    job = Job("test", folder, settings, rank=Rank(rank, 2))
    found = text_to_text.run(TextToText(**knobs), inputs, job)
    (folder / f"found{rank}.json").write_text(json.dumps(found))


@pytest.mark.slow
def test_two_processes_do_what_one_does(inputs, tmp_path):
    knobs = {**KNOBS, "batch_size": 7, "eval_rows": 5}  # shares that differ in size
    alone = run(inputs, tmp_path / "alone", **knobs)
    together = tmp_path / "together"
    (together / "out").mkdir(parents=True)
    torch.multiprocessing.spawn(one_of_two, (together, inputs, knobs), nprocs=2)
    found = [json.loads((together / f"found{rank}.json").read_text()) for rank in (0, 1)]
    assert found[0] == found[1] == pytest.approx(alone, rel=1e-4)
    for row, row_alone in zip(logged(together), logged(tmp_path / "alone"), strict=True):
        assert row == pytest.approx(row_alone, rel=1e-4)
    assert (together / "out/predictions.jsonl").read_text() == (tmp_path / "alone/out/predictions.jsonl").read_text()


# -- what is refused -----------------------------------------------------------------------------------------------


def refused(inputs: Inputs, folder: Path, **knobs: Any) -> str:
    with pytest.raises(ConfigError) as error:
        run(inputs, folder, **knobs)
    assert not list((folder / "out").iterdir())
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_tokenizer_without_sentinels_is_refused_where_there_is_text(tmp_path):
    plain = artifact(made_tokens(tmp_path / "tokens", tiny_tokenizer()), "tokens")
    told = refused(Inputs(data=plain), tmp_path / "job")
    assert "the tokenizer has 0; give num_sentinels=100" in told


def test_sentinels_too_few_for_the_spans_of_a_row_are_refused(tmp_path):
    few = artifact(made_tokens(tmp_path / "tokens", sentinel_tokenizer(1)), "tokens")
    assert "a row has 2 spans taken out" in refused(Inputs(data=few), tmp_path / "job")


def test_tasks_alone_need_no_sentinels(inputs, tmp_path):
    tiny_tokenizer().save_pretrained(tmp_path / "plain")
    run(Inputs(tasks=inputs["tasks"], tokenizer=artifact(tmp_path / "plain", "tokenizer")), tmp_path, num_steps=1)
    assert (tmp_path / "out/model.safetensors").is_file()


def test_lengths_that_do_not_go_together_are_refused(inputs, tmp_path):
    told = refused(inputs, tmp_path, target_length=5)
    assert told.startswith("target_length: what is taken out of a row makes 8 tokens, got 5")
    assert refused(inputs, tmp_path, input_length=2).startswith("input_length: too short")


def test_too_little_text_and_tasks_that_are_all_too_long_are_refused(inputs, tasks_alone, tokenizer, tmp_path):
    little = artifact(made_tokens(tmp_path / "tokens", tokenizer, documents=1), "tokens")
    told = refused(Inputs(data=little), tmp_path / "job", input_length=128, target_length=64)
    assert told.startswith("inputs.data: the training documents do not fill one row of 141 tokens; give input_length")
    told = refused(tasks_alone, tmp_path / "other", input_length=1)
    assert told == "inputs.tasks: none has at most 1 tokens and 16 to write"


def test_tokens_of_another_tokenizer_are_refused(inputs, tmp_path):
    other = artifact(made_tokens(tmp_path / "tokens", sentinel_tokenizer(30)), "tokens")
    two = Inputs(data=(inputs.one("data"), *other))
    assert refused(two, tmp_path / "job").startswith("inputs: expected tokens of one tokenizer")


def test_a_loss_that_is_not_finite_stops_the_run(tasks_alone, tmp_path):
    with pytest.raises(HealthStop, match="lower learning_rate"):
        run(tasks_alone, tmp_path, optimizer="adamw", learning_rate=1e30)


# -- plans ---------------------------------------------------------------------------------------------------------

PIPELINE = """
# @package _global_
defaults:
  - /stage@steps.text: data
  - /stage@steps.tasks: data
  - /stage@steps.tokenizer: tokenizer
  - /stage@steps.t5: text_to_text
  - /stage@steps.tuned: text_to_text
  - /stage@steps.reward: reward
  - _self_
name: trial
steps:
  text: {source: card:smallworld}
  tasks: {source: card:smallworld, record: demonstrations}
  tokenizer: {inputs: {data: text}}
  t5: {inputs: {data: text, tokenizer: tokenizer}}
  tuned: {inputs: {data: text, tasks: tasks, model: t5}}
  reward: {inputs: {data: card:smallworld, model: REWARDED}}
"""


def planned(folder: Path, capsys: pytest.CaptureFixture[str], *overrides: str, rewarded: str = "null") -> Any:
    """The steps of the pipeline, or what is said against it."""
    (folder / "conf/pipeline").mkdir(parents=True, exist_ok=True)
    (folder / "conf/pipeline/trial.yaml").write_text(PIPELINE.replace("REWARDED", rewarded))
    chosen = () if rewarded != "null" else ("step=tuned",)
    command = ["plan", "pipeline=trial", "--config-dir", f"{folder}/conf", f"store={folder}/store", "--json"]
    code = main([*command, *chosen, *overrides])
    out, err = capsys.readouterr()
    assert code in (0, 2)
    return err if code else {step["step"].removeprefix("trial/"): step for step in json.loads(out)}


def test_documents_are_tokenised_on_the_way_with_the_tokenizer_or_the_models_own(tmp_path, capsys):
    steps = planned(tmp_path, capsys)
    assert steps["t5"]["kind"] == "seq2seq_model"
    assert steps["t5"]["inputs"] == {"data": ["trial/t5.tokens"]}
    assert steps["t5.tokens"]["inputs"] == {"data": ["trial/text"], "tokenizer": ["trial/tokenizer"]}
    assert steps["tuned"]["inputs"] == {
        "data": ["trial/tuned.tokens"],
        "tasks": ["trial/tasks"],
        "model": ["trial/t5"],
    }
    assert steps["tuned.tokens"]["inputs"] == {"data": ["trial/text"], "seq2seq_model": ["trial/t5"]}


def test_what_takes_a_decoder_alone_refuses_an_encoder_decoder(tmp_path, capsys):
    told = planned(tmp_path, capsys, rewarded="t5")
    assert "steps.reward.inputs.model: expected model, but trial/t5 is seq2seq_model" in told


@pytest.mark.parametrize("slot", ["data", "tasks"])
def test_a_batch_of_more_rows_than_there_are_is_refused(inputs, tasks_alone, tmp_path, slot):
    given = tasks_alone if slot == "tasks" else Inputs(data=inputs["data"])
    with pytest.raises(ConfigError, match=r"batch_size: 100000 rows of a step are \w+, and there are only"):
        run(given, tmp_path, batch_size=100_000)


REFUSED = {
    "steps.tuned.inputs={data: null, tasks: null, model: t5}": "steps.tuned.inputs: expected data",
    "steps.tuned.inputs={data: null, tasks: tasks, model: null}": "steps.tuned.inputs: expected a tokenizer",
    "steps.tuned.inputs={data: null, tasks: tasks, model: t5, tokenizer: tokenizer}": "not both",
    "steps.tuned.tasks_share=1.0": "steps.tuned.tasks_share: expected one that makes 1 to 127 rows",
    "steps.tuned.noise_density=1.0": "steps.tuned.noise_density: expected a number between 0 and 1",
    "steps.tuned.mean_span_length=0.5": "steps.tuned.mean_span_length: expected 1 token or more",
    "steps.tuned.model.architecture=gpt2": "steps.tuned.model.architecture: expected t5, got 'gpt2'",
    "steps.tuned.optimizer=muon": "steps.tuned.optimizer: expected adafactor or adamw",
    "steps.tuned.schedule=cosine": "steps.tuned.schedule: expected inverse_square_root or constant",
    "steps.tuned.eval_rows=0": "steps.tuned.eval_rows: expected at least 1",
    "steps.tuned.inputs={data: null, tasks: tasks, model: tokenizer}": "inputs.model: expected seq2seq_model, but",
}


@pytest.mark.parametrize("override", mostly_slow(REFUSED, [*REFUSED][::3]))
def test_a_plan_says_what_is_wrong_before_anything_runs(override, tmp_path, capsys):
    told = planned(tmp_path, capsys, override)
    assert REFUSED[override] in told
    assert len(told.strip().splitlines()) == 1
