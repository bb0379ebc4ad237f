"""The stage `dpo` on the toy pipeline's own model: what it learns from, exact resumes, memory, adapters."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import mostly_slow
from datasets import Dataset
from documents import ROOT
from stage_jobs import Dead, dying_after, job_at, log_of, made_by, planned, result_of
from transformers import AutoModelForCausalLM

from align.configs import Dpo, LoraConfig
from align.data.records import Row, read_rows
from align.errors import ConfigError
from align.models.load import load_model, load_tokenizer
from align.runtime.job import Inputs
from align.runtime.tracking import metric_name
from align.stages import dpo
from align.store.artifacts import Artifact
from align.text.chat import encode_dialogues, encode_prompts

sys.path.insert(0, str(ROOT / "pipelines"))
KNOBS: dict[str, Any] = {"batch_size": 6, "learning_rate": 1e-3, "warmup_steps": 0, "seed": 5}


@pytest.fixture(scope="module")
def inputs(finished: Path) -> Inputs:
    return Inputs(model=made_by(finished, "sft"), data=made_by(finished, "compare"))


def run(inputs: Inputs, folder: Path, hardware: dict[str, Any] | None = None, **knobs: Any) -> dict[str, float]:
    """The metrics of the whole run."""
    return dpo.run(planned(Dpo(**{**KNOBS, **knobs})), inputs, job_at(folder, **(hardware or {})))


def of_rows(folder: Path, train: list[Row], validation: list[Row] | None = None) -> tuple[Artifact, ...]:
    """A dataset of comparisons with these rows."""
    folder.mkdir(parents=True)
    for split, rows in (("train", train), ("validation", validation or [])):
        if rows:
            Dataset.from_list(rows).to_parquet(folder / f"{split}.parquet")
    return (Artifact("data", "0" * 64, "comparisons", folder),)


def test_it_begins_at_the_given_model_and_learns_the_order(inputs: Inputs, tmp_path: Path) -> None:
    from dashboard import named_metrics

    made = run(inputs, tmp_path, num_epochs=3)
    first, *_, last = log_of(tmp_path)
    panels = {name for name in named_metrics() if name.startswith("dpo/")}
    assert panels - {metric_name("dpo", name) for name in (*first, *made)} == {"dpo/time/seconds"}
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert first["rewards/margin"] == pytest.approx(0, abs=1e-6)
    assert last["loss"] < 0.65
    assert last["rewards/chosen"] - last["rewards/rejected"] == pytest.approx(last["rewards/margin"], abs=1e-6)
    assert made["eval/margin"] > 0
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").config.model_type == "gpt_neox"


def log_ratio(models: tuple[Any, Any], asked: list[int], whole: list[int]) -> tuple[float, int]:
    """log pi - log pi_ref of a response, from forward passes of it alone, and its tokens."""
    found = []
    for model in models:
        with torch.no_grad():
            logprobs = model(torch.tensor([whole])).logits[0, :-1].log_softmax(-1)
        found.append(float(logprobs.gather(1, torch.tensor(whole[1:])[:, None])[len(asked) - 1 :].sum()))
    return found[0] - found[1], len(whole) - len(asked)


@pytest.mark.parametrize("loss", ["sigmoid", "ipo", "robust"])
def test_the_loss_is_that_of_plain_forward_passes(inputs: Inputs, tmp_path: Path, loss: str) -> None:
    """After training, on held-out rankings. Of a prompt with an earlier answer, only the response counts: ipo divides
    by its tokens.
    """
    rows = [row for row in read_rows(inputs.folders("data"), "validation") if len(set(row["ranks"])) > 1][:6]
    again = {"role": "assistant", "content": "In Oakvale, she said."}
    rows = [{**row, "prompt": [*row["prompt"], again, *row["prompt"]]} for row in rows]
    data = of_rows(tmp_path / "data", [dict(row) for row in read_rows(inputs.folders("data"), "train")], rows)
    ranked, smoothing = Inputs(model=inputs["model"], data=data), 0.2 if loss == "robust" else 0.0
    made = run(ranked, tmp_path / "run", loss=loss, label_smoothing=smoothing)
    models = load_model(tmp_path / "run/out"), load_model(inputs.one("model").path)
    tokenizer = load_tokenizer(tmp_path / "run/out")
    losses, right, pairs, gained, tokens = [], 0.0, 0, 0.0, 0
    for row in rows:
        (asked,) = encode_prompts(tokenizer, [row["prompt"]])
        whole = encode_dialogues(tokenizer, [row["prompt"]] * len(row["responses"]), row["responses"])
        found = [log_ratio(models, asked, ids) for ids in whole]
        of_row = []
        firsts = {
            text: each for text, each, rank in zip(row["responses"], found, row["ranks"], strict=True) if rank == 1
        }
        for gain, count in firsts.values():
            gained, tokens = gained + gain, tokens + count
        for (better, long), rank in zip(found, row["ranks"], strict=True):
            for (worse, short), other in zip(found, row["ranks"], strict=True):
                if rank < other:
                    right_one, turned = (math.log1p(math.exp(sign * 0.1 * (worse - better))) for sign in (1, -1))
                    of_row.append(
                        {
                            "sigmoid": right_one,
                            "ipo": (better / long - worse / short - 5) ** 2,
                            "robust": (0.8 * right_one - 0.2 * turned) / 0.6,
                        }[loss]
                    )
                    right += (better > worse) + 0.5 * (better == worse)
                    pairs += 1
        losses.append(sum(of_row) / len(of_row))
    assert made["eval/loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-4)
    assert made["eval/chosen_per_token"] == pytest.approx(gained / tokens, rel=1e-3)
    assert made["held_out_prompts"] == len(rows)
    assert made["eval/accuracy"] == pytest.approx(right / pairs, abs=1.5 / pairs)  # rounding orders equal responses


def test_what_bounds_memory_changes_nothing(inputs: Inputs, tmp_path: Path, passes: Any) -> None:
    """Rankings of more tokens than a pass may have go through in parts, with the same gradient."""
    run(inputs, tmp_path / "whole")
    passes.tokens.clear()
    run(inputs, tmp_path / "parts", {"micro_batch_tokens": 64})
    assert max(passes.tokens) <= 64
    for one, two in zip(log_of(tmp_path / "whole"), log_of(tmp_path / "parts"), strict=True):
        assert one == pytest.approx(two, rel=2e-3, abs=1e-4)


@pytest.mark.parametrize("after", mostly_slow([*range(1, 13), 20], [1, 20]))
def test_a_run_that_died_ends_as_if_it_had_not(inputs: Inputs, tmp_path: Path, after: int) -> None:
    knobs = {**KNOBS, "batch_size": 2, "max_loss_rise": 0.001}  # leaves steps out, by the losses before them
    dpo.run(planned(Dpo(**knobs)), inputs, job_at(tmp_path / "whole"))
    with pytest.raises(Dead):
        dpo.run(planned(Dpo(**knobs)), inputs, job_at(tmp_path / "died", dying_after(after), checkpoint_seconds=0))
    dpo.run(planned(Dpo(**knobs)), inputs, job_at(tmp_path / "died", checkpoint_seconds=0))
    assert len(log_of(tmp_path / "whole")) >= 12
    assert "step_left_out" in (tmp_path / "whole/out/events.jsonl").read_text()
    assert result_of(tmp_path / "died") == result_of(tmp_path / "whole")


def test_an_adapter_is_trained_on_the_given_model(inputs: Inputs, tmp_path: Path) -> None:
    made = run(inputs, tmp_path, lora=LoraConfig(rank=4), learning_rate=1e-2)
    (first, *_) = log_of(tmp_path)
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert made["trained_parameters"] < made["parameters"] / 2
    assert json.loads((tmp_path / "out/adapter_config.json").read_text())["r"] == 4
    assert made["eval/margin"] > 0


def test_equal_responses_are_read_once(inputs: Inputs, tmp_path: Path) -> None:
    prompt = [{"role": "user", "content": "Where?"}]
    rows = [{"prompt": prompt, "responses": ["a b", "b", "a b"], "ranks": [1, 2, 1]}]
    twice = [{"prompt": prompt, "responses": ["a b", "b"], "ranks": [1, 2]}]
    metrics = [
        run(Inputs(model=inputs["model"], data=of_rows(tmp_path / name, given, given)), tmp_path / f"run {name}")
        for name, given in (("three", rows), ("two", twice))
    ]
    assert metrics[0]["tokens"] == metrics[1]["tokens"]
    assert metrics[0]["eval/loss"] == pytest.approx(metrics[1]["eval/loss"], rel=1e-5)


def test_rankings_that_teach_nothing_are_named(inputs: Inputs, tmp_path: Path) -> None:
    prompt = [{"role": "user", "content": "Where?"}]
    tied = of_rows(tmp_path / "data", [{"prompt": prompt, "responses": ["a", "b"], "ranks": [1, 1]}])
    with pytest.raises(ConfigError, match="no ranking is left to learn from"):
        run(Inputs(model=inputs["model"], data=tied), tmp_path / "run")


@pytest.mark.parametrize(
    ("knobs", "said"),
    [
        ({"loss": "kto"}, "loss: expected sigmoid or ipo or hinge or robust, got 'kto'"),
        ({"kl_coef": 0.0}, "kl_coef: expected a number above 0, got 0.0"),
        ({"label_smoothing": 0.5}, "label_smoothing: expected a number from 0 up, below 0.5, got 0.5"),
        ({"loss": "robust"}, "label_smoothing: expected above 0 with loss=robust, got 0.0"),
        ({"label_smoothing": 0.1, "loss": "ipo"}, "label_smoothing: expected 0 with loss=ipo, got 0.1"),
        ({"lora": LoraConfig(rank=4, dropout=0.1)}, "lora.dropout: expected 0: the loss compares"),
    ],
)
def test_knobs_that_contradict_each_other_are_refused(knobs: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Dpo(**{**KNOBS, **knobs})
    assert said in str(caught.value)
