"""Checkpoints of which something is missing, left over, damaged or of another kind: refused in one line, exit 2."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import mostly_slow
from safetensors.torch import load_file, save_file
from tiny_models import tiny_tokenizer
from transformers import BertConfig, BertLMHeadModel, LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from align.cli.main import main

WEIGHTS = "model.safetensors"


def config_of(**more) -> LlamaConfig:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaConfig(
        vocab_size=len(tiny_tokenizer()), max_position_embeddings=64, **{"tie_word_embeddings": False, **sizes, **more}
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A checkpoint that is imported as it is."""
    folder = tmp_path_factory.mktemp("whole") / "model"
    LlamaForCausalLM(config_of()).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def edited(**fields: object) -> Callable[[Path], None]:
    """Change fields of config.json."""

    def edit(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **fields}))

    return edit


def weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    """Change the weights."""

    def edit(folder: Path) -> None:
        state = load_file(folder / WEIGHTS)
        change(state)
        save_file(state, folder / WEIGHTS, metadata={"format": "pt"})

    return edit


def cut(folder: Path) -> None:
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[: len(data) // 2])


def without(*patterns: str) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        for pattern in patterns:
            for path in folder.glob(pattern):
                path.unlink()

    return edit


def lost_shard(folder: Path) -> None:
    names = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).rename(folder / "model-00001-of-00002.safetensors")
    shards = dict.fromkeys(names, "model-00001-of-00002.safetensors") | {
        "lm_head.weight": "model-00002-of-00002.safetensors"
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": shards}))


def adapter_alone(folder: Path) -> None:
    without("*")(folder)
    config = {"peft_type": "LORA", "base_model_name_or_path": "x/y", "r": 2}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file({"lora_A.weight": torch.ones(2, 2)}, folder / "adapter_model.safetensors")


def replaced_by(model) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        without("config.json", WEIGHTS, "generation_config.json")(folder)
        model().save_pretrained(folder)

    return edit


def reward_model(folder: Path) -> None:
    """One that calls itself a language model, as a config copied from its base does."""
    without("config.json", WEIGHTS)(folder)
    LlamaForSequenceClassification(config_of(num_labels=1)).save_pretrained(folder)
    edited(architectures=["LlamaForCausalLM"])(folder)


def bert() -> BertLMHeadModel:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    return BertLMHeadModel(BertConfig(vocab_size=len(tiny_tokenizer()), is_decoder=False, **sizes))


def gguf_cut(folder: Path) -> None:
    without("*")(folder)
    (folder / "model.gguf").write_bytes(b"GGUF\x03\x00\x00\x00" + bytes(100))


def first(state: dict[str, torch.Tensor]) -> torch.Tensor:
    return state["model.layers.0.mlp.up_proj.weight"]


BROKEN: dict[str, tuple[Callable[[Path], None], str]] = {
    "a weight is missing": (
        weights(lambda state: state.pop("model.layers.1.mlp.up_proj.weight")),
        "missing weights: model.layers.1.mlp.up_proj.weight",
    ),
    "the head is missing": (weights(lambda state: state.pop("lm_head.weight")), "missing weights: lm_head.weight"),
    "a layer is left over": (
        edited(num_hidden_layers=1),
        "unexpected weights: model.layers.1.",
    ),
    "sizes differ": (edited(intermediate_size=40), "its weights have other sizes than its config says"),
    "a file is cut": (cut, "a file of weights is cut or damaged"),
    "a file is empty": (
        lambda folder: (folder / WEIGHTS).write_bytes(b""),
        "expected safetensors, got a file of 0 bytes",
    ),
    "no tensor in it": (weights(dict.clear), "model.safetensors: it holds no weights"),
    "no weights": (without(WEIGHTS), "it holds no weights"),
    "a shard is lost": (lost_shard, "model-00002-of-00002.safetensors"),
    "not a number": (
        weights(lambda state: first(state).view(-1)[0].fill_(float("nan"))),
        "its weights hold NaN or infinity: model.layers.0.mlp.up_proj.weight",
    ),
    "infinite": (weights(lambda state: first(state).view(-1)[0].fill_(float("inf"))), "hold NaN or infinity"),
    "GPTQ": (edited(quantization_config={"quant_method": "gptq", "bits": 4}), "its weights are quantised (gptq)"),
    "AWQ": (edited(quantization_config={"quant_method": "awq", "bits": 4}), "its weights are quantised (awq)"),
    "bitsandbytes": (
        edited(quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}),
        "its weights are quantised (bitsandbytes)",
    ),
    "an adapter alone": (adapter_alone, "an adapter on x/y, which is not here; give its base too: base=path:FOLDER"),
    "no tokenizer": (without("tokenizer*", "chat_template*"), "it holds no tokenizer; put its tokenizer.json beside"),
    "a tokenizer that is cut": (
        lambda folder: (folder / "tokenizer.json").write_text('{"version": "1.0", "added'),
        "its tokenizer does not open",
    ),
    "fp8": (edited(quantization_config={"quant_method": "fp8"}), "its weights are quantised (fp8)"),
    "no config": (without("config.json"), "expected hf:ORG/NAME@COMMIT or path:FOLDER with a model's config.json"),
    "a model type that nobody knows": (
        edited(model_type="foo_bar", architectures=["FooBar"]),
        "its config.json names the model type foo_bar, which transformers does not know",
    ),
    "code of its own": (
        edited(model_type="foo_bar", auto_map={"AutoConfig": "configuration_foo.Foo"}),
        "it needs code of its own repository, and align runs no such code",
    ),
    "sizes that do not divide": (edited(num_attention_heads=5), "not a multiple of the number of attention heads"),
    "a reward model called a language model": (
        reward_model,
        "missing weights: lm_head.weight; a reward model has ...ForSequenceClassification in the architectures",
    ),
    "a classifier of three labels": (
        replaced_by(lambda: LlamaForSequenceClassification(config_of(num_labels=3))),
        "it has 3 labels, and a reward model has one",
    ),
    "an encoder": (replaced_by(bert), "not causal: later tokens change earlier predictions"),
    "GGUF that is cut": (gguf_cut, "its GGUF file is cut or damaged"),
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_whole_checkpoint_comes_in(whole: Path, here: Path) -> None:
    assert main(["import_model", f"source=path:{whole}", "tracker=none"]) == 0


@pytest.mark.parametrize("name", mostly_slow(BROKEN, [*BROKEN][::4]))
def test_a_broken_checkpoint_is_refused_in_a_line(
    name: str, whole: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage, reason = BROKEN[name]
    damage(Path(shutil.copytree(whole, here / "broken")))
    assert main(["import_model", "source=path:broken", "tracker=none"]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    errors = [line for line in said if line.startswith("error: ")]
    assert errors == said[-1:]
    assert re.match("error: source:? .?path:broken", errors[0])
    assert reason in errors[0]
    assert not list(here.glob("artifacts/objects/import_model/*"))


def test_what_a_head_was_fitted_to_is_asked_for(whole: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A language model is no reward model, in the place of one."""
    command = f"ppo inputs.policy=path:{whole} inputs.reward_model=path:{whole} inputs.prompts=card:smallworld"
    assert main([*command.split(), "tracker=none"]) == 2
    assert "expected reward_model, but" in capsys.readouterr().err.strip().splitlines()[-1]
