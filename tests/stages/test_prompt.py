"""The form of a prompted model is chosen on validation prompts, and evaluated like any model."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from stage_jobs import job_at, made_by, planned

from align.configs import Data, Evaluate, HardwareConfig, Prompt, RunConfig
from align.configs.evaluate import VALIDATION_SCORE
from align.data.records import read_rows
from align.errors import ConfigError
from align.models.load import load_tokenizer
from align.runtime.job import Inputs, Job
from align.runtime.log import Metrics
from align.stages import data, evaluate, prompt
from align.store.artifacts import Artifact, read_json_lines
from align.store.seals import seal_of
from align.text.chat import encode_prompts

FEW = {"num_prompts": 6, "max_new_tokens": 8, "seed": 0}


def prompted(finished: Path, folder: Path, more: dict[str, object] | None = None, **knobs: object) -> Artifact:
    given = {"model": made_by(finished, "pretrain"), "prompts": made_by(finished, "prompts"), **(more or {})}
    config = planned(Prompt(**{**FEW, **knobs}, inputs={slot: [slot] for slot in given}))
    job = job_at(folder)
    metrics = prompt.run(config, Inputs(given), job)
    return committed(job.out, folder.name, metrics)


def committed(out: Path, key: str, metrics: Metrics) -> Artifact:
    """What the runner makes of a stage's folder, as far as `evaluate` reads it."""
    manifest = {"kind": "model", "stage": "prompt", "key": key, "files": {}, "inputs": {}, "metrics": metrics}
    (out / "manifest.json").write_text(json.dumps(manifest))
    return Artifact("prompt", key, "model", out)


def tried(artifact: Artifact) -> list[dict]:
    return read_json_lines(artifact.path / "forms.jsonl")


def of_world(folder: Path, record: str, **knobs: object) -> tuple[Artifact, ...]:
    job = job_at(folder)
    data.run(Data(source="card:smallworld", record=record, **knobs), Inputs(), job)
    return (Artifact("data", folder.name, record, job.out),)


def of_file(folder: Path, rows: list[dict], record: str, split: str) -> tuple[Artifact, ...]:
    file = folder.with_suffix(".jsonl")
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    job = job_at(folder)
    data.run(Data(source=f"path:{file}", record=record, split=split), Inputs(), job)
    return (Artifact("data", folder.name, record, job.out),)


def test_the_form_with_the_best_score_is_the_models_template(finished, tmp_path):
    judge = {"reward_model": made_by(finished, "reward")}  # gold is 0 for all that a model of this size says
    artifact = prompted(finished, tmp_path, judge, forms={"talk": "Ada: {prompt} Ben: {response} "}, num_prompts=26)
    rows = tried(artifact)
    assert len(rows) == 7
    assert [row["score"] for row in rows] == sorted((row["score"] for row in rows), reverse=True)
    assert rows[0]["score"] > rows[-1]["score"]
    assert artifact.metrics[VALIDATION_SCORE] == pytest.approx(rows[0]["score"])
    tokenizer = load_tokenizer(artifact.path)
    (ids,) = encode_prompts(tokenizer, [[{"role": "user", "content": "Who?"}]])
    expected = rows[0]["text"].partition("{response}")[0].replace("{prompt}", "Who?").rstrip(" ")
    assert tokenizer.decode(ids[1:]) == expected


def test_it_needs_no_split_but_validation_and_the_weights_stay(finished, tmp_path):
    only = of_world(tmp_path / "rows", "prompts", splits=["validation"], validation_rows=6)
    artifact = prompted(finished, tmp_path / "made", {"prompts": only})
    (base,) = made_by(finished, "pretrain")
    assert (artifact.path / "model.safetensors").read_bytes() == (base.path / "model.safetensors").read_bytes()


def test_the_same_command_chooses_the_same(finished, tmp_path):
    assert tried(prompted(finished, tmp_path / "a")) == tried(prompted(finished, tmp_path / "b"))


def test_examples_are_of_the_training_split_and_differ_from_draw_to_draw(finished, tmp_path):
    examples = made_by(finished, "demonstrations")
    forms = {"short": "{prompt} = {response}\n"}
    rows = tried(prompted(finished, tmp_path, {"examples": examples}, num_shots=1, num_prefixes=3, forms=forms))
    own = [row["examples"] for row in rows if row["text"] == "{prompt} = {response}\n"]
    assert len(set(own)) == len(own) == 3
    conversations = [row["messages"] for row in read_rows([examples[0].path], "train")]
    known = {
        f"{' '.join(m['content'] for m in messages[:-1])} = {messages[-1]['content']}\n" for messages in conversations
    }
    assert set(own) <= known


@pytest.mark.parametrize(
    ("knobs", "without", "says"),
    [
        ({"num_shots": 1}, "room", "num_shots: no example fits in a context of"),
        ({}, "validation", "inputs.prompts: expected rows in the validation split"),
    ],
)
def test_what_cannot_be_chosen_is_said_in_a_line(finished, tmp_path, knobs, without, says):
    more = {"examples": made_by(finished, "demonstrations")}
    if without == "room":
        row = {"prompt": "Who is Ben?", "completion": "word " * 500}
        more["examples"] = of_file(tmp_path / "rows", [row], "demonstrations", "train")
    if without == "validation":
        more["prompts"] = of_world(tmp_path / "rows", "prompts", splits=["train"], train_rows=6)
    with pytest.raises(ConfigError) as error:
        prompted(finished, tmp_path / "made", more, **knobs)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_shots_without_examples_and_examples_without_shots_are_refused_before_anything_runs():
    given = {"model": ["a"], "prompts": ["b"]}
    with pytest.raises(ConfigError, match=r"num_shots: .*inputs\.examples"):
        Prompt(num_shots=2, inputs=given).check_inputs()
    with pytest.raises(ConfigError, match=r"inputs\.examples: give num_shots too"):
        Prompt(inputs={**given, "examples": ["c"]}).check_inputs()
    Prompt(num_shots=2, inputs={**given, "examples": ["c"]}).check_inputs()


def test_of_more_examples_than_fit_those_that_fit_are_taken(finished, tmp_path, capsys):
    examples = made_by(finished, "demonstrations")
    rows = tried(prompted(finished, tmp_path, {"examples": examples}, num_shots=50, num_prefixes=2))
    assert all(row["examples"] for row in rows)
    assert "of 50 examples fit in the context" in capsys.readouterr().err


def test_what_a_form_is_worth_is_its_score_on_prompts_that_did_not_choose_it(finished, tmp_path):
    """The best of many is partly the luckiest, on the prompts that it is the best on."""
    whole = of_world(tmp_path / "all", "prompts", splits=["validation"], validation_rows=36)
    rest = Path(shutil.copytree(whole[0].path, tmp_path / "rest"))
    pq.write_table(pq.read_table(rest / "validation.parquet").slice(6), rest / "validation.parquet")
    artifacts = {}
    for name, rows, chosen_by in (("all", whole[0], 6), ("rest", replace(whole[0], path=rest), None)):
        given = {"prompts": (rows,), "reward_model": made_by(finished, "reward")}
        artifacts[name] = prompted(finished, tmp_path / f"{name}-made", given, num_prompts=chosen_by)
    best = tried(artifacts["all"])[0]
    (own,) = [row["score"] for row in tried(artifacts["rest"]) if row["form"] == best["form"]]
    assert artifacts["all"].metrics[VALIDATION_SCORE] == pytest.approx(own)
    assert own != pytest.approx(best["score"])


@pytest.mark.parametrize("form", ["{prompt} and no more", "", 5])
def test_what_is_no_form_is_refused_when_it_is_planned(form):
    with pytest.raises(ConfigError, match=r"forms\.mine: expected \{prompt\} and then \{response\}"):
        Prompt(forms={"mine": str(form)})


@pytest.mark.parametrize("shots", [0, 1])
def test_prompts_that_leave_no_room_for_an_answer_are_left_out_and_counted(finished, tmp_path, capsys, shots):
    texts = ["Where does Ada live?", "word " * 500, "Who is Ben?"]
    file = tmp_path / "mine.jsonl"
    file.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    job = job_at(tmp_path / "mine")
    data.run(Data(source=f"path:{file}", record="prompts", split="validation"), Inputs(), job)
    given = {"prompts": (Artifact("data", "mine", "prompts", job.out),), "reward_model": made_by(finished, "reward")}
    if shots:
        given["examples"] = made_by(finished, "demonstrations")
    made = prompted(finished, tmp_path / "made", given, num_shots=shots)
    told = capsys.readouterr().err
    assert "1 of 3 prompts left out: with 8 new tokens they are longer than the model's context" in told
    assert "on 2 validation prompts" in told
    assert made.metrics[f"{VALIDATION_SCORE}_few"] == 2
    file.write_text(json.dumps({"prompt": texts[1]}) + "\n")
    job = job_at(tmp_path / "long")
    data.run(Data(source=f"path:{file}", record="prompts", split="validation"), Inputs(), job)
    given["prompts"] = (Artifact("data", "long", "prompts", job.out),)
    with pytest.raises(ConfigError, match=r"^inputs\.prompts: no validation prompt leaves room for 8 new tokens$"):
        prompted(finished, tmp_path / "none", given, num_shots=shots)


# -- evaluated -----------------------------------------------------------------------------------------------------


def scores(finished: Path, folder: Path, inputs: dict[str, tuple[Artifact, ...]], **knobs: object) -> Metrics:
    few = {"num_bootstrap": 50, "max_new_tokens": 8, "seed": 0, "precision": "fp32"}
    named = {slot: [f"{slot}{i}" for i in range(len(artifacts))] for slot, artifacts in inputs.items()}
    config = Evaluate(**{**few, **knobs}, inputs=named)
    (folder / "out").mkdir(parents=True)
    settings = RunConfig(store=str(finished), hardware=HardwareConfig(device="cpu"))
    given = {"model": made_by(finished, "ppo"), "prompts": made_by(finished, "prompts"), **inputs}
    return evaluate.run(config, Inputs(given), Job("test", folder, settings))


def test_wins_over_a_prompted_model_are_those_over_the_same_model_as_baseline(finished, tmp_path):
    base, judge = prompted(finished, tmp_path / "base"), {"reward_model": made_by(finished, "reward")}
    both = {"prompted_base": (base,), "baseline": made_by(finished, "sft"), **judge}
    found = scores(finished, tmp_path / "one", both)
    alone = scores(finished, tmp_path / "two", {"baseline": (base,), **judge})
    for head in ("", "greedy/"):
        for name in ("win_rate", "ties", "reward/win_rate", "reward/win_rate_low"):
            assert found[f"{head}prompted_base/{name}"] == alone[f"{head}{name}"]
        for name in ("reward/score", "reward/score_low", "gold/score_high"):
            assert found[f"{head}prompted_base/{name}"] == alone[f"{head}baseline/{name}"]
            assert found[f"{head}{name}"] == alone[f"{head}{name}"]


def test_a_prompted_model_without_prompts_is_refused_before_anything_runs():
    with pytest.raises(ConfigError, match=r"inputs\.prompted_base: .*inputs\.prompts"):
        Evaluate(inputs={"model": ["a"], "prompted_base": ["b"], "text": ["c"]}).check_inputs()


def test_of_several_prompted_models_the_best_on_validation_is_taken(finished, tmp_path, capsys):
    one, other = prompted(finished, tmp_path / "a"), *made_by(finished, "sft")
    judge = {"reward_model": made_by(finished, "reward")}
    alone = [scores(finished, tmp_path / f"{i}", {"baseline": (base,), **judge}) for i, base in enumerate((one, other))]
    assert alone[0]["baseline/reward/score"] != alone[1]["baseline/reward/score"]
    for best in (0, 1):
        given = []
        for i, artifact in enumerate((one, other)):
            copied = Path(shutil.copytree(artifact.path, tmp_path / f"copy{best}{i}"))
            given.append(committed(copied, f"copy{i}", {VALIDATION_SCORE: 0.9 if i == best else 0.1}))
        found = scores(finished, tmp_path / f"best{best}", {"prompted_base": tuple(given), **judge})
        assert found["prompted_base/reward/score"] == alone[best]["baseline/reward/score"]
        assert f"prompted_base: prompted_base{best} is the best on validation prompts" in capsys.readouterr().err


def test_models_that_were_never_prompted_cannot_be_ranked(finished, tmp_path):
    given = (*made_by(finished, "sft"), *made_by(finished, "pretrain"))
    with pytest.raises(
        ConfigError, match=r"inputs\.prompted_base: expected models that `align prompt` made, got prompted_base0"
    ):
        scores(finished, tmp_path, {"prompted_base": given})


def test_the_validation_split_is_evaluated_where_that_is_asked_for(finished, tmp_path):
    rows = of_world(tmp_path / "rows", "prompts", validation_rows=5, test_rows=7, splits=["validation", "test"])
    assert scores(finished, tmp_path / "v", {"prompts": rows}, split="validation")["prompts"] == 5
    assert scores(finished, tmp_path / "t", {"prompts": rows})["prompts"] == 7
    rows = of_world(tmp_path / "rows2", "prompts", test_rows=7, splits=["test"])
    with pytest.raises(ConfigError, match="no row of card:smallworld is in the validation split"):
        scores(finished, tmp_path / "w", {"prompts": rows}, split="validation")


def test_the_share_of_prompts_that_the_reward_model_learned_from(finished, tmp_path):
    assert scores(finished, tmp_path / "test", {})["seen_by_reward_model"] == 0
    trained = list(read_rows([made_by(finished, "compare")[0].path], "train"))
    seen = [row["prompt"] for row in trained[:3]]
    fresh = [row["prompt"] for row in read_rows([made_by(finished, "prompts")[0].path], "test")][:1]
    file = tmp_path / "mine.jsonl"
    file.write_text("".join(json.dumps({"prompt": each}) + "\n" for each in seen + fresh))
    job = job_at(tmp_path / "mine")
    data.run(Data(source=f"path:{file}", record="prompts", split="test"), Inputs(), job)
    mine = (Artifact("data", "mine", "prompts", job.out),)
    found = scores(finished, tmp_path / "found", {"prompts": mine, "reward_model": made_by(finished, "reward")})
    assert found["seen_by_reward_model"] == 0.75


def test_a_reward_model_that_only_watched_ppo_has_not_judged_it(store, tmp_path, capsys):
    (policy,) = made_by(store, "ppo")
    assert scores(store, tmp_path / "before", {})["seen_by_reward_model"] == 0
    file = policy.path / "manifest.json"
    manifest = json.loads(file.read_text())
    manifest["inputs"]["heldout_reward_model"] = manifest["inputs"].pop("reward_model")
    file.write_text(json.dumps(manifest | {"seal": seal_of(manifest)}))
    assert "seen_by_reward_model" not in scores(store, tmp_path / "after", {})
    manifest["inputs"]["heldout_reward_model"][0]["key"] = "0" * 64
    file.write_text(json.dumps(manifest | {"seal": seal_of(manifest)}))
    capsys.readouterr()
    assert "seen_by_reward_model" not in scores(store, tmp_path / "gone", {})
    assert "it is not known which prompts the model and its rewards saw: ppo@" in capsys.readouterr().err
