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
        "TRAIN_EVAL.JSONL",
        "evaluation_train.json",
    ],
)
def test_a_name_with_words_for_two_splits_is_refused(name):
    with pytest.raises(ConfigError, match=r": its name has words for two splits, .*; rename it after one$"):
        split_of_name(PurePath(name))


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


BARE = ["part-0.jsonl", "a/part-1.jsonl"]
NAMED = ["a/train.jsonl", "dev.jsonl"]


@pytest.mark.parametrize(
    ("root", "files", "splits"),
    [
        # the files' own names decide, whatever the folder is called
        ("test/here", NAMED, ["train", "validation"]),
        ("here/held_out", NAMED, ["train", "validation"]),
        ("here/trainData", NAMED, ["train", "validation"]),
        # no file says a split: the folder's own name counts, and not what the folder lies in
        ("test/here", BARE, [None, None]),
        ("here/latest", BARE, [None, None]),
        ("here/held_out", BARE, ["test", "test"]),
        ("here/eval", BARE, ["validation", "validation"]),
        ("here/evaluation", BARE, ["validation", "validation"]),
        ("here/my_test", BARE, ["test", "test"]),
        ("here/test_sft", BARE, ["test", "test"]),
        ("here/trainData", BARE, ["train", "train"]),
    ],
)
def test_files_of_a_source_are_what_they_or_else_their_folder_are_named_after(root, files, splits):
    assert splits_of_names(PurePath(root), [PurePath(root, file) for file in files]) == splits


@pytest.mark.parametrize("root", ["test/here", "here/held_out", "here/train"])
def test_a_file_that_says_no_split_beside_files_that_do_is_refused(root):
    with pytest.raises(
        ConfigError,
        match=rf"^{root}: a/b\.jsonl is named as no split, and a/train\.jsonl is train by the word 'train'; rename .*"
        r"give split=train, split=validation or split=test",
    ):
        splits_of_names(PurePath(root), [PurePath(root, file) for file in (*NAMED, "a/b.jsonl")])


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
