"""Byte-level tokenizers trained here, and opened by others."""

from __future__ import annotations

import json
import math
import random

import pytest
from transformers import AutoTokenizer, LlamaConfig, T5Config

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


# -- T5's and LLaMA's kinds --------------------------------------------------------------------------------------

T5_SPECIAL = ["<pad>", "</s>", "<unk>", "<|system|>", "<|user|>", "<|assistant|>"]
SENTINELS = [f"<extra_id_{i}>" for i in range(100)]


def made_up_words():
    rng = random.Random(1)
    words = ["".join(rng.choices("abcdeeeiinostr", k=rng.randint(2, 8))) for _ in range(300)]
    return [" ".join(rng.choices(words, k=200)) for _ in range(20)]


@pytest.fixture(scope="module")
def unigram():
    return train_tokenizer(made_up_words(), 600, algorithm="unigram", num_sentinels=100)


@pytest.mark.parametrize("config", [None, T5Config(), LlamaConfig()], ids=["alone", "t5", "llama"])
def test_a_unigram_tokenizer_is_opened_as_it_was_saved(unigram, config, tmp_path):
    """Beside a model's config, too, by which the library might choose a class with rules of its own."""
    if config is not None:
        config.save_pretrained(tmp_path)
    unigram.save_pretrained(tmp_path)
    opened = AutoTokenizer.from_pretrained(tmp_path)
    assert opened.get_vocab() == unigram.get_vocab()
    assert opened.all_special_tokens == unigram.all_special_tokens
    assert load_tokenizer(tmp_path).pad_token_id == 0
    for text in (*CORPUS, *strange_texts()):
        assert opened(text)["input_ids"] == unigram(text)["input_ids"]


def test_any_text_comes_back_from_a_unigram_tokenizer(unigram):
    for text in (*CORPUS, *strange_texts(), "\u2581 \u2581the", "<0x41> \u0120"):
        assert unigram.decode(unigram(text)["input_ids"]) == text


def test_t5_s_special_tokens_have_t5_s_ids(unigram):
    assert unigram.convert_tokens_to_ids(T5_SPECIAL) == [0, 1, 2, 3, 4, 5]
    assert (unigram.pad_token_id, unigram.eos_token_id, unigram.unk_token_id) == (0, 1, 2)


@pytest.mark.parametrize("algorithm", ["bpe", "unigram"])
def test_sentinels_have_the_highest_ids_downwards(algorithm):
    corpus = made_up_words()
    tokenizer = train_tokenizer(corpus, 600, algorithm=algorithm, num_sentinels=100)
    assert len(tokenizer) == 600
    assert tokenizer.convert_tokens_to_ids(SENTINELS) == list(range(599, 499, -1))
    assert set(SENTINELS) < set(tokenizer.all_special_tokens)
    assert tokenizer("<extra_id_0>")["input_ids"] == [599]
    plain = train_tokenizer(corpus, 500, algorithm=algorithm)
    assert tokenizer("the cat sat", split_special_tokens=True) == plain("the cat sat")


@pytest.mark.parametrize("algorithm", ["bpe", "unigram"])
def test_text_cannot_become_a_special_token(algorithm):
    """Not even where it was learned from text that is full of their spelling."""
    special = [*T5_SPECIAL, *SPECIAL, *SENTINELS]
    corpus = [f"{token}{token} {token} cat" for token in special] * 20
    tokenizer = train_tokenizer(corpus, 500, algorithm=algorithm, num_sentinels=100)
    for token in special:
        for text in (token, f" {token}", f"a{token}b", token * 3):
            ids = tokenizer(text, split_special_tokens=True)["input_ids"]
            assert not set(ids) & set(tokenizer.all_special_ids)
            assert tokenizer.decode(ids) == text


def test_a_unigram_tokenizer_takes_the_likeliest_pieces(unigram):
    """Every word's pieces have the highest sum of scores, as a search over all ways to cut it finds."""
    state = json.loads(unigram.backend_tokenizer.to_str())["model"]
    scores = dict(state["vocab"][len(T5_SPECIAL) :])
    words = made_up_words()[0].split()[:50]
    for word in (*words, *(f"\u0120{word}" for word in words), words[0] + words[1], "zebra", "\u0120qcats"):
        best = [0.0] + [-math.inf] * len(word)
        for end in range(1, len(word) + 1):
            cuts = [best[i] + scores[word[i:end]] for i in range(end) if word[i:end] in scores]
            best[end] = max(cuts)
        pieces = unigram.convert_ids_to_tokens(unigram(word.replace("\u0120", " "))["input_ids"])
        assert "".join(pieces) == word
        assert sum(scores[piece] for piece in pieces) == pytest.approx(best[-1], abs=1e-9)


def test_training_a_unigram_tokenizer_twice_gives_the_same_one():
    corpus = made_up_words()
    one, two, three = (
        train_tokenizer(iter(corpus), 500, algorithm="unigram").backend_tokenizer.to_str() for _ in range(3)
    )
    assert one == two == three
    assert len(json.loads(one)["model"]["vocab"]) == 500


@pytest.mark.parametrize("algorithm", ["bpe", "unigram"])
def test_digits_are_tokens_of_their_own_on_demand(algorithm):
    corpus = [f"{text} 1234 1234 5678" for text in made_up_words()] * 3
    split = train_tokenizer(corpus, 500, algorithm=algorithm, split_digits=True)
    assert len(split("1234")["input_ids"]) == 4
    assert [split.decode([i]) for i in split("5678")["input_ids"]] == ["5", "6", "7", "8"]
    for text in ("a 12, 3.4!", "in 1999", "1 2  34", *strange_texts()):
        assert split.decode(split(text)["input_ids"]) == text
    whole = train_tokenizer(corpus, 500, algorithm=algorithm)
    assert len(whole(" 1234")["input_ids"]) < 4


@pytest.mark.parametrize(("algorithm", "least"), [("bpe", 261), ("unigram", 262)])
def test_sentinels_need_room_too(algorithm, least):
    with pytest.raises(ValueError, match=f"vocab_size must exceed {least + 100} "):
        train_tokenizer(CORPUS, least + 100, algorithm=algorithm, num_sentinels=100)
