"""Stop strings: where sampling ends, what is left of the text, and that a model folder carries them."""

from __future__ import annotations

import json

import pytest
import torch
from tiny_models import tiny_model, tiny_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from align.models.load import load_tokenizer, save_model
from align.sampling.engine import Sampling
from align.sampling.local import Ends, generate
from align.text.chat import decode_response, is_ended, keep_stop_strings, stop_strings, up_to_stop

EOS, PAD, LENGTH = 0, 1, 16
PROMPTS = [[7], [8, 9, 10, 11], [12, 13], [14, 15, 16, 17, 18, 19], [20, 21, 22]] * 4
SEEDS = [300 + i for i in range(len(PROMPTS))]


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def model(tokenizer):
    """It writes text: few bytes that are none, and few special tokens, which Transformers reads by their names."""
    torch.manual_seed(1)
    model = tiny_model("llama", 64, 0.3)
    texts = tokenizer.batch_decode([[i] for i in range(len(tokenizer))], skip_special_tokens=True)
    rare = [i for i, text in enumerate(texts) if text == "" or "\ufffd" in text]
    with torch.no_grad():
        model.lm_head.weight[rare] = 0.0
    return model


def decoded(tokenizer, ids):
    return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def sampled(model, tokenizer, strings, **knobs):
    settings = Sampling(**{"max_new_tokens": LENGTH, "stop_strings": tuple(strings), **knobs})
    found = generate(model, PROMPTS, SEEDS, settings, Ends(EOS, PAD, tokenizer))
    by_prompt = dict(found)
    return [by_prompt[i] for i in range(len(PROMPTS))]


def cut(tokenizer, response, strings):
    """A response up to the first token with which its whole text holds a stop string."""
    for length in range(1, len(response.ids) + 1):
        text = decoded(tokenizer, response.ids[:length])
        if any(string in text for string in strings):
            return response.ids[:length], response.logprobs[:length]
    return response.ids, response.logprobs


def pieces(tokenizer, responses, length):
    """Texts of so many characters that some responses have in their middle."""
    texts = [decoded(tokenizer, response.ids) for response in responses]
    found = [text[len(text) // 2 :][:length] for text in texts[:12]]
    return [text for text in found if len(text) == length and text.isascii()][:6]


@pytest.mark.parametrize("length", [1, 2, 6])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_sampling_with_stop_strings_is_sampling_without_cut_at_the_first(model, tokenizer, length, temperature):
    endless = sampled(model, tokenizer, (), temperature=temperature)
    strings = pieces(tokenizer, endless, length)
    expected = [cut(tokenizer, response, strings) for response in endless]
    assert sum(len(ids) < len(whole.ids) for (ids, _), whole in zip(expected, endless, strict=True)) >= 3
    for size in (6, len(PROMPTS)):
        got = sampled(model, tokenizer, strings, temperature=temperature, batch_size=size)
        assert [response.ids for response in got] == [ids for ids, _ in expected]
        for response, (_, logprobs) in zip(got, expected, strict=True):
            assert response.logprobs == pytest.approx(logprobs, abs=1e-5)


@pytest.mark.parametrize("length", [1, 3])
def test_greedy_ends_where_transformers_own_stop_strings_do(model, tokenizer, length):
    strings = pieces(tokenizer, sampled(model, tokenizer, (), temperature=0.0), length)
    got = sampled(model, tokenizer, strings, temperature=0.0)
    shorter = 0
    for prompt, response in zip(PROMPTS[:5], got, strict=False):
        out = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            do_sample=False,
            max_new_tokens=LENGTH,
            eos_token_id=EOS,
            pad_token_id=PAD,
            stop_strings=strings,
            tokenizer=tokenizer,
        )
        assert response.ids == out[0, len(prompt) :].tolist()
        shorter += len(response.ids) < LENGTH
    assert shorter


@pytest.mark.parametrize(
    ("text", "strings", "kept"),
    [
        ("one\n\ntwo", ("\n\n",), "one"),
        ("one END two\n\n", ("\n\n", " END"), "one"),
        ("one two", ("\n\n",), "one two"),
        ("one two", (), "one two"),
        ("", ("x",), ""),
        ("xone", ("x",), ""),
    ],
)
def test_a_text_is_cut_before_the_first_stop_string(text, strings, kept):
    assert up_to_stop(text, strings) == kept


def test_a_stop_string_over_several_tokens_and_a_special_one_is_found(model, tokenizer):
    """The token that completes it may hold more; a special token between its parts has no text."""
    keep_stop_strings(tokenizer, ["cat sat"])
    try:
        ids = [*tokenizer("the cat")["input_ids"], PAD, *tokenizer(" sat on the mat")["input_ids"]]
        assert is_ended(tokenizer, ids)
        assert decode_response(tokenizer, ids) == "the"
        assert not is_ended(tokenizer, tokenizer("the cat ran")["input_ids"])
        assert is_ended(tokenizer, [*tokenizer("the cat ran")["input_ids"], EOS])
    finally:
        keep_stop_strings(tokenizer, None)


def test_a_model_folder_carries_its_stop_strings(model, tmp_path):
    tokenizer = tiny_tokenizer()
    keep_stop_strings(tokenizer, ["\nQuestion:", "###"])
    save_model(model, tokenizer, tmp_path / "one")
    written = json.loads((tmp_path / "one/generation_config.json").read_text())
    assert written["stop_strings"] == ["\nQuestion:", "###"]
    save_model(model, load_tokenizer(tmp_path / "one"), tmp_path / "two")  # as a stage that trains it further
    again = load_tokenizer(tmp_path / "two")
    assert stop_strings(again) == ("\nQuestion:", "###")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "two")
    assert plain.generation_config.stop_strings == ["\nQuestion:", "###"]
    again.save_pretrained(tmp_path / "adapter")  # it has no generation_config.json
    assert stop_strings(load_tokenizer(tmp_path / "adapter")) == ("\nQuestion:", "###")


def test_the_file_of_a_model_folder_says_what_its_stop_strings_are(model, tmp_path):
    tokenizer = tiny_tokenizer()
    save_model(model, tokenizer, tmp_path)
    assert stop_strings(load_tokenizer(tmp_path)) == ()
    file = tmp_path / "generation_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "stop_strings": "\n\n"}))
    opened = load_tokenizer(tmp_path)
    assert stop_strings(opened) == ("\n\n",)
    opened.save_pretrained(tmp_path)
    file.write_text(json.dumps({**json.loads(file.read_text()), "stop_strings": None}))
    assert stop_strings(load_tokenizer(tmp_path)) == ()
    assert AutoTokenizer.from_pretrained(tmp_path).get_vocab() == tokenizer.get_vocab()


def test_stop_strings_without_a_tokenizer_are_refused(model):
    with pytest.raises(ValueError, match="stop strings need the tokenizer"):
        list(
            generate(
                model,
                PROMPTS,
                SEEDS,
                Sampling(max_new_tokens=2, stop_strings=("x",)),
                Ends(EOS, PAD),
            )
        )
