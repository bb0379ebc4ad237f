"""Labelled rows as text: T5's examples."""

from __future__ import annotations

import subprocess
import sys

import pytest

from align.data.labelled_as_text import as_text_to_text
from align.data.records import check_row

PAIR = ["A man sleeps.", "He is awake."]

CASES = [
    (
        "snli",
        {"texts": PAIR, "label": "contradiction"},
        "snli hypothesis: He is awake. premise: A man sleeps.",
        "contradiction",
    ),
    (
        "qnli",
        {"texts": ["He lies there.", "Where is he?"], "label": "entailment"},
        "qnli question: Where is he? sentence: He lies there.",
        "entailment",
    ),
    (
        "qqp",
        {"texts": ["What is it?", "What is that?"], "label": "duplicate"},
        "qqp question1: What is it? question2: What is that?",
        "duplicate",
    ),
    (
        "boolq",
        {"texts": ["Cats purr.", "do cats purr"], "label": "yes"},
        "boolq passage: Cats purr. question: do cats purr",
        "yes",
    ),
    ("sst2", {"texts": ["so good"], "label": "positive"}, "sst2 sentence: so good", "positive"),
    ("mrpc", {"texts": PAIR, "label": "no"}, "mrpc sentence1: A man sleeps. sentence2: He is awake.", "no"),
    ("stsb", {"texts": PAIR, "score": 3.25}, "stsb sentence1: A man sleeps. sentence2: He is awake.", "3.2"),
    (
        "copa",
        {"texts": ["He slept."], "choices": ["He was tired.", "He woke."], "label": 0},
        "copa choice1: He was tired. choice2: He woke. question: He slept.",
        "He was tired.",
    ),
]


@pytest.mark.parametrize(("name", "row", "asked", "answer"), CASES, ids=[case[0] for case in CASES])
def test_a_labelled_row_becomes_a_demonstration(name, row, asked, answer):
    messages = as_text_to_text(row, name)
    assert [m["content"] for m in messages] == [asked, answer]
    assert check_row("demonstrations", {"messages": messages})["messages"] == messages


def test_what_is_absent_may_also_be_null():
    """As rows come back from Parquet, where every row has every column."""
    row = {"texts": PAIR, "label": "neutral", "score": None, "choices": None}
    assert as_text_to_text(row, "snli")[1]["content"] == "neutral"
    row = {"texts": PAIR, "label": None, "score": 5.0, "choices": None}
    assert as_text_to_text(row, "stsb")[1]["content"] == "5.0"


def test_scores_become_the_nearest_fifth():
    """T5's 21 strings for 1 to 5 in steps of 0.2."""
    scores = [1 + i / 100 for i in range(401)]
    written = {as_text_to_text({"texts": PAIR, "score": score}, "stsb")[1]["content"] for score in scores}
    assert written == {f"{1 + i * 0.2:.1f}" for i in range(21)}
    for score in scores:
        assert abs(float(as_text_to_text({"texts": PAIR, "score": score}, "stsb")[1]["content"]) - score) <= 0.1 + 1e-9


def test_rows_are_written_without_torch():
    code = "import sys, align.data.labelled_as_text; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
