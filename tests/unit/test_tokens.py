"""Tokens on disk and in rows, told by looking: one token a byte."""

from __future__ import annotations

import math

import numpy as np
import pytest
from tiny_models import END, FIRST, byte_tokenizer
from tokenizers import Tokenizer, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from align.text import tokens
from align.text.tokens import (
    Counts,
    TextRows,
    encode_text,
    groups_of,
    read_tokens,
    token_dtype,
    write_info,
    write_tokens,
)


@pytest.fixture(scope="module")
def tokenizer():
    return byte_tokenizer()


def ids_of(text, tokenizer):
    return [FIRST + sorted(pre_tokenizers.ByteLevel.alphabet()).index(letter) for letter in text]


def test_texts_are_read_some_megabytes_at_a_time():
    read = []

    def texts():
        for number in range(12):
            read.append(number)
            yield "x" * 2**20

    seen = [(len(group), len(read)) for group in groups_of(texts())]
    assert seen == [(4, 4), (4, 8), (4, 12)]


def test_documents_end_with_the_end_and_lie_end_to_end(tokenizer):
    text = encode_text(["abc", "de", "f"], tokenizer, 3)
    a, b, c, d, e, f = ids_of("abcdef", tokenizer)
    assert text[:].tolist() == [[a, b, c], [END, d, e], [END, f, END]]
    assert text[1].tolist() == [END, d, e]
    assert text.bytes_per_token == 6 / 9  # the three ends are tokens of no byte


@pytest.mark.parametrize(("letters", "count"), [(2, 0), (3, 1), (4, 1), (6, 1), (7, 2), (8, 2), (11, 3)])
def test_the_tail_that_fills_no_row_is_left_out(tokenizer, letters, count):
    text = encode_text(["x" * letters], tokenizer, 4)
    assert len(text) == count
    assert tuple(text[:].shape) == (count, 4)
    assert text.bytes_per_token == letters / (letters + 1)  # of all the text, the tail too


def test_bytes_are_counted_not_letters(tokenizer):
    text = encode_text(["é🌍", "a"], tokenizer, 9)
    assert len(text) == 1
    assert text.bytes_per_token == (2 + 4 + 1) / 9


def test_no_text_gives_no_rows(tokenizer):
    text = encode_text([], tokenizer, 5)
    assert tuple(text[:].shape) == (0, 5)
    assert math.isnan(text.bytes_per_token)


def test_an_empty_document_is_its_end_alone(tokenizer):
    text = encode_text(["", "", "ab"], tokenizer, 5)
    assert text[0].tolist()[:2] == [END, END]
    assert text.bytes_per_token == 2 / 5


def test_what_looks_like_the_end_is_text(tokenizer):
    text = encode_text(["<end>"], tokenizer, 6)
    assert text[0].tolist() == [*ids_of("<end>", tokenizer), END]


def test_what_a_tokenizer_was_saved_with_cuts_and_fills_nothing(tokenizer):
    kept = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(tokenizer.backend_tokenizer.to_str()))
    kept.eos_token = "<end>"
    kept.backend_tokenizer.enable_truncation(2)
    kept.backend_tokenizer.enable_padding(length=9)
    assert encode_text(["abcdefg"], kept, 8)[0].tolist() == [*ids_of("abcdefg", tokenizer), END]


def test_a_stream_is_written_as_it_would_be_at_once(tokenizer, tmp_path, monkeypatch):
    texts = ["abc", "", "é" * 7, "de" * 5, "f"]
    whole = encode_text(texts, tokenizer, 1)[:].flatten().tolist()
    monkeypatch.setattr(tokens, "CHARS", 4)
    done: list[int] = []
    counts = write_tokens(tmp_path, "train", iter(texts), tokenizer, done.append)
    assert len(done) > 1
    assert sum(done) == counts.documents == 5
    assert counts == Counts(5, len(whole), sum(len(text.encode()) for text in texts))
    flat = np.load(tmp_path / "train.npy")  # a plain NumPy file
    assert flat.dtype == np.uint16
    assert flat.tolist() == whole


def test_rows_are_read_from_the_file_where_it_lies(tokenizer, tmp_path):
    counts = write_tokens(tmp_path, "train", ["abc", "de", "f"], tokenizer, lambda n: None)
    write_info(tmp_path, "path:some/where/Books.jsonl", {"train": counts})
    text = read_tokens(tmp_path, "train", 3)
    assert isinstance(text._rows.base, np.memmap) or isinstance(text._rows, np.memmap)
    assert text[:].tolist() == encode_text(["abc", "de", "f"], tokenizer, 3)[:].tolist()
    assert text.name == "Books"
    assert text.bytes_per_token == 6 / 9
    assert len(read_tokens(tmp_path, "validation", 3)) == 0


@pytest.mark.parametrize(
    ("source", "name"),
    [("card:classic_books", "classic_books"), ("hf:org/name@" + "0" * 40, "name"), ("path:a/b.c/", "b"), ("", "text")],
)
def test_a_source_is_named_by_its_last_part(tokenizer, tmp_path, source, name):
    write_info(tmp_path, source, {})
    assert read_tokens(tmp_path, "train", 3).name == name


def test_no_documents_leave_no_file(tokenizer, tmp_path):
    assert write_tokens(tmp_path, "test", [], tokenizer, lambda n: None) == Counts(0, 0, 0)
    assert not list(tmp_path.iterdir())


def test_large_vocabularies_have_wide_tokens():
    assert token_dtype(2**16) is np.uint16
    assert token_dtype(2**16 + 1) is np.uint32
    flat = np.array([2**16, 2**31], np.uint32)
    assert TextRows(flat, 2, Counts(1, 2, 2))[0].tolist() == [2**16, 2**31]
