"""Adapters through the stages: import, sft, reward and ppo on one base, and what reads their artifacts after that."""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

import peft
import pytest
import torch
from conftest import mostly_slow
from stage_jobs import job_at, job_with
from test_kept_format import comparison, dialogue, made, metrics_of, publish, write
from tiny_models import tiny_tokenizer
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from align.cli.main import main
from align.configs import LoraConfig, Reward
from align.models.heads import load_scalar
from align.models.load import load_model, load_tokenizer
from align.runtime.job import Inputs
from align.stages import reward
from align.store.artifacts import Artifact
from align.store.checkpoints import load_checkpoint

IDS = torch.tensor([[7, 8, 9, 20, 21, 30]])
LORA = ("lora.rank=4", "batch_size=16", "learning_rate=0.01")
PPO = (
    *("num_iterations=2", "rollout_batch_size=8", "minibatch_size=4", "max_new_tokens=6", "warmup_iterations=0"),
    *("lora.rank=4", "learning_rate=0.01", "value_learning_rate=0.01"),
)


def run(*arguments: str) -> int:
    return main([*arguments, "tracker=none", "hardware.threads=1"])


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data, two published models, and a store with three tunings of the first; read only."""
    place = tmp_path_factory.mktemp("recipe")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        write("demonstrations.jsonl", [{"messages": dialogue(i)} for i in range(40)])
        write("comparisons.jsonl", [comparison(i) for i in range(40)])
        write("prompts.jsonl", [{"prompt": f"Who ran home? {i}"} for i in range(24)])
        publish("published", tiny_tokenizer())
        publish("other", tiny_tokenizer(), hidden_size=48)
        assert run("import_model", "source=path:published", "name=mine/model") == 0
        assert run("import_model", "source=path:other", "name=mine/other") == 0
        data = ("inputs.data=path:demonstrations.jsonl", "num_epochs=1", "sequence_length=128")
        assert run("sft", "inputs.model=mine/model", *data, *LORA, "name=mine/sft") == 0
        ranked = ("inputs.data=path:comparisons.jsonl", "inputs.demonstrations=path:demonstrations.jsonl")
        assert run("reward", "inputs.model=mine/sft", *ranked, *LORA, "name=mine/reward") == 0
        assert run("reward", "inputs.model=mine/other", *ranked, *LORA, "name=mine/far") == 0
        assert run("reward", "inputs.model=mine/sft", *ranked, "batch_size=16", "name=mine/whole") == 0
        given = ("inputs.policy=mine/sft", "inputs.reward_model=mine/reward", "inputs.prompts=path:prompts.jsonl")
        assert run("ppo", *given, "inputs.heldout_reward_model=mine/far", *PPO, "name=mine/ppo") == 0
    return place


@pytest.fixture
def here(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy to work on."""
    monkeypatch.chdir(shutil.copytree(recipe, tmp_path / "here"))
    return tmp_path / "here"


def error(capsys: pytest.CaptureFixture[str]) -> str:
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]


@torch.no_grad()
def logits(model: torch.nn.Module) -> torch.Tensor:
    return model(input_ids=IDS, use_cache=False).logits


def near(got: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


# -- what a run publishes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", ["sft", "reward", "ppo", "ppo/ema"])
def test_each_tuning_is_an_adapter_on_the_imported_model_and_nothing_else(here: Path, step: str) -> None:
    folder = made(f"mine/{step.partition('/')[0]}") / ("ema" if "/" in step else "")
    config = json.loads((folder / "adapter_config.json").read_text())
    base = made("mine/model")
    assert config["base_model_name_or_path"] == f"import_model/{base.name}"
    assert config["r"] == (4 if step == "sft" else 8)
    assert not list(folder.glob("model*"))
    assert str(here) not in (folder / "adapter_config.json").read_text() + (folder / "config.json").read_text()


@pytest.mark.parametrize("step", ["sft", "ppo", "ppo/ema"])
def test_peft_opens_a_tuning_on_its_base_with_the_same_logits(here: Path, step: str) -> None:
    folder = made(f"mine/{step.partition('/')[0]}") / ("ema" if "/" in step else "")
    base = AutoModelForCausalLM.from_pretrained(made("mine/model"))
    before = logits(base.eval())
    opened = logits(peft.PeftModel.from_pretrained(base, folder).eval())
    near(logits(load_model(folder)), opened)
    assert (opened - before).abs().max() > 1e-3


def test_peft_opens_a_reward_model_on_its_base_with_the_same_scores(here: Path) -> None:
    folder = made("mine/reward")
    classifier = AutoModelForSequenceClassification.from_pretrained(made("mine/model"), num_labels=1)
    classifier.config.pad_token_id = load_tokenizer(folder).pad_token_id
    with torch.no_grad():
        opened = peft.PeftModel.from_pretrained(classifier, folder).eval()(input_ids=IDS).logits[0, 0]
        scalar = load_scalar(folder)
        ours = scalar(IDS, torch.arange(IDS.shape[1])[None], torch.tensor([IDS.shape[1] - 1]))[0]
    near(ours + scalar.shift, opened)
    assert scalar.shift != 0


def test_metrics_count_what_was_trained_and_the_whole(here: Path) -> None:
    model = load_model(made("mine/model"))
    total, shapes = model.num_parameters(), [m.weight.shape for m in model.model.modules() if hasattr(m, "in_features")]
    adapter = 4 * sum(map(sum, shapes))
    trunk = model.model.num_parameters()
    found = {step: metrics_of(made(f"mine/{step}")) for step in ("sft", "reward", "ppo")}
    assert found["sft"]["trained_parameters"] == adapter
    assert found["reward"]["trained_parameters"] == adapter + 32
    assert found["reward"]["parameters"] == trunk + 32
    assert found["ppo"]["trained_parameters"] == 2 * adapter + 32
    assert found["ppo"]["parameters"] == total + trunk + 2 * adapter + 32
    assert found["sft"]["parameters"] == total


def test_a_merged_run_publishes_a_whole_model(here: Path) -> None:
    data = ("inputs.data=path:demonstrations.jsonl", "num_epochs=1", "sequence_length=128")
    assert run("sft", "inputs.model=mine/sft", *data, *LORA, "lora.merged=true", "name=mine/merged") == 0
    folder = made("mine/merged")
    assert not (folder / "adapter_config.json").exists()
    near(logits(AutoModelForCausalLM.from_pretrained(folder).eval()), logits(load_model(folder)))


def test_every_stage_takes_an_adapter_for_a_model(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Full training from it, an evaluation beside it, sampling and the report."""
    data = ("inputs.data=path:demonstrations.jsonl", "num_epochs=1", "sequence_length=128", "batch_size=16")
    assert run("sft", "inputs.model=mine/ppo", *data, "name=mine/full") == 0
    assert (made("mine/full") / "model.safetensors").is_file()
    given = ("inputs.prompts=path:prompts.jsonl", "inputs.reward_model=mine/reward", "max_new_tokens=4")
    assert run("evaluate", "inputs.model=mine/ppo", "inputs.baseline=mine/sft", *given, "num_bootstrap=20") == 0
    assert main(["sample", "mine/ppo", "Who?", "--tokens", "3"]) == 0
    monkeypatch.setattr(sys, "stdin", io.StringIO("Who ran home?\n"))
    assert main(["chat", "mine/ppo", "mine/sft", "--tokens", "3"]) == 0
    assert "mine/ppo:\n" in capsys.readouterr().out


def log_and_die(log: Callable[..., None], metrics: dict[str, float], step: int) -> None:
    """Log, and end the process at the second step."""
    log(metrics, step)
    if step == 2:
        raise KeyboardInterrupt


def test_a_reward_adapter_that_died_ends_as_if_it_had_not_and_its_checkpoint_has_no_base(here: Path) -> None:
    manifests = list(Path("artifacts/objects/data").glob("*/manifest.json"))
    (data,) = [path.parent for path in manifests if json.loads(path.read_text())["kind"] == "comparisons"]
    folders = {"model": made("mine/sft"), "data": data}
    inputs = Inputs({slot: (Artifact(f.parent.name, f.name, "", f),) for slot, f in folders.items()})
    cfg = Reward(lora=LoraConfig(rank=4), batch_size=8, learning_rate=0.01, num_epochs=1)
    reward.run(cfg, inputs, job_at(here / "whole", checkpoint_seconds=0))
    with pytest.raises(KeyboardInterrupt):
        reward.run(cfg, inputs, job_at(here / "died", job_with({"log.metrics": log_and_die}), checkpoint_seconds=0))
    held = load_checkpoint(here / "died/checkpoints")
    assert held is not None
    assert all("lora_" in name or "score" in name for name in held[1]["state"]["parameters"])
    reward.run(cfg, inputs, job_at(here / "died", checkpoint_seconds=0))
    for path in (here / "whole/out").iterdir():
        assert path.read_bytes() == (here / "died/out" / path.name).read_bytes(), path.name


# -- the store -------------------------------------------------------------------------------------------------------


def test_a_collection_keeps_the_base_whatever_else_is_gone(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of the recipe only the policy has a name, and the model between it and the base is lost."""
    base, before = made("mine/model"), logits(load_model(made("mine/ppo")))
    shutil.rmtree(made("mine/sft"))
    for step in ("model", "sft", "reward", "far", "whole", "other"):
        shutil.rmtree(f"artifacts/names/mine/{step}")
    old = time.time() - 2 * 24 * 3600
    for path in Path("artifacts/objects").glob("*/*"):
        os.utime(path, (old, old))
    assert main(["artifacts", "gc", "--yes"]) == 0
    assert base.is_dir()
    near(logits(load_model(made("mine/ppo"))), before)


@pytest.mark.parametrize(
    "command",
    [
        ["artifacts", "verify", "mine/sft"],
        ["artifacts", "export", "mine/sft", "out"],
        ["sample", "mine/sft"],
        ["chat", "mine/sft"],
        ["evaluate", "inputs.model=mine/sft", "inputs.prompts=path:prompts.jsonl", "tracker=none"],
    ],
    ids=lambda command: " ".join(command[:2]),
)
def test_a_base_that_is_gone_is_named_in_a_line(
    here: Path, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    base = made("mine/model")
    shutil.rmtree(base)
    assert main(command) == 3
    said = error(capsys)
    assert f"an adapter on import_model@{base.name[:12]} (mine/model:v0), which is gone from the store" in said
    assert not Path("out").exists()


def test_a_base_that_was_changed_is_found_before_it_is_used(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = made("mine/model") / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert main(["artifacts", "verify", "mine/reward"]) == 3
    assert "model.safetensors has sha256" in error(capsys)


def test_an_export_is_a_whole_model_of_the_same_numbers(here: Path) -> None:
    assert main(["artifacts", "export", "mine/ppo", "out"]) == 0
    for place in ("", "ema"):
        assert not (Path("out") / place / "adapter_config.json").exists()
        opened = AutoModelForCausalLM.from_pretrained(Path("out") / place).eval()
        near(logits(opened), logits(load_model(made("mine/ppo") / place)))
    assert AutoTokenizer.from_pretrained("out").get_vocab() == load_tokenizer(made("mine/ppo")).get_vocab()
    assert main(["artifacts", "export", "mine/reward", "judge"]) == 0
    whole, adapter = load_scalar(Path("judge")), load_scalar(made("mine/reward"))
    at = (IDS, torch.arange(IDS.shape[1])[None], torch.tensor([5]))
    with torch.no_grad():
        near(whole(*at), adapter(*at))
    assert run("import_model", "source=path:judge", "name=mine/judge") == 0  # its shift is no difference of its scores
    assert load_scalar(made("mine/judge")).shift == adapter.shift


def test_a_classifier_is_exported_with_the_adapter_that_was_merged_into_it(here: Path) -> None:
    rows = [f"they are kind {word},good\nthey are rude {word},bad\n" for word in ("now", "here", "there", "today")]
    Path("reviews.csv").write_text("text,label\n" + "".join(rows))
    knobs = ("task=classification", "lora.rank=2", "num_epochs=1", "batch_size=4", "learning_rate=0.001")
    assert run("finetune", "model=mine/model", "data=path:reviews.csv", *knobs, "name=mine/sorter") == 0
    assert main(["artifacts", "export", "mine/sorter", "sorter"]) == 0
    for file in ("model.safetensors", "adapter/adapter_config.json", "adapter/adapter_model.safetensors"):
        assert (Path("sorter") / file).read_bytes() == (made("mine/sorter") / file).read_bytes()
    assert AutoModelForSequenceClassification.from_pretrained("sorter").num_labels == 2


# -- what plan refuses -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reward_model", "said"),
    [
        ("mine/far", "mine/far is an adapter on mine/other, and the policy mine/sft is an adapter on mine/model. "),
        ("mine/whole", "mine/whole is a whole model, and the policy mine/sft is an adapter on mine/model. "),
    ],
)
def test_a_value_model_that_is_no_adapter_on_the_base_is_refused_before_anything_runs(
    here: Path, capsys: pytest.CaptureFixture[str], reward_model: str, said: str
) -> None:
    before = sorted(Path("artifacts").rglob("*"))
    given = ("inputs.policy=mine/sft", f"inputs.reward_model={reward_model}", "inputs.prompts=path:prompts.jsonl")
    assert run("ppo", *given, *PPO, "name=mine/two") == 2
    line = error(capsys)
    assert line.startswith("error: inputs.reward_model: with lora.rank the value model starts from")
    assert said in line
    assert "give value_from=policy, or lora.rank=null" in line
    assert sorted(Path("artifacts").rglob("*")) == before
    assert run("ppo", *given, *PPO, "value_from=policy", "num_iterations=1", "name=mine/two") == 0


# -- adapters of others ----------------------------------------------------------------------------------------------


def published_adapter(folder: str, base: str, named: str | None = None, **config: object) -> torch.Tensor:
    """An adapter as its author saves it with peft; gives the logits that it has on its base."""
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_pretrained(base)
    settings = {"r": 2, "lora_alpha": 7, "target_modules": ["q_proj", "up_proj"], "task_type": "CAUSAL_LM", **config}
    adapted = peft.get_peft_model(model, peft.LoraConfig(**settings))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    adapted.save_pretrained(folder)
    file = Path(folder) / "adapter_config.json"
    read = json.loads(file.read_text())
    file.write_text(json.dumps({**read, "base_model_name_or_path": base if named is None else named}))
    return logits(adapted.eval())


@pytest.mark.parametrize(
    "variant",
    mostly_slow(
        [
            {},
            {"use_dora": True},
            {"use_rslora": True, "rank_pattern": {"up_proj": 3}},
            {"target_modules": ["q_proj", "embed_tokens"]},
        ],
        [{}, {"use_rslora": True, "rank_pattern": {"up_proj": 3}}],
    ),
)
def test_an_adapter_of_somebody_is_imported_on_the_base_that_it_names(here: Path, variant: dict) -> None:
    expected = published_adapter("theirs", "published", **variant)
    assert run("import_model", "source=path:theirs", "name=mine/theirs") == 0
    near(logits(load_model(made("mine/theirs")))[..., : expected.shape[-1]], expected)


def test_a_base_is_taken_from_the_knob_and_is_part_of_the_key(here: Path) -> None:
    expected = published_adapter("theirs", "published", named="ORG/NAME")
    assert run("import_model", "source=path:theirs", "base=path:published", "name=mine/theirs") == 0
    near(logits(load_model(made("mine/theirs")))[..., : expected.shape[-1]], expected)
    shutil.rmtree("published")
    publish("published", tiny_tokenizer(), rms_norm_eps=1e-3)
    assert run("import_model", "source=path:theirs", "base=path:published", "name=mine/theirs") == 0
    assert len(list(Path("artifacts/names/mine/theirs").glob("v*.json"))) == 2


@pytest.mark.parametrize("step", ["ppo", "reward"])
def test_the_folder_of_our_own_adapter_is_accepted_as_a_model(here: Path, step: str) -> None:
    """Where it lies, and (the reward model) moved out of the store: its base is an artifact of the store at hand."""
    folder = made(f"mine/{step}")
    source = folder if step == "ppo" else Path(shutil.copytree(folder, "elsewhere"))
    assert run("import_model", f"source=path:{source}", "name=mine/again") == 0
    again = made("mine/again")
    assert not (again / "adapter_config.json").exists()
    if step == "ppo":
        near(logits(load_model(again)), logits(load_model(folder)))
        return
    at = (IDS, torch.arange(IDS.shape[1])[None], torch.tensor([5]))
    with torch.no_grad():
        near(load_scalar(again)(*at), load_scalar(folder)(*at))


REFUSED = {
    "its base is not here": ({"named": "ORG/NAME"}, [], "an adapter on ORG/NAME, which is not here; give its base too"),
    "its base is another": ({}, ["base=path:other"], "it was trained on another model"),
    "its base is an adapter": ({}, ["base=path:theirs"], "it is an adapter itself; give the whole model"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_an_adapter_without_its_base_is_refused_in_a_line(
    here: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    published, knobs, reason = REFUSED[name]
    published_adapter("theirs", "published", **published)
    assert run("import_model", "source=path:theirs", *knobs, "name=mine/theirs") == 2
    assert reason in error(capsys)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"peft_type": "IA3"}, "an adapter of the kind IA3; expected LORA; merge it into its base first"),
        ({"r": 3}, "on this base it is [3, 32]"),
        ({"target_modules": ["q_proj", "up_proj", "o_proj"]}, "the adapter: missing weights: "),
        ({"target_modules": ["q_proj"]}, "the adapter: weights that its base has no place for: "),
    ],
)
def test_an_adapter_that_is_not_what_its_config_says_is_refused_in_a_line(
    here: Path, capsys: pytest.CaptureFixture[str], change: dict, reason: str
) -> None:
    published_adapter("theirs", "published")
    file = Path("theirs/adapter_config.json")
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    assert run("import_model", "source=path:theirs", "name=mine/theirs") == 2
    assert reason in error(capsys)


def test_a_base_beside_a_whole_model_is_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("import_model", "source=path:published", "base=path:other") == 2
    assert "path:published holds no adapter (adapter_config.json), so it has no base; leave base out" in error(capsys)
