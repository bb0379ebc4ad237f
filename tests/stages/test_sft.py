"""The sft stage on the toy pipeline's own models: what a step is, exact resumes, and which epoch is kept."""

from __future__ import annotations

import dataclasses
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import mostly_slow
from stage_jobs import Dead, dying_after, job_at, log_of, made_by, planned, result_of
from transformers import AutoModelForCausalLM, AutoTokenizer

from align.configs import LoraConfig, Sft
from align.data.records import read_rows, write_info, write_rows
from align.errors import ConfigError, HealthStop
from align.models.load import load_model
from align.runtime.job import Inputs
from align.stages import sft
from align.store.artifacts import Artifact
from align.text.chat import encode_conversations

KNOBS: dict[str, Any] = {"num_epochs": 3, "batch_size": 20, "learning_rate": 1e-3, "seed": 5}


@pytest.fixture(scope="module")
def inputs(finished: Path) -> Inputs:
    return Inputs(
        model=made_by(finished, "pretrain"), data=made_by(finished, "demonstrations"), text=made_by(finished, "text")
    )


def run(inputs: Inputs, folder: Path, hardware: dict[str, Any] | None = None, **knobs: Any) -> list[dict[str, float]]:
    """The metrics of each step; those before the first are left out."""
    sft.run(planned(Sft(**{**KNOBS, **knobs})), inputs, job_at(folder, **(hardware or {})))
    return log_of(folder)[1:]


def demonstrations(folder: Path, **splits: list[tuple[str, str]]) -> tuple[Artifact, ...]:
    """A dataset of questions and answers."""
    folder.mkdir()
    for split, pairs in splits.items():
        rows = [
            {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]}
            for asked, answer in pairs
        ]
        write_rows(folder, split, rows)
    write_info(folder, record="demonstrations", source="path:mine.jsonl", licence="yours", dropped={})
    return (Artifact("data", "0" * 64, "demonstrations", folder),)


def plain_loss(folder: Path, data: Path, split: str) -> float:
    """The mean loss over the assistant's tokens, one conversation at a time, by plain Transformers."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    nats, count = 0.0, 0
    for row in read_rows([data], split):
        (encoded,) = encode_conversations(tokenizer, [row["messages"]])
        ids = torch.tensor([encoded.ids])
        labels = ids.masked_fill(~torch.tensor([encoded.by_assistant]), -100)
        with torch.no_grad():
            logits = model(ids).logits[0, :-1]
        nats += float(F.cross_entropy(logits, labels[0, 1:], ignore_index=-100, reduction="sum"))
        count += int((labels[0, 1:] != -100).sum())
    return nats / count


# -- what a step is ----------------------------------------------------------------------------------------------


def test_a_step_is_that_of_trl_on_the_same_rows(inputs, tmp_path):
    """trl.SFTTrainer with one step over all demonstrations: the same loss, and the same weights after it."""
    import datasets
    from trl import SFTConfig, SFTTrainer

    folder, data = inputs.one("model").path, inputs.one("data").path
    rows = list(read_rows([data], "train"))
    (first, *_) = run(inputs, tmp_path / "ours", num_epochs=1, batch_size=len(rows), final_learning_rate_fraction=1.0)
    model, tokenizer = load_model(folder), AutoTokenizer.from_pretrained(folder)
    encoded = encode_conversations(tokenizer, [row["messages"] for row in rows])
    examples = [
        {
            "input_ids": e.ids,
            "labels": [token if by else -100 for token, by in zip(e.ids, e.by_assistant, strict=True)],
        }
        for e in encoded
    ]
    arguments = SFTConfig(
        output_dir=str(tmp_path / "trl"),
        max_steps=1,
        per_device_train_batch_size=len(rows),
        learning_rate=KNOBS["learning_rate"],
        lr_scheduler_type="constant",
        weight_decay=0.0,
        adam_beta2=0.95,
        max_grad_norm=1.0,
        logging_steps=1,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        log_level="error",
        activation_checkpointing=False,
    )
    trainer = SFTTrainer(
        model=model, args=arguments, train_dataset=datasets.Dataset.from_list(examples), processing_class=tokenizer
    )
    trainer.train()
    theirs = next(row for row in trainer.state.log_history if "loss" in row)
    assert first["loss"] == pytest.approx(theirs["loss"], abs=1e-4)
    assert first["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-3)
    ours = load_model(tmp_path / "ours/out").state_dict()
    for name, value in trainer.model.state_dict().items():
        torch.testing.assert_close(ours[name], value, rtol=0, atol=2e-5)


def test_a_batch_counts_demonstrations_and_every_one_comes_once_an_epoch(inputs, tmp_path):
    rows = list(read_rows(inputs.folders("data"), "train"))
    log = run(inputs, tmp_path)
    assert len(log) == 3 * math.ceil(len(rows) / 20)
    with_eval = [row["step"] for row in log if "eval/loss" in row]
    assert with_eval == [5, 10, 15]


def test_the_validation_loss_before_and_after_is_that_of_plain_transformers(inputs, tmp_path, capsys):
    metrics = sft.run(planned(Sft(**KNOBS)), inputs, job_at(tmp_path))
    data = inputs.one("data").path
    assert metrics["eval/loss"] == pytest.approx(plain_loss(tmp_path / "out", data, "validation"), abs=1e-5)
    before = plain_loss(inputs.one("model").path, data, "validation")
    assert metrics["eval/loss_before"] == pytest.approx(before, abs=1e-5)
    assert log_of(tmp_path)[0] == {"step": 0, "eval/loss": metrics["eval/loss_before"]}
    assert "did not fall" not in capsys.readouterr().err


def test_a_validation_loss_that_does_not_fall_is_said(inputs, tmp_path, capsys):
    data = demonstrations(
        tmp_path / "data", train=[("Who is Ada?", "A sailor.")] * 20, validation=[("Who is Ada?", "No idea at all.")]
    )
    run(Inputs({**inputs, "data": data}), tmp_path / "run", num_epochs=1, learning_rate=1e-1)
    assert "the validation loss did not fall: " in capsys.readouterr().err


BOUNDS = [{"micro_batch_tokens": 64}, {"activation_checkpointing": True}]


@pytest.mark.parametrize("hardware", mostly_slow(BOUNDS, BOUNDS[:1]))
def test_what_bounds_memory_changes_nothing(inputs, tmp_path, hardware):
    plain, bounded = run(inputs, tmp_path / "plain"), run(inputs, tmp_path / "bounded", hardware)
    for one, other in zip(plain, bounded, strict=True):
        assert one == pytest.approx(other, rel=1e-4)


def test_no_pass_has_more_tokens_than_asked_and_layers_compute_twice_where_asked(inputs, tmp_path, passes):
    run(inputs, tmp_path, {"micro_batch_tokens": 128, "activation_checkpointing": True}, num_epochs=1)
    assert max(passes.tokens) <= 128
    assert len(passes.twice) == 1


def test_text_makes_up_its_share_of_the_tokens(inputs, tmp_path):
    plain = sft.run(planned(Sft(**KNOBS)), inputs, job_at(tmp_path / "plain"))
    mixed = sft.run(planned(Sft(**KNOBS, text_share=0.5)), inputs, job_at(tmp_path / "mixed"))
    assert mixed["tokens"] == pytest.approx(2 * plain["tokens"], rel=0.05)
    assert log_of(tmp_path / "mixed")[1]["loss"] != log_of(tmp_path / "plain")[1]["loss"]


# -- which epoch is kept -----------------------------------------------------------------------------------------


def test_the_epoch_with_the_lowest_validation_loss_is_kept(inputs, tmp_path):
    """Validation answers that training contradicts, so that the last epoch is not the best."""
    data = demonstrations(
        tmp_path / "data", train=[("Who is Ada?", "A sailor.")] * 20, validation=[("Who is Ada?", "No idea at all.")]
    )
    given = Inputs({**inputs, "data": data})
    run(given, tmp_path / "long", learning_rate=3e-2)
    losses = [row["eval/loss"] for row in log_of(tmp_path / "long")[1:] if "eval/loss" in row]
    assert min(losses) < losses[-1]
    assert plain_loss(tmp_path / "long/out", data[0].path, "validation") == pytest.approx(min(losses), abs=1e-5)


# -- exact resumes -----------------------------------------------------------------------------------------------


FULL: dict[str, Any] = {**KNOBS, "text_share": 0.2, "batch_size": 32, "warmup_steps": 2}


@pytest.fixture(scope="module", params=[None, 2], ids=["full", "lora"])
def unbroken(request, inputs, tmp_path_factory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("unbroken")
    knobs = {**FULL, "lora": LoraConfig(rank=request.param, dropout=0.1 if request.param else 0.0)}
    sft.run(planned(Sft(**knobs)), inputs, job_at(folder, checkpoint_seconds=0))
    return folder, knobs


@pytest.mark.parametrize("after", mostly_slow(range(1, 9), [5]))
def test_a_run_that_died_ends_as_if_it_had_not(inputs, unbroken, tmp_path, after):
    whole, knobs = unbroken
    job = job_at(tmp_path, dying_after(after), checkpoint_seconds=0)
    with pytest.raises(Dead):
        sft.run(planned(Sft(**knobs)), inputs, job)
    sft.run(planned(Sft(**knobs)), inputs, job_at(tmp_path, checkpoint_seconds=0))
    assert result_of(tmp_path) == result_of(whole)


@pytest.mark.parametrize("after", mostly_slow([2, 5, 8], [5]))
def test_with_a_damaged_checkpoint_it_goes_on_from_the_one_before(inputs, unbroken, tmp_path, capsys, after):
    """Step 5 is the one after an epoch's end: the one before knows of other best weights."""
    whole, knobs = unbroken
    with pytest.raises(Dead):
        sft.run(planned(Sft(**knobs)), inputs, job_at(tmp_path, dying_after(after), checkpoint_seconds=0))
    newest = tmp_path / f"checkpoints/step-{after}"
    weights = bytearray((newest / "tensors.safetensors").read_bytes())
    weights[-1] ^= 1
    (newest / "tensors.safetensors").write_bytes(weights)
    sft.run(planned(Sft(**knobs)), inputs, job_at(tmp_path, checkpoint_seconds=0))
    told = capsys.readouterr().err
    assert f"the checkpoint of {after} is damaged" in told
    assert f"going on from {after - 1}" in told
    assert result_of(tmp_path) == result_of(whole)


def test_a_run_that_died_after_its_best_epoch_still_keeps_that(inputs, tmp_path):
    data = demonstrations(
        tmp_path / "data", train=[("Who is Ada?", "A sailor.")] * 20, validation=[("Who is Ada?", "No idea at all.")]
    )
    given, config = Inputs({**inputs, "data": data}), Sft(**{**KNOBS, "learning_rate": 3e-2})
    sft.run(planned(config), given, job_at(tmp_path / "whole", checkpoint_seconds=0))
    losses = [row["eval/loss"] for row in log_of(tmp_path / "whole")[1:]]
    best = losses.index(min(losses)) + 1
    assert best < len(losses)  # one step an epoch: the best is not the last
    for after in (best, len(losses)):
        folder = tmp_path / f"after-{after}"
        with pytest.raises(Dead):
            sft.run(planned(config), given, job_at(folder, dying_after(after), checkpoint_seconds=0))
        sft.run(planned(config), given, job_at(folder, checkpoint_seconds=0))
        assert result_of(folder) == result_of(tmp_path / "whole")


def test_a_checkpoint_finds_the_best_weights_that_it_knows_of_after_a_better_epoch(tmp_path):
    """As where a GPU trains the epochs after the checkpoint a little worse than at first."""
    parameters = {"weight": torch.nn.Parameter(torch.tensor([1.0]))}
    best = sft.BestEpoch(tmp_path, parameters, job_at(tmp_path))
    best.look(1, 0.5)
    checkpoint = best.state()
    for step, loss, value in ((2, 0.4, 2.0), (3, 0.3, 3.0)):
        parameters["weight"].data.fill_(value)
        best.look(step, loss)
    assert len(list(tmp_path.glob("best-*"))) == 2  # that of the checkpoint, and the best so far
    again = sft.BestEpoch(tmp_path, parameters, job_at(tmp_path))
    again.load_state(checkpoint)
    again.look(2, 0.6)
    again.put_back(last_step=3)
    assert parameters["weight"].item() == 1.0


# -- what is refused and said ------------------------------------------------------------------------------------


def test_what_is_too_long_is_counted_and_nothing_left_is_refused(inputs, tmp_path, capsys):
    rows = list(read_rows(inputs.folders("data"), "train"))
    metrics = sft.run(planned(Sft(**KNOBS, sequence_length=24)), inputs, job_at(tmp_path / "some"))
    assert 0 < metrics["dropped"] < len(rows)
    assert metrics["demonstrations"] + metrics["dropped"] == len(rows)
    told = capsys.readouterr().err
    assert f"{metrics['dropped']:.0f} of {len(rows)} train demonstrations left out: longer than" in told
    assert "validation demonstrations left out: longer than" in told
    with pytest.raises(ConfigError, match="it has no training rows"):
        run(Inputs({**inputs, "data": demonstrations(tmp_path / "none", validation=[("a", "b")])}), tmp_path / "empty")
    with pytest.raises(ConfigError, match="no demonstration is left"):
        run(inputs, tmp_path / "none", sequence_length=3)
    with pytest.raises(ConfigError, match="at most the model's context of 128"):
        run(inputs, tmp_path / "beyond", sequence_length=129)


def test_what_makes_it_doubtful_that_it_learns_is_said_first(inputs, tmp_path, capsys):
    """Few steps, and a row whose one answer has weight 0, in a template that marks nothing."""
    model = inputs.one("model")
    folder = Path(shutil.copytree(model.path, tmp_path / "model"))
    template = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}{{ eos_token }}{% endfor %}"
    (folder / "chat_template.jinja").write_text(template)
    data = demonstrations(tmp_path / "data", train=[("Who is Ada?", "A sailor.")] * 4)
    rows = list(read_rows([data[0].path], "train"))
    rows[0]["messages"][-1]["weight"] = 0
    write_rows(data[0].path, "train", rows)
    given = Inputs({**inputs, "model": (dataclasses.replace(model, path=folder),), "data": data})
    run(given, tmp_path / "run", num_epochs=1)
    said = capsys.readouterr().err
    assert "1 of 4 train demonstrations left out: no token of theirs is learned" in said
    assert "only 1 optimizer step: fewer than 50" in said


def test_text_that_no_step_reads_is_said(inputs, tmp_path, capsys):
    run(inputs, tmp_path, num_epochs=1)
    assert "inputs.text is not read: text_share is 0" in capsys.readouterr().err


def test_a_loss_that_is_not_finite_stops(inputs, tmp_path):
    with pytest.raises(HealthStop, match="lower learning_rate"):
        run(inputs, tmp_path, learning_rate=1e30)
