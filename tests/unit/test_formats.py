"""From raw rows, as people and data sets write them, to records; and what is none of them."""

import json

import pytest

from align.data.cards import DataCard
from align.data.formats import FORMATS, infer_format
from align.data.hub import load_splits, read_split
from align.data.records import Dropped, Malformed


def read(name, row):
    return list(FORMATS[name][1](row))


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


CHAT = "\n\nHuman: Can ducks swim?\n\nAssistant: Yes.\n\nHuman: And hens?\n\nAssistant:"
PAIR = {"chosen": CHAT + " Hardly.", "rejected": CHAT + "  Of course!\n"}
SYSTEM = {"role": "system", "content": "Be kind."}
SONG = {"messages": [user("Sing."), assistant("la")]}
ARTICLES = """
 = Hens = 

 A hen ( a bird ) is n't red , it weighs 1 @.@ 5 kg . 
 = = Food = = 
 "  Corn " . 
 = Foxes = 
 Well @-@ known . 
"""


# -- what is read, and as what -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "row", "expected"),
    [
        ("text", {"text": "Grüße 🌍\r\n", "id": 3}, [{"text": "Grüße 🌍\r\n"}]),
        ("messages", {"messages": [user("a"), assistant("b")]}, [{"messages": [user("a"), assistant("b")]}]),
        ("prompt", {"prompt": "why?", "id": 3}, [{"prompt": [user("why?")], "id": 3}]),
        ("prompt", {"prompt": [SYSTEM, user("why?")]}, [{"prompt": [SYSTEM, user("why?")]}]),
        (
            "prompt_completion",
            {"prompt": "why?", "completion": "because"},
            [{"messages": [user("why?"), assistant("because")]}],
        ),
        (
            "prompt_completion",
            {"prompt": [SYSTEM, user("why?")], "completion": [assistant("because")]},
            [{"messages": [SYSTEM, user("why?"), assistant("because")]}],
        ),
        (
            "prompt_chosen_rejected",
            {"prompt": "why?", "chosen": "so", "rejected": "no"},
            [{"prompt": [user("why?")], "responses": ["so", "no"], "ranks": [1, 2]}],
        ),
        (
            "prompt_chosen_rejected",
            {"prompt": [user("why?")], "chosen": [assistant("so")], "rejected": [assistant("no")]},
            [{"prompt": [user("why?")], "responses": ["so", "no"], "ranks": [1, 2]}],
        ),
        (
            "prompt_chosen_rejected",  # some repeat the prompt in both
            {"prompt": "why?", "chosen": [user("why?"), assistant("so")], "rejected": [user("why?"), assistant("no")]},
            [{"prompt": [user("why?")], "responses": ["so", "no"], "ranks": [1, 2]}],
        ),
        (
            "prompt_responses_ranks",
            {"prompt": "why?", "responses": ["a", "b", "c"], "ranks": [2, 1, 2]},
            [{"prompt": [user("why?")], "responses": ["a", "b", "c"], "ranks": [2, 1, 2]}],
        ),
        (
            "instruction",
            {"instruction": "Add.", "input": " 1, 2 ", "output": "3"},
            [{"messages": [user("Add.\n\n1, 2"), assistant("3")]}],
        ),
        ("instruction", {"instruction": "Sing.", "input": "", "output": "la"}, [SONG]),
        ("instruction", {"instruction": "Sing.", "input": None, "output": "la"}, [SONG]),
        ("instruction", {"instruction": "Sing.", "output": "la"}, [SONG]),
        (
            "instruction",
            {"instruction": "Who?", "context": "Ann came.", "response": "Ann"},
            [{"messages": [user("Who?\n\nAnn came."), assistant("Ann")]}],
        ),
        (
            "instruction",
            {"instruction": "And then?", "output": "Home.", "history": [["Where?", "Out."], ["When?", "Late."]]},
            [{"messages": [user("Where?"), assistant("Out."), user("When?"), assistant("Late."), user("And then?"),
                           assistant("Home.")]}],
        ),
        (
            "transcripts",
            PAIR,
            [{"prompt": [user("Can ducks swim?"), assistant("Yes."), user("And hens?")],
              "responses": ["Hardly.", "Of course!"], "ranks": [1, 2]}],
        ),
        (
            "judged_pairs",
            {"instruction": "why?", "output_1": "a", "output_2": "b", "preference": 2.0},
            [{"prompt": [user("why?")], "responses": ["a", "b"], "ranks": [2, 1]}],
        ),
        (
            "task_instances",
            {"instruction": "Add.", "instances": [{"input": "1, 2", "output": "3"}, {"input": "", "output": "?"}]},
            [{"messages": [user("Add.\n\n1, 2"), assistant("3")]}, {"messages": [user("Add."), assistant("?")]}],
        ),
        (
            "book",
            {"text": "# The Hen\nby A. Fox\n\n-----\n\n# One\n\nIt rained.\n\n## Two\n\n# Three\n\nIt -- stopped.\n",
             "file": "hen.md"},
            [{"text": "It rained.", "book": "hen.md"}, {"text": "It -- stopped.", "book": "hen.md"}],
        ),
        ("book", {"text": "No rule, no heading."}, [{"text": "No rule, no heading.", "book": ""}]),
        (
            "wikitext",
            {"text": ARTICLES},
            [{"text": "A hen (a bird) isn't red, it weighs 1.5 kg.\n\" Corn\"."}, {"text": "Well-known."}],
        ),
    ],
)  # fmt: skip
def test_reads(name, row, expected):
    assert read(name, row) == expected


@pytest.mark.parametrize("end", ["", "\n"])
def test_lines_of_the_hub_make_the_articles_of_the_file(end, tmp_path):
    """Through the loader of the Hub's data sets, which opens a folder as well."""
    in_lines = "".join(json.dumps({"text": line + end}) + "\n" for line in ARTICLES.split("\n"))
    (tmp_path / "train.jsonl").write_text(in_lines)
    card = DataCard(name="mine", hub=f"{tmp_path}@{'0' * 40}", format="wikitext")
    rows = list(read_split(card, "train", load_splits(card)["train"]))
    assert len(rows) == 3  # with what stands before the first title
    assert [row for raw in rows for row in read("wikitext", raw.row)] == read("wikitext", {"text": ARTICLES})


@pytest.mark.parametrize(
    ("row", "record", "name"),
    [
        ({"text": "a"}, "documents", "text"),
        ({"prompt": "a"}, "prompts", "prompt"),
        ({"prompt": "a", "completion": "b", "text": "c"}, "documents", "text"),
        ({"prompt": "a", "completion": "b", "text": "c"}, "demonstrations", "prompt_completion"),
        ({"prompt": "a", "completion": "b"}, "prompts", "prompt_completion"),
        ({"prompt": "a", "completion": "b", "label": False}, "prompts", "prompt_completion"),
        ({"prompt": "a", "response": "b", "helpfulness": 3}, "prompts", "prompt"),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "comparisons", "prompt_chosen_rejected"),
        ({"chosen": "b", "rejected": "c"}, "comparisons", "transcripts"),
        ({"chosen": "b", "rejected": "c"}, "prompts", "transcripts"),
        ({"prompt": "a", "responses": [], "ranks": []}, "comparisons", "prompt_responses_ranks"),
        ({"messages": [], "prompt": "the first message again"}, "demonstrations", "messages"),
        ({"instruction": "a", "input": "b", "output": "c"}, "demonstrations", "instruction"),
        ({"instruction": "a", "context": "b", "response": "c"}, "demonstrations", "instruction"),
        ({"question": "a", "answer": "b"}, "demonstrations", "question_answer"),
        ({"question": "a", "answer": "b"}, "prompts", "question"),
        ({"question": "a", "choices": ["b", "c"], "answer": "A"}, "demonstrations", "labelled_choices"),
        ({"passage": "a", "question": "b", "answer": "yes"}, "demonstrations", "labelled_texts"),
        ({"prompt": "a", "completion": "b", "label": True}, "demonstrations", "prompt_completion"),
        ({"prompt": "a", "completion": "b", "label": True}, "comparisons", "unpaired_ranked"),
    ],
)
def test_the_columns_tell_the_format(row, record, name):
    assert infer_format(row, record) == name


@pytest.mark.parametrize("row", [{}, {"Other": "a"}, {"completion": "a"}, {None: ["a"]}, {"instruction": "a"}])
def test_columns_of_no_format_are_malformed(row):
    with pytest.raises(Malformed, match=r"^columns: documents need text .*; the file has .*; give columns="):
        infer_format(row)


def test_trl_pairs_with_the_prompt_inside_are_read():
    row = {"chosen": [user("why?"), assistant("so")], "rejected": [user("why?"), assistant("no")]}
    assert read(infer_format(row, "comparisons"), row) == [
        {"prompt": [user("why?")], "responses": ["so", "no"], "ranks": [1, 2]}
    ]


@pytest.mark.parametrize(
    "completion", [[assistant("one"), user("go on"), assistant("two")], [assistant("one"), user("go on")]]
)
def test_no_turn_of_a_completion_is_lost_in_silence(completion):
    try:
        (row,) = read("prompt_completion", {"prompt": "why?", "completion": completion})
    except Malformed:
        return
    assert row["messages"] == [user("why?"), *completion]


# -- what is not ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "row", "field"),
    [
        ("text", {}, "text"),
        ("text", {"text": None}, "text"),
        ("text", {"text": float("nan")}, "text"),
        ("messages", {"messages": "hello"}, "messages"),
        ("messages", {"messages": [{"role": "gpt", "content": "a"}]}, "messages[0].role"),
        ("messages", {"messages": [{"from": "bot", "value": "a"}]}, "messages[0].from"),
        ("prompt", {"prompt": True}, "prompt"),
        ("prompt_completion", {"prompt": "a", "completion": None}, "completion"),
        ("prompt_completion", {"prompt": "a", "completion": []}, "completion"),
        ("prompt_completion", {"prompt": None, "completion": "a"}, "prompt"),
        ("prompt_completion", {"prompt": [{"role": "user"}], "completion": "a"}, "prompt[0].content"),
        ("prompt_chosen_rejected", {"prompt": "a", "chosen": "b", "rejected": None}, "rejected"),
        ("prompt_chosen_rejected", {"prompt": "a", "chosen": {"content": "b"}, "rejected": "c"}, "chosen"),
        ("instruction", {"instruction": None, "output": "a"}, "instruction"),
        ("instruction", {"instruction": "a", "input": ["b"], "output": "c"}, "input"),
        ("instruction", {"instruction": "a", "output": True}, "output"),
        ("instruction", {"instruction": "a", "output": "b", "history": [["c", 3]]}, "history"),
        ("transcripts", {"chosen": None, "rejected": "x"}, "chosen"),
        ("transcripts", {**PAIR, "rejected": "Human: a\n\nAssistant: b"}, "rejected"),
        ("transcripts", {**PAIR, "chosen": "\n\nHuman: a"}, "chosen"),
        ("transcripts", {**PAIR, "chosen": ""}, "chosen"),
        ("transcripts", {**PAIR, "chosen": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c"}, "chosen"),
        ("transcripts", dict.fromkeys(PAIR, "\n\nAssistant: a\n\nHuman: b\n\nAssistant: c"), "chosen"),
        ("judged_pairs", {"instruction": "a", "output_1": "b", "preference": 1}, "output_2"),
        ("judged_pairs", {"output_1": "b", "output_2": "c", "preference": 1}, "instruction"),
        ("task_instances", {"instances": []}, "instruction"),
        ("book", {"text": 3}, "text"),
        ("wikitext", {"text": None}, "text"),
    ],
)
def test_is_malformed_at(name, row, field):
    with pytest.raises(Malformed) as caught:
        read(name, row)
    assert str(caught.value).startswith(f"{field}: expected ")


@pytest.mark.parametrize(
    ("name", "row", "field"),
    [
        ("instruction", {"instruction": "a", "output": "b", "history": [["only one"]]}, "history"),
        ("instruction", {"instruction": "a", "output": "b", "history": [["a", "b", "c"]]}, "history"),
        ("instruction", {"instruction": "a", "output": "b", "history": 3}, "history"),
        ("instruction", {"instruction": "a", "output": "b", "history": [None]}, "history"),
        ("task_instances", {"instruction": "a", "instances": [{"input": "b"}]}, "output"),
        ("task_instances", {"instruction": "a", "instances": "b"}, "instances"),
        ("task_instances", {"instruction": "a", "instances": [None]}, "instances"),
        ("task_instances", {"instruction": "a", "instances": True}, "instances"),
    ],
)
def test_inner_shape_is_malformed_at(name, row, field):
    with pytest.raises(Malformed) as caught:
        read(name, row)
    assert str(caught.value).startswith(field)


def test_a_history_of_text_is_malformed():
    with pytest.raises(Malformed, match=r"^history"):
        read("instruction", {"instruction": "a", "output": "b", "history": ["hi", "yo"]})


OUTPUTS = {"instruction": "a", "output_1": "b", "output_2": "c"}


@pytest.mark.parametrize(
    ("name", "row", "reason"),
    [
        (
            "transcripts",
            {**PAIR, "rejected": "\n\nHuman: Other?\n\nAssistant: b"},
            "transcripts differ before the last answer",
        ),
        (
            "transcripts",
            dict.fromkeys(PAIR, "\n\nHuman: a\n\nHuman: b\n\nAssistant: c"),
            "two turns of one speaker in a row",
        ),
        ("prompt", {"prompt": [user("a"), user("b")]}, "a conversation whose turns are in an odd order"),
        ("judged_pairs", OUTPUTS, "no preference"),
        *(("judged_pairs", {**OUTPUTS, "preference": p}, "no preference") for p in (None, 0, float("nan"), [1], "x")),
    ],
)
def test_is_dropped_as(name, row, reason):
    with pytest.raises(Dropped, match=f"^{reason}$"):
        read(name, row)


@pytest.mark.parametrize("name", ["text", "messages", "prompt_chosen_rejected", "instruction", "transcripts", "book"])
def test_the_raw_row_is_left_as_it_was(name):
    row = {**PAIR, "text": "# a\nb", "messages": [user("a")], "prompt": CHAT, "instruction": "a", "output": "b"}
    before = repr(row)
    read(name, row)
    assert repr(row) == before


@pytest.mark.parametrize("record", ["prompts", "demonstrations", "comparisons"])
def test_a_text_file_of_questions_is_told_to_be_written_as_lines(record):
    with pytest.raises(Malformed, match=r'q\.txt is one document.* write .*, q\.jsonl, each as \{"prompt": "\.\.\."'):
        infer_format({"text": "Can ducks swim?\nAnd hens?\n", "file": "q.txt"}, record)
