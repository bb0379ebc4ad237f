"""Byte-level tokenizers trained here, and opened by others."""

from __future__ import annotations

import random

import pytest
from transformers import AutoTokenizer

from align.errors import ConfigError
from align.models.load import load_tokenizer
from align.text.chat import CHAT_TEMPLATE
from align.text.tokenizers import EOS, PAD, train_tokenizer

CORPUS = ["The cat sat on the mat. The dog ran home, and the cat slept.", "the mat and the house"] * 5
SPECIAL = [EOS, PAD, "<|system|>", "<|user|>", "<|assistant|>"]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(CORPUS, 300)


@pytest.fixture(scope="module")
def loaded(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


def strange_texts():
    rng = random.Random(0)
    planes = [(1, 0x7F), (0x80, 0x7FF), (0x800, 0xD7FF), (0xE000, 0xFFFF), (0x10000, 0x10FFFF)]
    made = ["".join(chr(rng.randint(*rng.choice(planes))) for _ in range(rng.randint(1, 40))) for _ in range(60)]
    return [
        *made,
        "  two  spaces , and a comma ; do n't 're mend .",
        "\t\n\r\n  trailing \n ",
        "e\u0301 \u00e9 \ufb01 \u212b",
        "\U0001f468\u200d\U0001f469\u200d\U0001f467",
        "\x00\x01\x7f",
        "",
        " ",
    ]


def test_any_text_comes_back(tokenizer, loaded):
    for text in strange_texts():
        for one in (tokenizer, loaded):
            assert one.decode(one(text)["input_ids"]) == text


def test_a_text_gets_no_token_that_it_does_not_hold(loaded):
    assert loaded.decode(loaded("the cat")["input_ids"][:1]) in ("t", "th", "the")
    assert not set(loaded("the cat")["input_ids"]) & set(loaded.all_special_ids)


def test_autotokenizer_opens_what_was_saved(tokenizer, loaded):
    assert loaded.get_vocab() == tokenizer.get_vocab()
    assert (loaded.eos_token, loaded.bos_token, loaded.pad_token) == (EOS, EOS, PAD)
    assert loaded.chat_template == CHAT_TEMPLATE
    assert loaded.padding_side == "left"
    for text in (*CORPUS, *strange_texts()):
        assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]


def test_padding_is_not_end_of_text(loaded):
    ids = [loaded.convert_tokens_to_ids(token) for token in SPECIAL]
    assert len(set(ids)) == 5
    assert loaded.pad_token_id != loaded.eos_token_id


def test_special_tokens_are_one_token_each_and_skipped_on_demand(loaded):
    for token in SPECIAL:
        assert len(loaded(token)["input_ids"]) == 1
    ids = loaded(f"<|user|> the cat<|assistant|> sat{EOS}")["input_ids"]
    assert loaded.decode(ids, skip_special_tokens=True) == " the cat sat"


def test_every_byte_has_a_token():
    tokenizer = train_tokenizer(["a"], 262)
    for byte in range(128):
        assert len(tokenizer(chr(byte))["input_ids"]) == 1
    assert len(tokenizer("\u00e9")["input_ids"]) == 2
    assert len(tokenizer) == 261


def test_frequent_words_become_one_token(loaded):
    assert len(loaded(" the cat")["input_ids"]) == 2
    assert loaded(" the the")["input_ids"] == [loaded(" the")["input_ids"][0]] * 2


@pytest.mark.parametrize("size", [262, 270, 285])
def test_the_vocabulary_has_the_size_asked(size):
    tokenizer = train_tokenizer(CORPUS, size)
    assert len(tokenizer) == size
    assert sorted(tokenizer.get_vocab().values()) == list(range(size))


def test_training_twice_gives_the_same_vocabulary(tokenizer):
    assert train_tokenizer(iter(CORPUS), 300).get_vocab() == tokenizer.get_vocab()


def test_a_vocabulary_without_room_for_merges_is_refused():
    with pytest.raises(ValueError, match="vocab_size must exceed 261"):
        train_tokenizer(CORPUS, 261)


def test_a_tokenizer_that_pads_with_end_of_text_is_refused(tmp_path):
    tokenizer = train_tokenizer(CORPUS, 280)
    tokenizer.save_pretrained(tmp_path / "good")
    assert load_tokenizer(tmp_path / "good").pad_token_id == tokenizer.convert_tokens_to_ids(PAD)
    tokenizer.pad_token = EOS
    tokenizer.save_pretrained(tmp_path / "bad")
    with pytest.raises(ConfigError, match="no padding token apart from end-of-text"):
        load_tokenizer(tmp_path / "bad")
