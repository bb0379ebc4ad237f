"""The stage `kto` on the toy pipeline's own model: what it learns from, exact resumes, memory, adapters."""

from __future__ import annotations

import itertools
import json
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

from align.cli.main import main
from align.configs import Kto, LoraConfig
from align.data.records import Row
from align.errors import ConfigError
from align.models.load import load_model, load_tokenizer
from align.runtime.job import Inputs
from align.runtime.tracking import metric_name
from align.stages import kto
from align.store.artifacts import Artifact, ArtifactStore
from align.text.chat import encode_dialogues, encode_prompts

sys.path.insert(0, str(ROOT / "pipelines"))
KNOBS: dict[str, Any] = {"batch_size": 8, "learning_rate": 1e-3, "warmup_steps": 0, "seed": 5}


@pytest.fixture(scope="module")
def inputs(finished: Path) -> Inputs:
    return Inputs(model=made_by(finished, "sft"), data=made_by(finished, "compare"))


def run(inputs: Inputs, folder: Path, hardware: dict[str, Any] | None = None, **knobs: Any) -> dict[str, float]:
    """The metrics of the whole run."""
    return kto.run(planned(Kto(**{**KNOBS, **knobs})), inputs, job_at(folder, **(hardware or {})))


def of_rows(
    folder: Path, train: list[Row], validation: list[Row] | None = None, kind: str = "unpaired"
) -> tuple[Artifact, ...]:
    """A dataset with these rows."""
    folder.mkdir(parents=True)
    for split, rows in (("train", train), ("validation", validation or [])):
        if rows:
            Dataset.from_list(rows).to_parquet(folder / f"{split}.parquet")
    return (Artifact("data", "0" * 64, kind, folder),)


def rows_of(asked: str, *answers: tuple[str, bool]) -> list[Row]:
    prompt = [{"role": "user", "content": asked}]
    return [{"prompt": prompt, "completion": text, "label": label} for text, label in answers]


GOOD_AND_BAD = [
    row
    for name in ("Tom", "Mia", "Sam", "Ann")
    for row in rows_of(f"Where is {name}?", (f"{name} is in Oakvale.", True), (f"I hate {name}.", False))
]


def test_it_begins_at_the_given_model_and_learns_the_labels(inputs: Inputs, tmp_path: Path) -> None:
    from dashboard import named_metrics

    made = run(inputs, tmp_path, num_epochs=2, batch_size=16)
    first, *others = log_of(tmp_path)
    last = others[-1]
    panels = {name for name in named_metrics() if name.startswith("kto/")}
    assert panels - {metric_name("kto", name) for name in (*first, *made)} == {"kto/time/seconds"}
    assert first["loss"] == pytest.approx(0.5, abs=1e-6)
    assert first["kl"] == pytest.approx(0, abs=1e-4)
    assert last["rewards/chosen"] - last["rewards/rejected"] == pytest.approx(last["rewards/margin"], abs=1e-6)
    assert sum(row["loss"] for row in others[-8:]) / 8 < 0.47
    assert made["eval/margin"] > 0
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").config.model_type == "gpt_neox"


@pytest.mark.parametrize("loss", ["kto", "apo_zero_unpaired"])
def test_unpaired_responses_are_told_apart(inputs: Inputs, tmp_path: Path, loss: str) -> None:
    data = of_rows(tmp_path / "data", GOOD_AND_BAD[:6] * 6, GOOD_AND_BAD[6:])
    made = run(Inputs(model=inputs["model"], unpaired=data), tmp_path, loss=loss, learning_rate=3e-3, num_epochs=2)
    log = log_of(tmp_path)
    assert log[-1]["accuracy"] == 1
    assert any(row["kl"] > 0 for row in log) == (loss == "kto")
    assert made["eval/accuracy"] == 1
    assert made["eval/margin"] > 0.1
    assert (made["responses"], made["desirable"], made["dropped"]) == (36, 18, 0)


def log_ratio(models: tuple[Any, Any], asked: list[int], whole: list[int]) -> float:
    """log pi - log pi_ref of a response, from forward passes of it alone."""
    found = []
    for model in models:
        with torch.no_grad():
            logprobs = model(torch.tensor([whole])).logits[0, :-1].log_softmax(-1)
        found.append(float(logprobs.gather(1, torch.tensor(whole[1:])[:, None])[len(asked) - 1 :].sum()))
    return found[0] - found[1]


def test_the_loss_is_that_of_plain_forward_passes(inputs: Inputs, tmp_path: Path) -> None:
    """After training on the same answers as held-out: with two prompts, every order gives the same mismatched pairs."""
    again = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "In Oakvale."}]
    (one,), (two,) = rows_of("Where is Tom?", ("Tom is in Oakvale.", True)), rows_of("Why?", ("No.", False))
    rows = [one, {**two, "prompt": [*again, *two["prompt"]]}]
    data = of_rows(tmp_path / "data", [*rows, *GOOD_AND_BAD], rows)
    given = Inputs(model=inputs["model"], unpaired=data)
    made = run(given, tmp_path, num_epochs=4, desirable_weight=2.0, undesirable_weight=0.5)
    models = load_model(tmp_path / "out"), load_model(inputs.one("model").path)
    tokenizer = load_tokenizer(tmp_path / "out")
    ratios, tokens = {}, {}
    for asking, answering in itertools.product(range(2), repeat=2):
        (asked,) = encode_prompts(tokenizer, [rows[asking]["prompt"]])
        (whole,) = encode_dialogues(tokenizer, [rows[asking]["prompt"]], [rows[answering]["completion"]])
        ratios[asking, answering] = log_ratio(models, asked, whole)
        tokens[asking, answering] = len(whole) - len(asked)
    baseline = max(0.0, (ratios[0, 1] + ratios[1, 0]) / 2)
    values = torch.sigmoid(0.1 * torch.tensor([ratios[0, 0] - baseline, baseline - ratios[1, 1]]))
    assert made["eval/kl"] == pytest.approx(baseline, abs=1e-4)
    assert made["eval/loss_before"] == pytest.approx((2 * 0.5 + 0.5 * 0.5) / 2)
    assert made["eval/chosen_per_token"] == pytest.approx(ratios[0, 0] / tokens[0, 0], abs=1e-5)
    assert made["eval/loss"] == pytest.approx((2 * (1 - float(values[0])) + 0.5 * (1 - float(values[1]))) / 2, rel=1e-4)


def test_a_mismatched_pair_that_does_not_fit_is_left_out(inputs: Inputs, tmp_path: Path) -> None:
    """A long question with a short answer, and a short one with a long answer: only the short two fit together."""
    rows = [
        *rows_of("Where is Tom? " * 4, ("In Oakvale.", True)),
        *rows_of("Where?", ("Tom is in Oakvale. " * 4, True)),
    ]
    tokenizer = load_tokenizer(inputs.one("model").path)
    asked = encode_prompts(tokenizer, [row["prompt"] for row in rows])
    whole = encode_dialogues(tokenizer, [row["prompt"] for row in rows], [row["completion"] for row in rows])
    (pair,) = encode_dialogues(tokenizer, [rows[1]["prompt"]], [rows[0]["completion"]])
    given = Inputs(model=inputs["model"], unpaired=of_rows(tmp_path / "data", rows, rows))
    made = run(given, tmp_path, num_epochs=8, sequence_length=max(map(len, whole)))
    models = load_model(tmp_path / "out"), load_model(inputs.one("model").path)
    assert made["eval/kl"] > 0.1
    assert made["eval/kl"] == pytest.approx(log_ratio(models, asked[1], pair), abs=1e-4)


def test_a_ranking_counts_above_and_below_its_middle(inputs: Inputs, tmp_path: Path) -> None:
    """A ranking of three is the pair of its ends."""
    prompt = [{"role": "user", "content": "Where?"}]
    three = [{"prompt": prompt, "responses": ["b", "a a", "c"], "ranks": [2, 1, 3]}]
    data = of_rows(tmp_path / "three", three, three, "comparisons")
    pair = rows_of("Where?", ("a a", True), ("c", False))
    unpaired = of_rows(tmp_path / "pair", pair, pair)
    one = run(Inputs(model=inputs["model"], data=data), tmp_path / "one")
    two = run(Inputs(model=inputs["model"], unpaired=unpaired), tmp_path / "two")
    assert (one.pop("dropped"), two.pop("dropped")) == (1, 0)
    assert one == two
    both = run(Inputs(model=inputs["model"], data=data, unpaired=unpaired), tmp_path / "both")
    assert both["responses"] == 4


def test_what_bounds_memory_changes_nothing(inputs: Inputs, tmp_path: Path, passes: Any) -> None:
    given = Inputs(model=inputs["model"], unpaired=of_rows(tmp_path / "data", GOOD_AND_BAD * 3, GOOD_AND_BAD))
    knobs = {"batch_size": 12, "num_epochs": 2}
    whole = run(given, tmp_path / "whole", **knobs)
    assert max(passes.tokens) > 64
    passes.tokens.clear()
    parts = run(given, tmp_path / "parts", {"micro_batch_tokens": 64}, **knobs)
    assert max(passes.tokens) <= 64
    for one, two in zip(log_of(tmp_path / "whole"), log_of(tmp_path / "parts"), strict=True):
        assert one == pytest.approx(two, rel=1e-4, abs=1e-4)
    assert whole == pytest.approx(parts, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("after", mostly_slow([*range(1, 13), 17], [1, 12]))
def test_a_run_that_died_ends_as_if_it_had_not(inputs: Inputs, tmp_path: Path, after: int) -> None:
    data = of_rows(tmp_path / "data", GOOD_AND_BAD * 3, GOOD_AND_BAD)
    given = Inputs(model=inputs["model"], unpaired=data)
    # Three passes of six steps. The guard leaves steps out, by the losses before them.
    knobs = {**KNOBS, "batch_size": 4, "num_epochs": 3, "desirable_weight": 3.0, "max_loss_rise": 0.05}
    kto.run(planned(Kto(**knobs)), given, job_at(tmp_path / "whole"))
    with pytest.raises(Dead):
        kto.run(planned(Kto(**knobs)), given, job_at(tmp_path / "died", dying_after(after), checkpoint_seconds=0))
    kto.run(planned(Kto(**knobs)), given, job_at(tmp_path / "died", checkpoint_seconds=0))
    log = log_of(tmp_path / "whole")
    assert len(log) == 18
    assert max(row["kl"] for row in log) > 0
    assert "step_left_out" in (tmp_path / "whole/out/events.jsonl").read_text()
    assert result_of(tmp_path / "died") == result_of(tmp_path / "whole")


def test_an_adapter_is_trained_on_the_given_model(inputs: Inputs, tmp_path: Path) -> None:
    data = of_rows(tmp_path / "data", GOOD_AND_BAD * 3, GOOD_AND_BAD)
    given = Inputs(model=inputs["model"], unpaired=data)
    made = run(given, tmp_path, lora=LoraConfig(rank=4), learning_rate=1e-2)
    (first, *_) = log_of(tmp_path)
    assert first["loss"] == pytest.approx(0.5, abs=1e-6)
    assert made["trained_parameters"] < made["parameters"] / 2
    assert json.loads((tmp_path / "out/adapter_config.json").read_text())["r"] == 4
    assert made["eval/margin"] > 0


@pytest.mark.parametrize(
    ("rows", "knobs", "said"),
    [
        (GOOD_AND_BAD, {}, "4 desirable and 4 undesirable training responses\n"),
        (GOOD_AND_BAD[1:], {}, "desirable_weight=1.33 weighs both alike"),
        (GOOD_AND_BAD[:3] * 2, {"undesirable_weight": 0.5}, "4 desirable and 2 undesirable training responses; "
         "undesirable_weight=2 weighs both alike"),
        (GOOD_AND_BAD[:3] * 2, {"undesirable_weight": 2.0}, "4 desirable and 2 undesirable training responses\n"),
        (GOOD_AND_BAD[::2], {}, "the model learns from one kind of label alone"),
    ],
)  # fmt: skip
def test_labels_out_of_balance_are_reported_with_a_weight(
    inputs: Inputs, tmp_path: Path, capsys: Any, rows: list[Row], knobs: dict[str, Any], said: str
) -> None:
    data = of_rows(tmp_path / "data", rows)
    run(Inputs(model=inputs["model"], unpaired=data), tmp_path, **knobs)
    assert said in capsys.readouterr().err
    (log,) = log_of(tmp_path)
    assert ("rewards/margin" in log) == ("alone" not in said)


def test_one_prompt_alone_has_no_mismatched_pair_and_a_baseline_of_zero(inputs: Inputs, tmp_path: Path) -> None:
    rows = rows_of("Where?", ("In Oakvale.", True), ("No.", False), ("In Ashby.", True))
    data = of_rows(tmp_path / "data", rows, rows)
    made = run(Inputs(model=inputs["model"], unpaired=data), tmp_path, num_epochs=3)
    assert [row["kl"] for row in log_of(tmp_path)] == [0, 0, 0]
    assert made["eval/kl"] == 0


def test_responses_that_teach_nothing_are_named(inputs: Inputs, tmp_path: Path) -> None:
    long = of_rows(tmp_path / "long", rows_of("Where?", ("In Oakvale.", True)))
    with pytest.raises(ConfigError, match=r"inputs\.unpaired: no response is left to learn from"):
        run(Inputs(model=inputs["model"], unpaired=long), tmp_path / "run", sequence_length=3)
    none = of_rows(tmp_path / "none", [], rows_of("Where?", ("In Oakvale.", True)))
    with pytest.raises(ConfigError, match=r"no training rows; .* record=unpaired split=train"):
        run(Inputs(model=inputs["model"], unpaired=none), tmp_path / "other")


@pytest.mark.parametrize(
    ("knobs", "said"),
    [
        ({"loss": "sigmoid"}, "loss: expected kto or apo_zero_unpaired, got 'sigmoid'"),
        ({"kl_coef": 0.0}, "kl_coef: expected a number above 0, got 0.0"),
        ({"desirable_weight": -1.0}, "desirable_weight: expected a number from 0 up, got -1.0"),
        ({"desirable_weight": 0.0, "undesirable_weight": 0.0}, "desirable_weight: expected a number above 0"),
        ({"batch_size": 1}, "batch_size: expected at least 2 with loss=kto"),
        ({"lora": LoraConfig(rank=4, dropout=0.1)}, "lora.dropout: expected 0: the loss compares"),
    ],
)
def test_knobs_that_contradict_each_other_are_refused(knobs: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Kto(**{**KNOBS, **knobs})
    assert said in str(caught.value)
    assert Kto(**{**KNOBS, "batch_size": 1, "loss": "apo_zero_unpaired"}).batch_size == 1


def test_it_needs_comparisons_or_unpaired_responses() -> None:
    with pytest.raises(ConfigError, match=r"expected data .* or unpaired"):
        Kto(inputs={"model": "mine/sft"}).check_inputs()
    Kto(inputs={"model": "mine/sft", "unpaired": "mine/thumbs"}).check_inputs()


# -- from the command line -------------------------------------------------------------------------------------------


def made_from_files(store: Path, *arguments: str) -> dict[str, Any]:
    """The manifest of what a command makes as mine/made."""
    code = main([*arguments, "name=mine/made", f"store={store}", "tracker=none", "hardware.threads=1"])
    assert code == 0
    found: dict[str, Any] = ArtifactStore(store).find("mine/made").manifest
    return found


@pytest.mark.parametrize("stage", mostly_slow(["kto", "dpo"], ["kto"]))
def test_prompts_that_the_model_learned_from_are_counted_when_it_is_evaluated(
    store: Path, tmp_path: Path, stage: str
) -> None:
    """Three of four evaluated prompts are in the file. The fourth is in no training split."""
    rows = {tuple(turn["content"] for turn in row["prompt"]): row for row in GOOD_AND_BAD}
    pairs = [{"prompt": row["prompt"], "chosen": "Yes.", "rejected": "No."} for row in rows.values()]
    files = {"kto": GOOD_AND_BAD, "dpo": pairs, "asked": [{"prompt": each["prompt"]} for each in pairs[:3]]}
    files["asked"].append({"prompt": [{"role": "user", "content": "Who?"}]})
    for name, found in files.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found))
    made_from_files(store, "data", f"source=path:{tmp_path / stage}.jsonl", "split=train",
                    f"record={'unpaired' if stage == 'kto' else 'comparisons'}")  # fmt: skip
    slot = "unpaired" if stage == "kto" else "data"
    model = made_from_files(store, stage, "model=toy/sft", f"{slot}=mine/made:v0", "batch_size=4")
    assert model["metrics"]["responses" if stage == "kto" else "rankings"] == (8 if stage == "kto" else 4)
    (tmp_path / "words.txt").write_text("oak\n")
    given = (f"prompts=path:{tmp_path / 'asked'}.jsonl", f"checks={{oak: 'words:{tmp_path / 'words.txt'}'}}")
    found = made_from_files(store, "evaluate", "model=mine/made", *given, "max_new_tokens=4")["metrics"]
    assert found["seen_in_preferences"] == 0.75
    assert "seen_by_reward_model" not in found
