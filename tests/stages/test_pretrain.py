"""The pretraining stage beside a plain loop of torch and transformers, its schedules, mixtures and exact resumes."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import itertools
import json
import math
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import manifests, mostly_slow
from stage_jobs import job_at, job_with, log_of
from tiny_models import tiny_model, tiny_tokenizer
from torch._dynamo.utils import counters
from transformers import AutoModelForCausalLM

from align.configs import ModelConfig, Pretrain, TextToText
from align.errors import ConfigError, HealthStop, Preempted
from align.models.build import build_model
from align.models.load import load_tokenizer, save_model
from align.runtime.job import Inputs
from align.runtime.signals import Stop
from align.stages import pretrain
from align.store.artifacts import Artifact
from align.text.tokens import read_tokens, write_info, write_tokens
from align.training.row_order import Mixture

TEXTS = {
    "cats": ["the cat sat on the mat and the dog ran home"] * 40 + ["a dog ran home"] * 40,
    "dogs": ["and the dog sat on the cat"] * 90,
}
KNOBS: dict[str, Any] = {
    "model": ModelConfig(hidden_size=32, num_layers=2, num_heads=4, context_length=16, dropout=0.0),
    "num_steps": 3,
    "batch_size": 4,
    "learning_rate": 1e-2,
    "warmup_steps": 2,
    "eval_every": 2,
    "seed": 5,
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    folders = []
    for name, texts in TEXTS.items():
        folder = tmp_path_factory.mktemp(name)
        counts = {
            split: write_tokens(folder, split, texts[begin::5] if begin else texts, tiny_tokenizer(), lambda n: None)
            for split, begin in (("train", 0), ("validation", 3))
        }
        write_info(folder, f"path:{name}", counts)
        tiny_tokenizer().save_pretrained(folder)
        folders.append(folder)
    return Inputs(data=tuple(Artifact("tokens", f.name, "tokens", f) for f in folders))


def first(inputs: Inputs) -> Inputs:
    return Inputs(data=inputs["data"][:1])


def run(inputs: Inputs, folder: Path, hardware: dict[str, Any] | None = None, **knobs: Any) -> list[dict[str, float]]:
    """The metrics of each step."""
    pretrain.run(Pretrain(**{**KNOBS, **knobs}), inputs, job_at(folder, **(hardware or {})))
    return log_of(folder)


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return AutoModelForCausalLM.from_pretrained(folder / "out").state_dict()


def digests(folder: Path) -> dict[str, str]:
    """Every published file's sha256, but the log's times."""
    files = {p.name: p.read_bytes() for p in sorted((folder / "out").rglob("*")) if p.is_file()}
    files["metrics.jsonl"] = json.dumps(log_of(folder)).encode()
    return {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}


def close(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor], atol: float) -> None:
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, two[name], rtol=1e-4, atol=atol, msg=lambda m, name=name: f"{name}: {m}")


# -- the loop ----------------------------------------------------------------------------------------------------


def test_three_steps_are_those_of_a_plain_loop(inputs, tmp_path):
    torch.manual_seed(0)
    model = build_model(KNOBS["model"], tiny_tokenizer()).train()
    model.set_attn_implementation("eager")
    decayed = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() == 1]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-8, foreach=False)
    text = Mixture([read_tokens(inputs["data"][0].path, "train", 16)], [], 5)
    losses = []
    for step, rate in enumerate((0.5e-2, 1e-2, 1e-2)):
        rows = text.tokens(text.draw(step, 4))
        loss = model(input_ids=rows, labels=rows).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    rows = run(first(inputs), tmp_path)
    assert [row["learning_rate"] for row in rows] == pytest.approx([0.5e-2, 1e-2, 1e-2])
    assert [row["loss"] for row in rows] == pytest.approx(losses, rel=1e-5)
    close(weights_of(tmp_path), model.state_dict(), atol=2e-5)


@pytest.mark.parametrize(
    "hardware", [{"micro_batch_tokens": 16}, {"activation_checkpointing": True}], ids=["micro_batches", "checkpointing"]
)
def test_how_a_batch_goes_through_changes_nothing_beyond_rounding(inputs, tmp_path, hardware):
    run(inputs, tmp_path / "one")
    run(inputs, tmp_path / "other", hardware)
    close(weights_of(tmp_path / "one"), weights_of(tmp_path / "other"), atol=2e-5)


def test_no_pass_has_more_tokens_than_asked_and_layers_compute_twice_where_asked(inputs, tmp_path, passes):
    run(inputs, tmp_path, {"micro_batch_tokens": 32, "activation_checkpointing": True}, num_steps=1)
    assert max(passes.learning) == 32
    assert max(passes.tokens) <= 64  # the check of its attention, with a packed row of seven tokens
    assert len(passes.twice) == 2


def test_sizes_beside_a_model_that_has_its_own_are_refused_when_it_is_planned():
    given = {"data": "mine/text", "model": "mine/pretrain"}
    Pretrain(inputs=given).check_inputs()
    TextToText(inputs=given).check_inputs()
    with pytest.raises(ConfigError, match=r"model: sizes of a gpt2 are given beside inputs\.model, which has its own"):
        Pretrain(inputs=given, model=KNOBS["model"]).check_inputs()
    with pytest.raises(ConfigError, match=r"model: sizes of a t5 are given beside inputs\.model, which has its own"):
        TextToText(inputs=given, model=ModelConfig(architecture="t5", num_layers=2)).check_inputs()


def test_rows_longer_than_the_context_are_refused_when_they_are_planned():
    given = {"data": "mine/text", "tokenizer": "mine/tokenizer"}
    Pretrain(inputs=given, sequence_length=1024).check_inputs()
    with pytest.raises(ConfigError, match=r"sequence_length: expected at most model.context_length, 1024, got 1025"):
        Pretrain(inputs=given, sequence_length=1025).check_inputs()


def test_a_model_that_sees_the_future_is_refused_before_the_first_step(inputs, tmp_path):
    with pytest.raises(ConfigError, match="bert: its attention is not one that align computes"):
        run(inputs, tmp_path, model=dataclasses.replace(KNOBS["model"], architecture="bert"))


def test_it_is_said_when_nothing_is_held_out(inputs, tmp_path, capsys):
    (folder,) = {artifact.path for artifact in first(inputs)["data"]}
    bare = Path(shutil.copytree(folder, tmp_path / "bare"))
    tokens = np.load(bare / "validation.npy")
    np.save(bare / "validation.npy", tokens[:0])
    run(Inputs(data=(Artifact("tokens", "bare", "tokens", bare),)), tmp_path)
    assert "there is no row of validation text of cats: nothing" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler here")
def test_compiled_layers_learn_the_same_and_keep_their_names(inputs, tmp_path):
    run(inputs, tmp_path / "one")
    counters.clear()
    run(inputs, tmp_path / "other", {"compile": True})
    assert counters["stats"]["unique_graphs"] > 0
    close(weights_of(tmp_path / "one"), weights_of(tmp_path / "other"), atol=2e-5)


# Adafactor's learning rate is relative to the size of each matrix.
OPTIMIZERS = [("adamw", 1e-2), ("muon", 1e-2), ("adafactor", 0.3)]


@pytest.mark.parametrize(
    ("optimizer", "learning_rate", "precision"),
    mostly_slow(
        [(*optimizer, precision) for optimizer in OPTIMIZERS for precision in ("fp32", "bf16")],
        [("adamw", 1e-2, "bf16"), ("muon", 1e-2, "fp32"), ("adafactor", 0.3, "fp32")],
    ),
)
def test_every_optimizer_learns(inputs, tmp_path, optimizer, learning_rate, precision):
    knobs = {"optimizer": optimizer, "learning_rate": learning_rate, "precision": precision}
    rows = run(inputs, tmp_path, num_steps=40, **knobs)
    assert rows[-1]["loss"] < rows[0]["loss"] - 2


def test_held_out_figures_are_of_all_rows_and_of_each_source(inputs, tmp_path):
    model = tiny_model("gpt2", context=16)
    save_model(model, tiny_tokenizer(), tmp_path / "model")
    given = Inputs(data=inputs["data"], model=(Artifact("m", "m", "model", tmp_path / "model"),))
    result = pretrain.run(Pretrain(**{**KNOBS, "num_steps": 1, "learning_rate": 1e-12}), given, job_at(tmp_path))
    nats, tokens, size = [], [], []
    for folder in inputs.folders("data"):
        rows = read_tokens(folder, "validation", 16)
        with torch.no_grad():
            nats.append(float(model(input_ids=rows[:], labels=rows[:]).loss) * len(rows) * 15)
        tokens.append(len(rows) * 15)
        size.append(tokens[-1] * rows.bytes_per_token)
    assert result["eval/loss"] == pytest.approx(sum(nats) / sum(tokens), rel=1e-5)
    assert result["eval/bits_per_byte"] == pytest.approx(sum(nats) / math.log(2) / sum(size), rel=1e-5)
    for name, n, t, s in zip(TEXTS, nats, tokens, size, strict=True):
        assert result[f"eval/{name}/loss"] == pytest.approx(n / t, rel=1e-5)
        assert result[f"eval/{name}/perplexity"] == pytest.approx(math.exp(n / t), rel=1e-4)
        assert result[f"eval/{name}/bits_per_byte"] == pytest.approx(n / math.log(2) / s, rel=1e-5)


def test_isolated_documents_do_not_see_each_other(inputs, tmp_path):
    """That each has the loss it has alone is in tests/unit/test_text_eval.py; here, that the knob reaches it."""
    joined = run(first(inputs), tmp_path / "joined")
    apart = run(first(inputs), tmp_path / "apart", isolate_documents=True)
    assert apart[0]["loss"] != pytest.approx(joined[0]["loss"], rel=1e-4)


# -- schedules ---------------------------------------------------------------------------------------------------


def rates(inputs: Inputs, folder: Path, **knobs: Any) -> list[float]:
    return [row["learning_rate"] for row in run(first(inputs), folder, learning_rate=1.0e-3, **knobs)]


def test_gpt1_s_schedule(inputs, tmp_path):
    found = rates(inputs, tmp_path, num_steps=12, warmup_steps=4, final_learning_rate_fraction=0.0)
    cosine = [0.5 * (1 + math.cos(math.pi * i / 8)) for i in range(8)]
    assert found == pytest.approx([1e-3 * x for x in (0.25, 0.5, 0.75, 1.0, *cosine)])


def test_gpt3_s_schedule_goes_by_tokens(inputs, tmp_path):
    """128 tokens of warm-up, a tenth from 512 tokens on; batches of 4 rows of 16."""
    knobs = {"num_steps": 12, "warmup_tokens": 128, "decay_tokens": 512}
    found = rates(inputs, tmp_path, **knobs)
    assert found[2] == pytest.approx(1e-3)  # 128 tokens are done
    assert found[1] < 1e-3
    assert found[8:] == pytest.approx([1e-4] * 4)
    assert found[5] == pytest.approx(1e-3 * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * (320 - 128) / (512 - 128)))))


def test_t5_s_schedule(inputs, tmp_path):
    found = rates(inputs, tmp_path, num_steps=10, schedule="inverse_square_root", warmup_steps=4)
    assert found == pytest.approx([1e-3 * math.sqrt(4 / max(4, n)) for n in range(10)])


def test_a_batch_grows_from_its_start(inputs, tmp_path):
    seen: list[int] = []

    def watching(share: Callable[..., Any], items: Any) -> Any:
        seen.append(len(items))
        return share(items)

    cfg = Pretrain(**{**KNOBS, "num_steps": 8, "ramp_tokens": 256, "ramp_start_tokens": 16})
    result = pretrain.run(cfg, first(inputs), job_at(tmp_path, job_with({"group.share": watching})))
    # 1 + 3 x / 16 of the x rows that were seen, rounded
    assert seen == [1, 1, 1, 2, 2, 2, 3, 3]
    assert result["tokens"] == 16 * sum(seen)


def test_passes_say_how_many_steps(inputs, tmp_path):
    rows = len(read_tokens(inputs["data"][0].path, "train", 16))
    assert len(run(first(inputs), tmp_path, num_epochs=1.5)) == math.ceil(1.5 * rows / 4)


def test_weights_say_how_often_a_source_is_gone_through(inputs, tmp_path):
    rows = run(inputs, tmp_path, weights=[0.2, 0.6], num_steps=30)
    sizes = [len(read_tokens(folder, "train", 16)) for folder in inputs.folders("data")]
    taken = [rows[-1][f"passes/{name}"] * size for name, size in zip(TEXTS, sizes, strict=True)]
    assert sum(taken) == pytest.approx(30 * 4)
    assert taken[0] / 120 == pytest.approx(0.25, abs=4 * math.sqrt(0.25 * 0.75 / 120))


# -- going on ----------------------------------------------------------------------------------------------------

FULL: dict[str, Any] = {  # everything that has a state of its own
    "model": dict(KNOBS)["model"],
    "num_steps": 12,
    "weights": [1.0, 2.0],
    "ramp_tokens": 512,
    "ramp_start_tokens": 32,
    "max_loss_rise": 0.05,
    "isolate_documents": True,
}


def full(optimizer: str) -> dict[str, Any]:
    model = copy.copy(KNOBS["model"])
    model.dropout = 0.1
    return {**FULL, "model": model, "optimizer": optimizer}


@pytest.fixture(scope="module", params=["adamw", "muon", "adafactor"])
def unbroken(request, inputs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken")
    run(inputs, folder, **full(request.param))
    return request.param, digests(folder)


@pytest.mark.parametrize("k", mostly_slow(range(1, 12), [6]))
def test_stopped_at_any_step_it_goes_on_to_the_same_files(inputs, unbroken, tmp_path, k):
    optimizer, whole = unbroken
    stop = Stop()

    def log_and_stop(log: Callable[..., None], metrics: Any, step: int) -> None:
        log(metrics, step)
        if step == k:
            stop.signal = signal.SIGTERM

    cfg = Pretrain(**{**KNOBS, **full(optimizer)})
    with pytest.raises(Preempted):
        pretrain.run(cfg, inputs, job_at(tmp_path, job_with({"log.metrics": log_and_stop}), stop))
    torch.manual_seed(k)
    pretrain.run(cfg, inputs, job_at(tmp_path))
    assert digests(tmp_path) == whole


# -- guards and refusals -----------------------------------------------------------------------------------------


def test_a_step_that_is_not_finite_is_left_out_where_asked(inputs, tmp_path, monkeypatch):
    losses = itertools.count()
    true = pretrain.summed_loss
    monkeypatch.setattr(
        pretrain,
        "summed_loss",
        lambda model, rows, *rest: true(model, rows, *rest) * (math.nan if next(losses) == 1 else 1),
    )
    rows = run(first(inputs), tmp_path, num_steps=4, on_nonfinite="skip", eval_every=100)
    assert [math.isfinite(row["loss"]) for row in rows] == [True, False, True, True]
    (event,) = [json.loads(line) for line in (tmp_path / "out/events.jsonl").read_text().splitlines()]
    assert event["step"] == 2
    assert event["name"] == "step_left_out"
    assert all(w.isfinite().all() for w in weights_of(tmp_path).values())
    losses = itertools.count()
    with pytest.raises(HealthStop, match="lower learning_rate, or give on_nonfinite=skip"):
        run(first(inputs), tmp_path / "stop", num_steps=4)


def test_a_step_left_out_moves_no_weight(inputs, tmp_path, monkeypatch):
    monkeypatch.setattr(pretrain.Guard, "refuses", lambda self, step, loss, norm: "no" if step else None)
    run(first(inputs), tmp_path / "one", num_steps=1, schedule="constant")
    run(first(inputs), tmp_path / "three", num_steps=3, schedule="constant")
    close(weights_of(tmp_path / "one"), weights_of(tmp_path / "three"), atol=0)


def test_tokens_of_another_tokenizer_than_the_model_s_are_refused(inputs, finished, tmp_path):
    made = manifests(finished)["pretrain"]
    model = Artifact("pretrain", made["key"], "model", finished / "objects/pretrain" / made["key"])
    with pytest.raises(ConfigError, match="expected tokens of one tokenizer"):
        run(Inputs(data=inputs["data"], model=(model,)), tmp_path)


def test_documents_too_few_for_a_row_are_told_by_name(inputs, tmp_path):
    model = copy.copy(KNOBS["model"])
    model.context_length = 4096
    with pytest.raises(ConfigError, match="training documents of cats do not fill one row of 4096 tokens"):
        run(first(inputs), tmp_path, model=model)
    with pytest.raises(ConfigError, match="batch_size: the documents fill only"):
        run(first(inputs), tmp_path, batch_size=4096)


def test_the_model_has_the_tokens_tokenizer(inputs, tmp_path):
    run(first(inputs), tmp_path)
    assert load_tokenizer(tmp_path / "out").get_vocab() == tiny_tokenizer().get_vocab()
