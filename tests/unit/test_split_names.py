"""Which split a file is, by the names that people and tools give to files and folders."""

from __future__ import annotations

import unicodedata
from pathlib import PurePath

import pytest

from align.data.split_names import doubtful_word, split_of_file, split_of_name, splits_of_names
from align.errors import ConfigError

NAMES = {
    "train": [
        "train.jsonl",
        "TRAIN.CSV",
        "training.json",
        "train_sft-00000-of-00001.parquet",
        "train_gen-00000-of-00003.parquet",
        "my_data.train.jsonl.gz",
        "msr_paraphrase_train.txt",
        "train/part-0.parquet",
        "data/train-00000-of-00002.parquet",
        "train/data-00000-of-00001.arrow",
        "eval/train.jsonl",
        "alpaca_eval_train.json",
        "test/train.jsonl",
        "traindata.jsonl",
        "myTrain.jsonl",
        "TrainSet.csv",
    ],
    "validation": [
        "dev.tsv",
        "val_0.jsonl",
        "valid.txt",
        "Validation.jsonl",
        "validation_matched.jsonl",
        "multinli_1.0_dev_mismatched.jsonl",
        "eval.jsonl",
        "evaluation set.csv",
        "dev_rand_split.jsonl.gz",
        "snli_1.0_dev.jsonl",
        "dev2.tsv",
        "val/a/b.txt",
        "valset.jsonl",
        "evalset.jsonl",
        "evals.jsonl",
        "devData.jsonl",
    ],
    "test": [
        "Test.jsonl",
        "test_prefs-00000-of-00001.parquet",
        "my_data.test.jsonl",
        "my-data-test.jsonl.xz",
        "lambada_test.jsonl",
        "SICK_test_annotated.txt",
        "heldout.jsonl",
        "held_out.jsonl",
        "held-out.csv",
        "test/part-0.parquet",
        "TestSet.jsonl",
        "alpaca_eval_test.json",
        "eval_test.jsonl",
        "testdata.jsonl",
        "myTest.jsonl",
        "tests.jsonl",
        "holdout.jsonl",
        "holdOut.jsonl",
        "hold-out-set.csv",
        "MNLITest.tsv",
    ],
    None: [
        "device.csv",
        "values.jsonl",
        "a.jsonl",
        "latest.jsonl",
        "trains.jsonl",
        "contest.csv",
        "value.tsv",
        "developer.md",
        "SICK_trial.txt",
    ],
}


@pytest.mark.parametrize(("split", "name"), [(split, name) for split, names in NAMES.items() for name in names])
def test_a_name_says_the_split_of_a_file(split, name):
    assert split_of_name(PurePath(name)) == split


@pytest.mark.parametrize(
    "name",
    [
        "train_test.jsonl",
        "dev-and-test.tsv",
        "train_test_split/a.jsonl",
        "trainTest.jsonl",
        "train-eval.jsonl",
        "train_eval_set.jsonl",
        "evaluation_train.json",
    ],
)
def test_a_name_with_words_for_two_splits_is_refused(name):
    with pytest.raises(ConfigError, match=r": its name has words for two splits, .*; rename it after one$"):
        split_of_name(PurePath(name))


def test_every_file_names_a_split_or_none_does():
    root = PurePath("test/here")  # what a source lies in says nothing
    named = [root / "a/train.jsonl", root / "dev.jsonl"]
    assert splits_of_names(root, named) == ["train", "validation"]
    assert splits_of_names(root, [root / "a.jsonl", root / "b.jsonl"]) == [None, None]
    with pytest.raises(
        ConfigError,
        match=r"^test/here: a/b\.jsonl is named as no split, and a/train\.jsonl is train by the word 'train'; rename .*"
        r"give split=train, split=validation or split=test",
    ):
        splits_of_names(root, [*named, root / "a/b.jsonl"])


@pytest.mark.parametrize(
    ("word", "name"),
    [
        ("mytest", "mytest.jsonl"),
        ("trainfile", "trainfile.jsonl"),
        ("trains", "trains.jsonl"),
        ("test", "test_prompts/a.jsonl"),
        *((None, f"{name}.jsonl") for name in ("latest", "contest", "device", "values", "retrieval", "mine")),
    ],
)
def test_a_word_that_is_like_a_split_s_is_found(word, name):
    assert doubtful_word(PurePath(name)) == word


@pytest.mark.parametrize(
    ("split", "name"),
    [
        ("test", "test/part-0.jsonl"),
        ("test", "a/Held-Out/part-0.jsonl"),
        ("validation", "dev_set/a.jsonl"),
        ("validation", "eval/a.jsonl"),
        ("train", "test/train.jsonl"),
        (None, "test_of_prompts/a.jsonl"),  # somebody tries things there
        (None, "test/mine/a.jsonl"),
        (None, "a.jsonl"),
    ],
)
def test_a_single_file_is_what_its_folder_is_named_after(split, name):
    assert split_of_file(PurePath(name)) == split


@pytest.mark.parametrize(
    ("split", "name"),
    [
        ("test", "held_out"),
        ("validation", "eval"),
        ("validation", "evaluation"),
        ("test", "my_test"),
        ("test", "test_sft"),
        ("train", "trainData"),
        (None, "latest"),
    ],
)
def test_the_name_of_a_source_s_folder_counts_where_no_file_s_does(split, name):
    root = PurePath("here", name)
    assert splits_of_names(root, [root / "part-0.jsonl", root / "a/part-1.jsonl"]) == [split, split]
    assert splits_of_names(root, [root / "train.jsonl", root / "dev.jsonl"]) == ["train", "validation"]
    with pytest.raises(ConfigError, match=r"a\.jsonl is named as no split, and train\.jsonl is train"):
        splits_of_names(root, [root / "train.jsonl", root / "a.jsonl"])


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize(
    ("split", "name"),
    [
        (None, "détest.jsonl"),
        (None, "DÉTEST.jsonl"),
        (None, "déval.jsonl"),
        (None, "čtrain.jsonl"),
        ("test", "données_test.jsonl"),
        ("train", "train-élèves.jsonl"),
        ("test", "测试test.jsonl"),
    ],
)
def test_letters_with_accents_are_letters_of_a_word(split, name, form):
    assert split_of_name(PurePath(unicodedata.normalize(form, name))) == split
