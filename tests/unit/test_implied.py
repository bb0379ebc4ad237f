"""What an evaluation makes of a source outside the store: all of it, unless a model in it has learned from it."""

from __future__ import annotations

from pathlib import Path

import pytest

from align.configs import Data, Evaluate, EvaluateReward, ImportModel, Reward, Sft, StageConfig
from align.pipeline.implied_steps import add_implied_steps
from align.store.artifacts import ArtifactStore

MODEL = "hf:here/model@" + "a" * 40


def data_of(store: Path, slot: str, config: Evaluate | EvaluateReward, **before: StageConfig) -> tuple[Data, str]:
    """The data step of an input, and what is said of it."""
    configs = {**before, "evaluate": config}
    implied = add_implied_steps(configs, ArtifactStore(store))
    made = configs[f"evaluate.{slot}"]
    assert isinstance(made, Data)
    return made, implied[f"evaluate.{slot}"].note


@pytest.mark.parametrize(
    ("slot", "source", "split", "splits"),
    [
        ("prompts", "path:mine.jsonl", "test", 3),
        ("prompts", f"hf:here/rows@{'b' * 40}", "test", 3),
        ("prompts", "card:redteam", "test", 3),
        ("prompts", "card:redteam/test", None, 1),  # that split of the card, as it always was
        ("prompts", "card:smallworld", None, 3),  # it generates its test split
        ("items", "path:mine.jsonl", None, 3),  # all are test in any case
        ("text", "path:mine.txt", "test", 3),
    ],
)
def test_all_of_a_source_is_evaluated(slot: str, source: str, split: str | None, splits: int, tmp_path: Path) -> None:
    data, note = data_of(tmp_path, slot, Evaluate(inputs={"model": MODEL, slot: source}))
    assert (data.split, len(data.splits), note) == (split, splits, "")


@pytest.mark.parametrize("slot", ["prompts", "items", "text"])
def test_all_of_a_source_is_in_the_split_that_is_evaluated(slot: str, tmp_path: Path) -> None:
    config = Evaluate(inputs={"model": MODEL, slot: "path:mine.jsonl"}, split="validation")
    assert data_of(tmp_path, slot, config)[0].split == "validation"


@pytest.mark.parametrize(
    ("slot", "files", "source", "split"),
    [
        *(
            (slot, *case)
            for slot in ("prompts", "items", "text")
            for case in (
                (["eval.jsonl"], "eval.jsonl", "test"),
                (["train_prompts.jsonl"], "train_prompts.jsonl", "test"),
                (["dev/a.jsonl", "dev/b.jsonl"], "dev", "test"),
                (["own/train.jsonl", "own/test.jsonl"], "own", None),  # its test split
                (["own/train.jsonl", "own/test.jsonl"], "own/train.jsonl", "test"),
            )
        ),
        ("prompts", ["train_test.jsonl"], "train_test.jsonl", "test"),
    ],
)
def test_a_file_is_evaluated_whole_whatever_its_name(
    slot: str, files: list[str], source: str, split: str | None, tmp_path: Path
) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    ref = f"path:{tmp_path}/{source}"
    data, _ = data_of(tmp_path, slot, Evaluate(inputs={"model": MODEL, slot: ref}))
    assert data.split == split


def test_what_a_model_learned_from_is_not_evaluated_again(tmp_path: Path) -> None:
    source = "path:mine.jsonl"
    sft = Sft(inputs={"model": MODEL, "data": [source]})
    evaluate = Evaluate(inputs={"model": "sft", "prompts": f"path:{Path('mine.jsonl').absolute()}"})
    data, note = data_of(tmp_path, "prompts", evaluate, sft=sft)
    assert (data.split, data.validation_share) == (None, None)
    assert note.endswith("alone is evaluated")

    rows = Data(source=source, record="demonstrations", validation_share=0.2)
    sft = Sft(inputs={"model": MODEL, "data": ["rows"]})
    data, note = data_of(tmp_path, "prompts", Evaluate(inputs={"model": "sft", "prompts": source}), rows=rows, sft=sft)
    assert (data.split, data.validation_share) == (None, 0.2)  # the same rows are held out as in training

    rows = Data(source=source, record="demonstrations", split="train")
    data, note = data_of(tmp_path, "prompts", Evaluate(inputs={"model": "sft", "prompts": source}), rows=rows, sft=sft)
    assert data.split == "test"
    assert note == f"all of {source} is evaluated, and a model here was trained on it"


def test_a_reward_model_is_not_evaluated_on_what_it_learned_from(tmp_path: Path) -> None:
    for source, split in (("path:mine.jsonl", None), ("path:other.jsonl", "test")):
        reward = Reward(inputs={"model": MODEL, "data": ["path:mine.jsonl"]})
        evaluate = EvaluateReward(inputs={"model": "reward", "data": source})
        data, note = data_of(tmp_path, "data", evaluate, reward=reward)
        assert (data.record, data.split, data.details) == ("comparisons", split, True)
        assert note.endswith("alone is evaluated") == (split is None)
    configs: dict[str, StageConfig] = {"reward": Reward(inputs={"model": MODEL, "data": ["path:mine.jsonl"]})}
    add_implied_steps(configs, ArtifactStore(tmp_path))
    learned = configs["reward.data"]
    assert isinstance(learned, Data)
    assert not learned.details  # so its key is what it was


@pytest.mark.parametrize(
    ("learned", "source", "split", "note"),
    [
        ("own", "own/part.jsonl", None, "so the test split of path:own/part.jsonl alone is evaluated"),
        ("own/part.jsonl", "own", None, "so the test split of path:own alone is evaluated"),
        ("named", "named/test.jsonl", "test", ""),  # held out by its name
        ("named", "named/train.jsonl", "test", "a model here was trained on it"),
        ("named/train.jsonl", "named/train.jsonl", "test", "a model here was trained on it"),
        ("named/train.jsonl", "named/test.jsonl", "test", ""),
        ("own", "own_too", "test", ""),  # no path within another
    ],
)
def test_files_of_a_folder_that_a_model_learned_from(
    learned: str, source: str, split: str | None, note: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("own/part.jsonl", "own/other.jsonl", "own_too/part.jsonl", "named/train.jsonl", "named/test.jsonl"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text("{}")
    sft = Sft(inputs={"model": MODEL, "data": [f"path:{learned}"]})
    evaluate = Evaluate(inputs={"model": "sft", "prompts": f"path:{source}"})
    data, said = data_of(tmp_path / "store", "prompts", evaluate, sft=sft)
    assert data.split == split
    assert said.endswith(note)
    assert bool(said) == bool(note)


@pytest.mark.parametrize("slot", ["baseline", "reward_model"])
def test_a_baselines_data_counts_too(slot: str, tmp_path: Path) -> None:
    sft = Sft(inputs={"model": MODEL, "data": ["path:mine.jsonl"]})
    config = Evaluate(inputs={"model": MODEL, slot: "sft", "prompts": "path:mine.jsonl"})
    assert data_of(tmp_path, "prompts", config, sft=sft)[0].split is None


def test_what_an_artifact_of_the_store_learned_from_counts_too(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path / "store")
    parent: dict[str, str] | None = None
    for stage, kind, config in (
        ("data", "demonstrations", {"source": "path:mine.jsonl", "inputs": {}}),
        ("sft", "model", {"inputs": {}}),
    ):
        payload = tmp_path / stage
        payload.mkdir()
        inputs = {"data": [parent]} if parent else {}
        made = store.commit(stage, stage * 8, payload, {"kind": kind, "inputs": inputs, "config": config})
        parent = {"ref": stage, "stage": stage, "key": made.key, "digest": made.digest}
    store.publish("mine/sft", made)
    for model, split in (("mine/sft", None), (MODEL, "test")):
        config = Evaluate(inputs={"model": model, "prompts": "path:mine.jsonl"})
        assert data_of(store.root, "prompts", config)[0].split == split


def test_training_splits_a_file_as_before(tmp_path: Path) -> None:
    configs: dict[str, StageConfig] = {"sft": Sft(inputs={"model": MODEL, "data": "path:mine.jsonl"})}
    add_implied_steps(configs, ArtifactStore(tmp_path))
    assert configs["sft.data"] == Data(source="path:mine.jsonl", record="demonstrations")
    assert configs["sft.model"] == ImportModel(source=MODEL)
