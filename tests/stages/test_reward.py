"""The reward stage on the toy pipeline's own models: rankings too large for one pass, and what is left out."""

from __future__ import annotations

import dataclasses
import re
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import mostly_slow
from stage_jobs import job_at, log_of, made_by, planned
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from align.configs import LoraConfig, Reward
from align.data.records import read_rows
from align.errors import ConfigError
from align.runtime.job import Inputs
from align.stages import reward

KNOBS: dict[str, Any] = {"batch_size": 6, "learning_rate": 1e-3, "seed": 5}


@pytest.fixture(scope="module")
def inputs(finished: Path) -> Inputs:
    return Inputs(
        model=made_by(finished, "sft"),
        data=made_by(finished, "compare"),
        demonstrations=made_by(finished, "demonstrations"),
    )


def run(inputs: Inputs, folder: Path, hardware: dict[str, Any] | None = None, **knobs: Any) -> dict[str, float]:
    return reward.run(planned(Reward(**{**KNOBS, **knobs})), inputs, job_at(folder, **(hardware or {})))


@pytest.mark.parametrize("rank", [None, pytest.param(2, marks=pytest.mark.slow)], ids=["full", "lora"])
@pytest.mark.parametrize(
    "hardware",
    mostly_slow([{"micro_batch_tokens": 40}, {"activation_checkpointing": True}], [{"activation_checkpointing": True}]),
)
def test_what_bounds_memory_changes_nothing(inputs, tmp_path, hardware, rank):
    """With 40 tokens a pass, no ranking fits into one: its scores are computed first, then each with its gradient."""
    lora = LoraConfig(rank=rank)
    slow = {"lora": lora, "learning_rate": 1e-4}  # Adam's first steps turn rounding errors into steps of full size
    whole = run(inputs, tmp_path / "whole", **slow)
    bounded = run(inputs, tmp_path / "bounded", hardware, **slow)
    for one, other in zip(log_of(tmp_path / "whole"), log_of(tmp_path / "bounded"), strict=True):
        assert one == pytest.approx(other, rel=2e-4)
    assert whole == pytest.approx(bounded, rel=1e-3)


@pytest.mark.parametrize("tokens", [40, 4096], ids=["in parts", "packed"])
def test_the_accuracy_that_is_logged_is_that_of_the_batch_before_it_is_learned(inputs, tmp_path, tokens):
    """A batch of all held-out rankings is put in order as well as they are when they are held out."""
    held_out = inputs.one("data")
    folder = Path(shutil.copytree(held_out.path, tmp_path / "data"))
    rows = pq.read_table(folder / "validation.parquet").slice(0, 12)  # more of them are half right: that tells nothing
    for split in ("train", "validation"):
        pq.write_table(rows, folder / f"{split}.parquet")
    same = Inputs({**inputs, "data": (dataclasses.replace(held_out, path=folder),)})
    hardware = {"micro_batch_tokens": tokens}
    metrics = run(same, tmp_path / "run", hardware, batch_size=1000, num_epochs=1, learning_rate=1e-12)
    (row,) = log_of(tmp_path / "run")
    assert row["accuracy"] == pytest.approx(metrics["accuracy"], abs=1e-6)
    assert row["accuracy"] != pytest.approx(0.5, abs=0.01)


def test_demonstrations_that_are_too_long_for_the_mean_are_counted(inputs, tmp_path, capsys):
    rows = list(read_rows(inputs.folders("demonstrations"), "train"))
    run(inputs, tmp_path, sequence_length=36)
    found = re.search(r"(\d+) of (\d+) demonstrations left out of the mean that is 0", capsys.readouterr().err)
    assert found is not None
    assert 0 < int(found[1]) < int(found[2]) == len(rows)


def test_no_pass_has_more_tokens_than_asked_and_layers_compute_twice_where_asked(inputs, tmp_path, passes):
    for tokens in (64, 512):  # a ranking in parts, and several rankings together
        run(inputs, tmp_path / str(tokens), {"micro_batch_tokens": tokens, "activation_checkpointing": True})
        assert max(passes.learning) <= tokens
    assert max(passes.tokens) <= 512
    assert len(passes.twice) == 2  # a layer of each run's model


def test_merged_a_reward_model_is_published_whole(inputs, tmp_path):
    run(inputs, tmp_path, lora=LoraConfig(rank=2, merged=True))
    assert not (tmp_path / "out/adapter_config.json").exists()
    opened = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    before = AutoModelForSequenceClassification.from_pretrained(inputs.one("model").path, num_labels=1).state_dict()
    assert opened.state_dict().keys() == before.keys()
    trunk = [name for name in before if name != "score.weight"]
    assert any(not torch.equal(opened.state_dict()[name], before[name]) for name in trunk)


def test_rankings_that_are_too_long_are_counted(inputs, tmp_path, capsys):
    rows = {split: len(list(read_rows(inputs.folders("data"), split))) for split in ("train", "validation")}
    metrics = run(inputs, tmp_path / "some", sequence_length=36)
    assert metrics["dropped"] > 0
    told = capsys.readouterr().err
    found = re.search(rf"(\d+) of {rows['train']} train rankings left out: (\d+) all tied; (\d+) longer than", told)
    assert found is not None
    dropped, tied, too_long = map(int, found.groups())
    assert dropped == metrics["dropped"] == tied + too_long
    of_training = list(read_rows(inputs.folders("data"), "train"))
    assert tied == sum(len(set(row["ranks"])) == 1 for row in of_training) > 0
    assert f" of {rows['validation']} validation rankings left out: " in told
    assert "optimizer steps: fewer than 50" in told
    with pytest.raises(ConfigError, match="no ranking is left"):
        run(inputs, tmp_path / "none", sequence_length=4)


@pytest.mark.parametrize("tokens", [40, 4096], ids=["in parts", "packed"])
def test_equal_responses_count_as_often_as_they_stand_there(inputs, tmp_path, tokens):
    """The model reads them once; the loss is that of all pairs, scored one by one by the published classifier."""
    held_out = inputs.one("data")
    folder = Path(shutil.copytree(held_out.path, tmp_path / "data"))
    table = pq.read_table(folder / "train.parquet")
    rows = [row for row in table.to_pylist() if len(set(row["responses"])) > 2][:4]
    for row in rows:
        one, two, three = list(dict.fromkeys(row["responses"]))[:3]
        row.update(responses=[one, two, one, three, two], ranks=[1, 2, 3, 2, 1], gold=[0.0] * 5)
    for split in ("train", "validation"):
        pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), folder / f"{split}.parquet")
    same = Inputs({**inputs, "data": (dataclasses.replace(held_out, path=folder),)})
    run(same, tmp_path / "run", {"micro_batch_tokens": tokens}, batch_size=4, num_epochs=1, learning_rate=1e-12)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run/out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run/out")
    losses = []
    for row in rows:
        texts = [[*row["prompt"], {"role": "assistant", "content": text}] for text in row["responses"]]
        ids = [tokenizer.apply_chat_template(text, return_dict=False) for text in texts]
        scores = [model(torch.tensor([each])).logits.item() for each in ids]
        pairs = [scores[a] - scores[b] for a in range(5) for b in range(5) if row["ranks"][a] < row["ranks"][b]]
        losses.append(-torch.nn.functional.logsigmoid(torch.tensor(pairs)).mean().item())
    (logged,) = log_of(tmp_path / "run")
    assert logged["loss"] == pytest.approx(sum(losses) / 4, rel=1e-4)
