"""Labelled rows: what GLUE's and others' columns become, what is none, and how rows and splits are told apart."""

from __future__ import annotations

import pytest

from align.data.formats import FORMATS, infer_format, reader
from align.data.labelled import columns_without_header
from align.data.records import Dropped, Malformed, check_row, read_rows, split_key, whole_key, write_rows

PAIR = {"texts": ["a", "b"], "label": "yes"}
ASKED = {"texts": ["where?"], "choices": ["x", "y"], "label": 1}


def read(row, name=None):
    """As the data stage reads a user's row, or with a card's format."""
    record, function = reader(name or infer_format(row, "labelled"), "labelled")
    assert record == "labelled"
    return [check_row("labelled", found) for found in function(row)]


# -- what is read, and as what -------------------------------------------------------------------------------------

TEXTS = {
    "SST-2 and CoLA on the Hub": ({"sentence": "fine", "label": 1, "idx": 0}, {"texts": ["fine"], "label": "1"}),
    "a text in a CSV file": ({"text": "fine", "label": "pos"}, {"texts": ["fine"], "label": "pos"}),
    "MRPC and RTE": ({"sentence1": "a", "sentence2": "b", "label": 0}, {"texts": ["a", "b"], "label": "0"}),
    "MNLI": ({"premise": "a", "hypothesis": "b", "label": 2}, {"texts": ["a", "b"], "label": "2"}),
    "SNLI": ({"sentence1": "a", "sentence2": "b", "gold_label": "neutral"}, {"texts": ["a", "b"], "label": "neutral"}),
    "QQP": ({"question1": "a", "question2": "b", "label": 1}, {"texts": ["a", "b"], "label": "1"}),
    "QNLI": ({"question": "q", "sentence": "s", "label": 1}, {"texts": ["s", "q"], "label": "1"}),
    "BoolQ": ({"question": "q", "passage": "p", "answer": True}, {"texts": ["p", "q"], "label": "true"}),
    "STS-B on the Hub": ({"sentence1": "a", "sentence2": "b", "label": 3.8}, {"texts": ["a", "b"], "score": 3.8}),
    "a score in a TSV file": (
        {"sentence1": "a", "sentence2": "b", "score": "4"},
        {"texts": ["a", "b"], "score": 4.0},
    ),
    "MRPC's files": (
        {"Quality": "1", "#1 ID": "7", "#2 ID": "8", "#1 String": "a", "#2 String": "b"},
        {"texts": ["a", "b"], "label": "1"},
    ),
    "QQP's files": (
        {"id": "7", "question1": "a", "question2": "b", "is_duplicate": "0"},
        {"texts": ["a", "b"], "label": "0"},
    ),
    "RTE 1 in XML": ({"id": "1", "value": "TRUE", "t": "a", "h": "b"}, {"texts": ["a", "b"], "label": "entailment"}),
    "RTE 3 in XML": ({"entailment": "NO", "t": "a", "h": "b"}, {"texts": ["a", "b"], "label": "not_entailment"}),
    "a record": ({**PAIR, "id": 3}, {**PAIR, "id": 3}),
    "a record with a number for a class": ({"texts": ["a"], "label": 1}, {"texts": ["a"], "label": "1"}),
    "a record with a whole score": ({"texts": ["a", "b"], "score": 4}, {"texts": ["a", "b"], "score": 4.0}),
}
CHOICES = {
    "a record": (ASKED, ASKED),
    "CommonsenseQA on the Hub": (
        {"question": "where?", "choices": {"label": ["A", "B"], "text": ["x", "y"]}, "answerKey": "B"},
        ASKED,
    ),
    "CommonsenseQA's own files": (
        {
            "question": {"stem": "where?", "choices": [{"label": "A", "text": "x"}, {"label": "B", "text": "y"}]},
            "answerKey": "B",
        },
        ASKED,
    ),
    "ARC, some with numbers": (
        {"question": "where?", "choices": {"label": ["1", "2"], "text": ["x", "y"]}, "answerKey": "2"},
        ASKED,
    ),
    "RACE": (
        {"article": "text", "question": "where?", "options": ["x", "y"], "answer": "B"},
        {**ASKED, "texts": ["text", "where?"]},
    ),
    "HellaSwag": ({"ctx": "where?", "endings": ["x", "y"], "label": "1"}, ASKED),
    "a context and a question": (
        {"context": "text", "question": "where?", "choices": ["x", "y"], "label": 1},
        {**ASKED, "texts": ["text", "where?"]},
    ),
    "LLM Foundry": ({"query": "where?\n", "choices": ["x", "y"], "gold": 1}, ASKED),
    "LLM Foundry's BoolQ": (
        {"query": "Passage: It is.\nQuestion: is it?", "choices": ["no", "yes"], "gold": 1},
        {"texts": ["It is.", "is it?"], "label": "yes"},
    ),
}


@pytest.mark.parametrize("what", TEXTS)
def test_texts_with_a_label_are_read(what):
    row, expected = TEXTS[what]
    assert read(row) == [expected]


@pytest.mark.parametrize("what", CHOICES)
def test_choices_are_read(what):
    row, expected = CHOICES[what]
    assert read(row) == [expected]


def test_sick_has_two_tasks_in_a_row():
    texts = {"sentence_A": "A dog", "sentence_B": "No dog"}
    row = {"pair_ID": "2", **texts, "relatedness_score": "2", "entailment_judgment": "CONTRADICTION"}
    on_the_hub = {**texts, "label": 2, "relatedness_score": 2.0}
    assert read(row, "sick_entailment") == [{"texts": ["A dog", "No dog"], "label": "CONTRADICTION"}]
    assert read(on_the_hub, "sick_entailment") == [{"texts": ["A dog", "No dog"], "label": "2"}]
    for given in (row, on_the_hub):
        assert read(given, "sick_relatedness") == [{"texts": ["A dog", "No dog"], "score": 2.0}]


def test_a_card_of_items_is_read_as_labelled_where_that_is_asked():
    for name in ("query_choices", "commonsense_qa"):
        assert reader(name, "items") == FORMATS[name]
        assert reader(name, "items")[0] == "items"
        assert reader(name, "labelled")[0] == "labelled"
    assert reader("text", "labelled")[0] == "documents"


def test_a_text_beside_a_label_is_a_document_where_no_label_is_wanted():
    row = {"text": "a", "label": "b"}
    assert infer_format(row) == "text"
    assert infer_format(row, "labelled") == infer_format(row, "demonstrations") == "labelled_texts"
    with pytest.raises(Malformed, match="which makes it one of documents, and documents cannot become demonstrations"):
        infer_format({"text": "a"}, "demonstrations")


def test_a_demonstration_is_taken_for_labelled_only_where_its_columns_say_nothing_else():
    assert infer_format({"premise": "a", "hypothesis": "b", "label": "c"}, "demonstrations") == "labelled_texts"
    assert infer_format({"messages": [], "text": "a", "label": "c"}, "demonstrations") == "messages"
    with pytest.raises(
        Malformed, match=r"^columns: demonstrations need prompt, completion \(or messages; .*; the file has a;"
    ):
        infer_format({"a": 1}, "demonstrations")


@pytest.mark.parametrize("label", ["-", "", " ", None, -1, "-1"])
def test_a_row_without_a_label_is_dropped(label):
    with pytest.raises(Dropped, match=r"^no label$"):
        read({"sentence1": "a", "sentence2": "b", "label": label})
    with pytest.raises(Dropped, match=r"^no label$"):
        read({"question": "a", "choices": ["x", "y"], "answerKey": None if label in ("-", " ") else label})


@pytest.mark.parametrize(
    "row",
    [
        {"index": "0", "sentence": "a"},
        {"id": "0", "question1": "a", "question2": "b"},
        {"index": "0", "#1 ID": "1", "#2 ID": "2", "#1 String": "a", "#2 String": "b"},
        {"index": "0", "genre": "news", "sentence1": "a", "sentence2": "b"},
        {"id": "1", "t": "a", "h": "b"},
    ],
)
def test_a_row_of_a_test_file_of_glue_has_no_label_and_is_dropped(row):
    with pytest.raises(Dropped, match=r"^no label$"):
        read(row)


def test_columns_of_which_one_may_be_a_label_are_no_test_file(tmp_path):
    with pytest.raises(Malformed, match=r"^row: columns index, sentence, class make no labelled row"):
        read({"index": "0", "sentence": "a", "class": "b"})


@pytest.mark.parametrize(
    ("cells", "names"),
    [
        (["gj04", "1", "", "We went."], ("source", "label", "mark", "sentence")),
        (["gj04", "0", "*", "Him go."], ("source", "label", "mark", "sentence")),
        (["We went.", "1"], ("sentence", "label")),
        (["0", "Him go."], ("label", "sentence")),
        (["sentence", "label"], None),
        (["source", "label", "mark", "sentence"], None),
        (["index", "question", "sentence", "label"], None),
        (["0"], None),
    ],
)
def test_a_table_without_a_line_of_names_is_told_by_its_first_row(cells, names):
    assert columns_without_header(cells) == names


# -- what is not ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "field"),
    [
        ({**PAIR, "texts": "a"}, "texts"),
        ({**PAIR, "texts": []}, "texts"),
        ({**PAIR, "texts": ["a", "b", "c"]}, "texts"),
        ({**PAIR, "texts": ["a", 3]}, "texts[1]"),
        ({**PAIR, "label": 3}, "label"),
        ({"texts": ["a"]}, "label"),
        ({**PAIR, "score": 1.0}, "label"),
        ({**ASKED, "choices": ["x"]}, "choices"),
        ({**ASKED, "choices": "xy"}, "choices"),
        ({**ASKED, "choices": ["x", None]}, "choices[1]"),
        ({**ASKED, "label": 2}, "label"),
        ({**ASKED, "label": -1}, "label"),
        ({**ASKED, "label": True}, "label"),
        ({**ASKED, "label": "y"}, "label"),
        ({"texts": ["a", "b"], "score": float("nan")}, "score"),
        ({"texts": ["a", "b"], "score": "4"}, "score"),
    ],
)
def test_a_row_that_is_not_labelled_is_malformed_at(row, field):
    with pytest.raises(Malformed) as caught:
        check_row("labelled", row)
    assert str(caught.value).startswith(f"{field}: expected ")


@pytest.mark.parametrize("row", [{**PAIR, "texts": ["a", " "]}, {**ASKED, "choices": ["x", ""]}])
def test_an_empty_text_is_dropped(row):
    with pytest.raises(Dropped, match=r"^empty text$"):
        check_row("labelled", row)


@pytest.mark.parametrize("row", [{}, {"text": "a"}, {"label": 1}, {"question": "a", "label": 1}, {"premise": "a"}])
def test_columns_of_no_labelled_row_are_malformed(row):
    with pytest.raises(Malformed, match=r"^row: columns .* make no labelled row; expected a text"):
        infer_format(row, "labelled")


@pytest.mark.parametrize(
    ("row", "field"),
    [
        ({"sentence1": "a", "sentence2": "b", "score": "much"}, "score"),
        ({"sentence1": "a", "sentence2": None, "label": 1}, "sentence2"),
        ({"sentence": "a", "label": ["b"]}, "label"),
        ({"t": "a", "h": "b", "value": "maybe"}, "value"),
        ({"t": "a", "h": None, "value": "TRUE"}, "h"),
        ({"question": "a", "choices": ["x", "y"], "answerKey": "C"}, "answerKey"),
        ({"question": "a", "choices": ["x", 3], "answerKey": "A"}, "choices"),
        ({"question": "a", "choices": {"text": ["x"], "label": ["A", "B"]}, "answerKey": "A"}, "choices"),
    ],
)
def test_columns_that_hold_something_else_are_malformed_at(row, field):
    with pytest.raises(Malformed) as caught:
        read(row)
    assert str(caught.value).startswith(f"{field}: expected ")


# -- kept, and split -----------------------------------------------------------------------------------------------


def test_labelled_rows_come_back_as_they_were(tmp_path):
    for rows in ([PAIR, {"texts": ["c"], "label": "no"}], [ASKED, {**ASKED, "label": 0}]):
        write_rows(tmp_path, "train", rows)
        assert list(read_rows([tmp_path], "train")) == rows


def test_rows_of_one_premise_stay_in_one_split_and_only_the_same_row_is_taken_out_of_another():
    other = {**PAIR, "texts": ["a", "c"]}
    assert split_key(PAIR) == split_key(other)
    assert whole_key(PAIR) != whole_key(other)
    assert whole_key(PAIR) == whole_key({**PAIR, "label": "no"})
    assert whole_key(ASKED) != whole_key({**ASKED, "choices": ["x", "z"]})
    prompt = {"prompt": [{"role": "user", "content": "Why?"}]}
    assert whole_key(prompt) == split_key(prompt)
