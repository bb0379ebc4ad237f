"""Tokenizers and models from outside the store, through the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from gpt1_release import VOCABULARY, random_gpt1, write_release
from omegaconf import OmegaConf
from tiny_models import tiny_model, tiny_tokenizer
from tokenizers import pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

from align.cli.main import main
from align.configs import RunConfig
from align.data.records import read_rows
from align.errors import ConfigError
from align.models.load import load_tokenizer
from align.pipeline.plan import Step, plan
from align.store.artifacts import ArtifactStore
from align.text.encoding import encode_texts
from align.text.tokenizers import EOS, PAD, train_tokenizer

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TEXT = [" ".join(f"the cat number {i} sat on mat {i * 7}" for i in range(20))] * 5


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str) -> int:
    return main([*arguments, "store=artifacts", "tracker=none"])


def made(stage: str) -> tuple[Path, dict]:
    """The one artifact of a stage and its manifest."""
    (manifest,) = Path("artifacts/objects").glob(f"{stage}/*/manifest.json")
    return manifest.parent, json.loads(manifest.read_text())


def step(stage: str, **knobs: object) -> Step:
    """As it is planned."""
    node = OmegaConf.create({"stage": stage, **knobs})
    return plan(RunConfig(name="mine"), {"made": node}, ArtifactStore("artifacts"))[-1]


def refused(stage: str, **knobs: object) -> str:
    with pytest.raises(ConfigError) as caught:
        step(stage, **knobs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def said(capsys: pytest.CaptureFixture[str]) -> str:
    """The last line of standard error, of a command that failed."""
    return capsys.readouterr().err.strip().splitlines()[-1].removeprefix("error: ")


def tiny_t5(folder: Path) -> PreTrainedModel:
    tokenizer = train_tokenizer(TEXT, 400, algorithm="unigram", num_sentinels=10)
    tokenizer.chat_template = None
    torch.manual_seed(0)
    sizes = {"d_model": 32, "d_ff": 64, "d_kv": 8, "num_layers": 2, "num_heads": 4}
    model = T5ForConditionalGeneration(T5Config(vocab_size=512, decoder_start_token_id=0, **sizes)).eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


def write_gpt2(folder: Path, merges: str = "c a\nca t\n") -> Path:
    folder.mkdir(exist_ok=True)
    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "ca", "cat", EOS]
    (folder / "encoder.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "vocab.bpe").write_text("#version: 0.2\n" + merges)
    return folder


# -- tokenizers --------------------------------------------------------------------------------------------------


def test_a_published_vocabulary_becomes_a_tokenizer_that_the_stages_open(here: Path) -> None:
    write_gpt2(here / "gpt2")
    assert run("tokenizer", "source=path:gpt2", "num_sentinels=3") == 0
    folder, manifest = made("tokenizer")
    tokenizer = load_tokenizer(folder)
    added = [PAD, "<|system|>", "<|user|>", "<|assistant|>", "<extra_id_2>", "<extra_id_1>", "<extra_id_0>"]
    assert tokenizer.convert_ids_to_tokens(range(257, 266)) == ["cat", EOS, *added]
    assert manifest["metrics"] == {"vocab_size": 266}
    assert manifest["inputs"] == {}


def test_documents_become_t5_s_kind_of_tokenizer(here: Path) -> None:
    knobs = ("vocab_size=420", "algorithm=unigram", "num_sentinels=50", "split_digits=true")
    assert run("tokenizer", "inputs.data=card:smallworld", *knobs) == 0
    folder, manifest = made("tokenizer")
    tokenizer = load_tokenizer(folder)
    assert tokenizer.convert_tokens_to_ids(["<pad>", "</s>", "<unk>", "<extra_id_0>"]) == [0, 1, 2, 419]
    texts = [row["text"] for row in read_rows([made("data")[0]], "validation")]
    num_tokens = sum(map(len, encode_texts(tokenizer, texts)))
    assert manifest["metrics"]["bytes_per_token"] == sum(len(text.encode()) for text in texts) / num_tokens > 1.5


def test_a_vocabulary_too_small_is_told_in_a_line(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("tokenizer", "inputs.data=card:smallworld", "vocab_size=200") == 2
    assert said(capsys) == "vocab_size must exceed 261 (256 bytes and 5 special tokens), got 200"


def test_a_vocabulary_that_cannot_be_read_is_told_in_a_line(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_gpt2(here / "gpt2", merges="x y z\n")
    assert run("tokenizer", "source=path:gpt2") == 2
    assert said(capsys) == "source: path:gpt2: vocab.bpe: expected two parts per line"


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({}, "inputs: expected data (to train on) or a source (a published vocabulary), not both, got []"),
        ({"source": "path:gpt2", "inputs": {"data": "card:smallworld"}}, "not both, got ['data', 'source']"),
        ({"source": "path:gpt2", "vocab_size": 300}, "vocab_size: expected no value beside source"),
        ({"source": "path:gpt2", "algorithm": "unigram"}, "algorithm: expected no value beside source"),
        ({"source": "path:none"}, "source: 'path:none': expected hf:ORG/NAME@COMMIT or path:FOLDER"),
        ({"source": "hf:a/b"}, "source: hf:a/b: the Hub is read at a full commit hash only"),
        ({"algorithm": "wordpiece"}, "algorithm: expected bpe or unigram, got 'wordpiece'"),
    ],
)
def test_what_is_wrong_is_told_before_anything_runs(here: Path, knobs: dict, message: str) -> None:
    write_gpt2(here / "gpt2")
    said = refused("tokenizer", **knobs)
    assert said.startswith("steps.made.")
    assert message in said


def test_the_key_holds_what_the_files_hold_and_not_where_they_lie(here: Path) -> None:
    one = step("tokenizer", source=f"path:{write_gpt2(here / 'one')}").key
    assert step("tokenizer", source=f"path:{write_gpt2(here / 'two')}").key == one
    assert step("tokenizer", source="path:one", num_sentinels=1).key != one
    write_gpt2(here / "two", merges="c a\n")
    assert step("tokenizer", source="path:two").key != one


def test_a_vocabulary_can_be_named_where_a_tokenizer_is_needed(here: Path) -> None:
    write_gpt2(here / "gpt2")
    node = {"stage": "pretrain", "inputs": {"data": "card:smallworld", "tokenizer": "path:gpt2"}}
    steps = plan(RunConfig(name="mine"), {"pretrain": OmegaConf.create(node)}, ArtifactStore("artifacts"))
    assert {s.name: s.config.output for s in steps}["pretrain.tokenizer"] == "tokenizer"


# -- models ------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_gpt1_as_it_was_released_becomes_a_plain_model(here: Path) -> None:
    original = random_gpt1()
    write_release(original, here / "gpt1")
    assert run("import_model", "source=path:gpt1") == 0
    folder, manifest = made("import_model")
    assert manifest["kind"] == "model"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), load_tokenizer(folder)
    assert model.config.model_type == "openai-gpt"
    assert tokenizer.convert_ids_to_tokens(range(len(VOCABULARY))) == VOCABULARY
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (len(VOCABULARY), len(VOCABULARY) + 1)
    assert model.get_input_embeddings().num_embeddings == len(tokenizer)
    ids = tokenizer("Cat bat", return_tensors="pt")["input_ids"]
    got = model(ids).logits[..., : len(VOCABULARY)]
    torch.testing.assert_close(got, original(ids).logits, rtol=0, atol=1e-6)


@torch.no_grad()
def test_a_llama_with_a_head_of_its_own_keeps_it(here: Path) -> None:
    tokenizer = tiny_tokenizer()
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=len(tokenizer), num_key_value_heads=2, tie_word_embeddings=False, **sizes)
    original = LlamaForCausalLM(config).eval()
    original.save_pretrained(here / "llama")
    tokenizer.save_pretrained(here / "llama")
    assert run("import_model", "source=path:llama") == 0
    folder, _ = made("import_model")
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = torch.arange(20)[None]
    assert torch.equal(model(ids).logits, original(ids).logits)
    assert not torch.equal(model.lm_head.weight, model.get_input_embeddings().weight)


@torch.no_grad()
def test_an_encoder_decoder_becomes_a_seq2seq_model_with_its_own_tokenizer(here: Path) -> None:
    original = tiny_t5(here / "t5")
    assert step("import_model", source="path:t5").config.output == "seq2seq_model"
    assert run("import_model", "source=path:t5") == 0
    folder, manifest = made("import_model")
    assert manifest["kind"] == "seq2seq_model"
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    assert tokenizer.get_vocab() == AutoTokenizer.from_pretrained(here / "t5").get_vocab()
    assert tokenizer.chat_template is None
    ids, labels = torch.arange(3, 20)[None], torch.arange(5, 12)[None]
    logits = [m(input_ids=ids, labels=labels).logits for m in (model, original)]
    assert torch.equal(*logits)
    node = {"stage": "sft", "inputs": {"data": "card:smallworld", "model": "path:t5"}}
    with pytest.raises(ConfigError, match=r"inputs.model: expected model, but mine/made.model is seq2seq_model"):
        step(**node)


def hub_of(folder: Path, repository: str) -> Path:
    """A folder in a local cache of the Hub, for one repository at one commit."""
    place = folder / "hub" / f"models--{repository.replace('/', '--')}" / "snapshots" / COMMIT
    place.mkdir(parents=True)
    return place


@pytest.fixture
def offline(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Hub's library as it is with HF_HOME=. and HF_HUB_OFFLINE=1, which it reads when it is imported."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(here / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.mark.usefixtures("offline")
def test_a_model_of_the_hub_comes_at_its_commit(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = hub_of(here, "mine/tiny")
    original = tiny_model("gpt2")
    original.save_pretrained(place)
    tiny_tokenizer().save_pretrained(place)
    assert run("import_model", f"source=hf:mine/tiny@{COMMIT}") == 0
    folder, manifest = made("import_model")
    ids = torch.arange(20)[None]
    with torch.no_grad():
        got = AutoModelForCausalLM.from_pretrained(folder)(ids).logits
        torch.testing.assert_close(got, original(ids).logits, rtol=0, atol=1e-5)
    other = f"hf:mine/tiny@{COMMIT[::-1]}"
    assert step("import_model", source=f"hf:mine/tiny@{COMMIT}").key == manifest["key"]
    assert step("import_model", source=other).key != manifest["key"]
    assert run("import_model", f"source={other}") == 2
    assert said(capsys).startswith(f"source: {other}: ")
    assert "full commit hash only" in refused("import_model", source="hf:mine/tiny@main")


@pytest.mark.usefixtures("offline")
def test_an_encoder_decoder_of_the_hub_is_asked_for_by_its_kind(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = f"hf:mine/t5@{COMMIT}"
    tiny_t5(hub_of(here, "mine/t5"))
    assert run("import_model", f"source={source}") == 2
    reason = "it is an encoder-decoder, not a decoder-only language model; give kind=seq2seq_model"
    assert said(capsys) == f"source: {source}: {reason}"
    assert not list(Path("artifacts/objects").glob("import_model/*"))
    assert step("import_model", source=source, kind="seq2seq_model").config.output == "seq2seq_model"


def test_what_is_no_model_is_refused(here: Path) -> None:
    assert "path:FOLDER with a model's config.json or a .gguf file in it" in refused("import_model", source="path:none")
    kinds = "kind: expected model or seq2seq_model or reward_model"
    assert kinds in refused("import_model", source="path:x", kind="encoder")
    (here / "odd").mkdir()
    (here / "odd/config.json").write_text("[]")
    assert "config.json: expected a JSON object, got a list" in refused("import_model", source="path:odd")
