"""What is a row, what is not, and the dataset that holds them."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from align.data import records
from align.data.records import (
    Dropped,
    Malformed,
    check_messages,
    check_row,
    convert,
    read_info,
    read_rows,
    source_name,
    split_key,
    split_of,
    whole_key,
    write_info,
    write_rows,
)  # fmt: skip

USER = {"role": "user", "content": "How warm is tea?"}
ASSISTANT = {"role": "assistant", "content": "Warm enough."}
SYSTEM = {"role": "system", "content": "Be kind."}
TOOL = {"role": "tool", "content": "40 degrees", "name": "x"}
RANKING = {"prompt": [USER], "responses": ["warm", "cold"], "ranks": [1, 2]}


def nested(depth):
    value: object = "x"
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("value", "field"),
    [
        (None, "messages"),
        ([], "messages"),
        ("hello", "messages"),
        ({"role": "user"}, "messages"),
        ([USER, "hello"], "messages[1]"),
        ([USER, None], "messages[1]"),
        ([USER, []], "messages[1]"),
        ([{"role": "bot", "content": "x"}], "messages[0].role"),
        ([{"role": "User", "content": "x"}], "messages[0].role"),
        ([{"content": "x"}], "messages[0].role"),
        ([{"role": ["user"], "content": "x"}], "messages[0].role"),
        ([USER, {"role": "assistant"}], "messages[1].content"),
        ([USER, {"role": "assistant", "content": None}], "messages[1].content"),
        ([USER, {"role": "assistant", "content": 3}], "messages[1].content"),
        ([USER, {"role": "assistant", "content": [{"type": "text", "text": "x"}]}], "messages[1].content"),
        ([USER, {"role": "assistant", "content": float("nan")}], "messages[1].content"),
        ([{"role": "user", "content": nested(500)}], "messages[0].content"),
        ([USER, USER], "messages"),
        ([ASSISTANT, USER], "messages"),
        ([SYSTEM, ASSISTANT], "messages"),
        ([USER, ASSISTANT, SYSTEM, ASSISTANT], "messages"),
        ([TOOL, ASSISTANT], "messages"),
        ([USER, TOOL, ASSISTANT], "messages"),
        ([USER, ASSISTANT, TOOL, USER], "messages"),
    ],
)
def test_bad_messages_are_malformed_at(value, field):
    with pytest.raises(Malformed) as caught:
        check_messages(value, "messages")
    assert str(caught.value).startswith(f"{field}: expected ")
    assert len(str(caught.value)) < 300


def test_a_role_of_bytes_as_a_parquet_file_may_hold_is_malformed():
    with pytest.raises(Malformed, match=r"^messages\[0\]\.role: "):
        check_messages([{"role": b"user", "content": "x"}], "messages")


@pytest.mark.parametrize(
    "messages",
    [
        [USER],
        [SYSTEM, USER],
        [USER, ASSISTANT, USER, ASSISTANT],
        [SYSTEM, USER, ASSISTANT, SYSTEM, USER],
        [USER, ASSISTANT, TOOL, ASSISTANT],
        [USER, ASSISTANT, TOOL, TOOL, ASSISTANT],  # of two calls at once
    ],
)
def test_good_messages_come_back_as_they_are(messages):
    assert check_messages([{**m, "name": "x", "tool_calls": None} for m in messages], "messages") == messages


@pytest.mark.parametrize(
    ("record", "row", "field"),
    [
        ("documents", {}, "text"),
        ("documents", {"text": ["a"]}, "text"),
        ("documents", {"text": float("nan")}, "text"),
        ("demonstrations", {"messages": [USER, ASSISTANT, SYSTEM]}, "messages[2].role"),
        ("prompts", {"prompt": [USER, ASSISTANT]}, "prompt[1].role"),
        ("prompts", {"prompt": [SYSTEM]}, "prompt[0].role"),
        ("prompts", {"prompt": "text"}, "prompt"),
        ("comparisons", {"prompt": [USER]}, "responses"),
        ("comparisons", {**RANKING, "responses": []}, "responses"),
        ("comparisons", {**RANKING, "responses": ["only one"], "ranks": [1]}, "responses"),
        ("comparisons", {**RANKING, "responses": "ab"}, "responses"),
        ("comparisons", {**RANKING, "responses": ["a", None]}, "responses[1]"),
        ("comparisons", {**RANKING, "responses": [3, "a"]}, "responses[0]"),
        ("comparisons", {**RANKING, "ranks": [1]}, "ranks"),
        ("comparisons", {**RANKING, "ranks": None}, "ranks"),
        ("comparisons", {**RANKING, "ranks": {"a": 1, "b": 2}}, "ranks"),
        ("comparisons", {**RANKING, "ranks": [1, 2.0]}, "ranks"),
        ("comparisons", {**RANKING, "ranks": [1, True]}, "ranks"),
        ("comparisons", {**RANKING, "ranks": ["1", "2"]}, "ranks"),
        ("unpaired", {"prompt": [USER], "completion": "a"}, "label"),
        ("unpaired", {"prompt": [USER], "completion": "a", "label": 1}, "label"),
        ("unpaired", {"prompt": [USER], "completion": ["a"], "label": True}, "completion"),
        ("unpaired", {"prompt": [ASSISTANT], "completion": "a", "label": True}, "prompt"),
    ],
)
def test_a_row_that_is_not_its_record_is_malformed_at(record, row, field):
    with pytest.raises(Malformed) as caught:
        check_row(record, row)
    assert str(caught.value).startswith(f"{field}: expected ")


@pytest.mark.parametrize("responses", [[{"role": "assistant"}, "b"], [["a"], ["b"]]])
def test_responses_that_are_no_text_are_malformed(responses):
    with pytest.raises(Malformed, match=r"^responses\[0\]: "):
        check_row("comparisons", {**RANKING, "responses": responses})


@pytest.mark.parametrize(
    ("record", "row", "reason"),
    [
        ("documents", {"text": ""}, "empty text"),
        ("documents", {"text": " \n\t\u00a0"}, "empty text"),
        ("demonstrations", {"messages": [USER, {"role": "assistant", "content": ""}]}, "empty text"),
        ("demonstrations", {"messages": [{"role": "user", "content": " "}, ASSISTANT]}, "empty text"),
        ("demonstrations", {"messages": [USER]}, "a conversation that ends with the user"),
        ("demonstrations", {"messages": [USER, ASSISTANT, USER]}, "a conversation that ends with the user"),
        ("prompts", {"prompt": [{"role": "user", "content": "\n"}]}, "empty text"),
        ("comparisons", {**RANKING, "responses": ["a", ""]}, "empty text"),
        ("unpaired", {"prompt": [USER], "completion": " ", "label": True}, "empty text"),
        ("comparisons", {**RANKING, "ranks": [1, 1]}, "all tied"),
        ("comparisons", {**RANKING, "responses": ["a", "a"]}, "responses all alike"),
    ],
)
def test_a_row_that_teaches_nothing_is_dropped_as(record, row, reason):
    with pytest.raises(Dropped, match=f"^{reason}$"):
        check_row(record, row)


def test_extra_columns_and_partial_ties_are_kept():
    row = {**RANKING, "responses": ["a", "b", "b"], "ranks": [1, 2, 2], "source": "mine"}
    assert check_row("comparisons", row) == row


def test_what_was_answered_or_compared_can_be_asked_again():
    assert convert({"messages": [SYSTEM, USER, ASSISTANT]}, "demonstrations", "prompts") == {"prompt": [SYSTEM, USER]}
    assert convert(RANKING, "comparisons", "prompts") == {"prompt": [USER]}
    said = {"text": "How warm is tea?\n\nWarm enough."}
    assert convert({"messages": [USER, ASSISTANT]}, "demonstrations", "documents") == said
    assert convert({"text": "a"}, "documents", "documents") == {"text": "a"}


@pytest.mark.parametrize(
    ("record", "wanted"), [("documents", "prompts"), ("prompts", "demonstrations"), ("demonstrations", "comparisons")]
)
def test_what_cannot_become_another_record_is_refused(record, wanted):
    with pytest.raises(ValueError, match=f"{record} cannot become {wanted}"):
        convert({"text": "a"}, record, wanted)


def test_the_split_hangs_on_what_is_asked_alone():
    row = {"messages": [SYSTEM, {"role": "user", "content": "  how WARM\nis tea? "}, ASSISTANT]}
    assert split_key(row) == split_key({"prompt": [USER]}) == split_key(RANKING) == "how warm is tea?"
    assert split_key({"prompt": [USER, ASSISTANT, USER]}) != split_key({"prompt": [USER]})


def test_a_user_s_own_columns_do_not_decide_a_prompt_s_split():
    own = {"text": "x", "texts": ["y"], "completions": [{"response": "z"}], "book": "b"}
    assert split_key({**own, "prompt": [USER]}) == split_key({"prompt": [USER]})
    assert whole_key({**own, "prompt": [USER]}) == whole_key({"prompt": [USER]})


def test_the_rankings_of_one_tree_of_messages_are_in_one_split():
    later = [USER, ASSISTANT, {**USER, "content": "And milk?"}]
    keys = {split_key({"prompt": prompt, "message_tree_id": "t1"}) for prompt in ([USER], later)}
    assert keys == {split_key({"prompt": [USER]})}


@pytest.mark.parametrize(
    "row", [{"prompt": [USER]}, {"messages": [SYSTEM, USER, ASSISTANT]}, RANKING], ids=["prompt", "messages", "ranking"]
)
def test_one_prompt_of_two_trees_is_in_one_split(row):
    one, other = ({**row, "message_tree_id": tree} for tree in ("t1", "t2"))
    assert split_key(one) == split_key(other) == split_key(row)
    assert whole_key(one) == whole_key(other) == whole_key(row)


def test_splits_have_their_shares_and_never_move():
    splits = [split_of(f"question {i}", 0.1) for i in range(20_000)]
    assert 0.09 < splits.count("validation") / 20_000 < 0.11
    assert 0.09 < splits.count("test") / 20_000 < 0.11
    assert {split_of(f"question {i}", 0.0) for i in range(100)} == {"train"}
    # a wider hold-out takes from train, and never gives a held-out key back
    assert all(split_of(f"question {i}", 0.2) != "train" for i in range(2000) if splits[i] == "validation")
    assert split_of("\ud800", 0.1) in ("train", "validation", "test")


def test_rows_come_back_from_several_folders_in_order(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    rows = [{"text": "é \U0001f600 \x00 line\r\n"}, {"text": "b"}]
    assert write_rows(one, "train", rows) == 2
    assert write_rows(two, "train", iter([{"text": "c"}])) == 1
    assert list(read_rows([one, two], "train")) == [*rows, {"text": "c"}]
    assert list(read_rows([one, two], "test")) == []


def test_no_rows_write_no_file(tmp_path):
    assert write_rows(tmp_path, "train", []) == 0
    assert list(tmp_path.iterdir()) == []


def test_nested_rows_come_back_as_they_were(tmp_path):
    rows = [{**RANKING, "note": None}, {**RANKING, "note": "x"}]
    write_rows(tmp_path, "test", rows)
    assert list(read_rows([tmp_path], "test")) == rows


def test_a_column_that_the_first_row_lacks_is_kept(tmp_path):
    write_rows(tmp_path, "train", [{"text": "a"}, {"text": "b", "source": "mine"}])
    assert list(read_rows([tmp_path], "train")) == [{"text": "a", "source": None}, {"text": "b", "source": "mine"}]


def test_rows_of_several_groups_make_the_file_that_arrow_makes_of_the_whole(tmp_path):
    rows = [{"text": f"Document {i}", "n": i % 7, "source": "web" if i % 3 else None} for i in range(25_000)]
    assert write_rows(tmp_path, "train", rows) == 25_000
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "whole.parquet", row_group_size=10_000)
    assert (tmp_path / "train.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()


COLUMNS = {  # values over three groups of two; as JSON, those that Arrow has no one type for
    "nothing before the last": ([None, None, None, None, None, "x"], False),
    "nothing at all": ([None] * 6, False),
    "whole numbers, then others": ([1, 2, 3, 4, None, 5.5], False),
    "others, then whole numbers": ([0.5, 1, 3, 4, 5, 6], False),
    "text behind numbers": ([1, 2, 3, 4, 5, "x"], True),
    "numbers behind text": (["x", "y", None, None, 5, 6], True),
    "a truth behind numbers": ([1, 2, True, 4, 5, 6], True),
    "a number behind truths": ([True, False, True, True, 5.0, True], True),
    "too large for floats": ([0.5, 1.5, 2**60 + 1, 2, 3, 4], True),
    "too large for Arrow": ([1, 2, 3, 4, 5, 2**70], True),
    "nested in the last": (["a", None, "b", "c", "d", {"e": [1]}], True),
    "nested in the first, then nothing": ([["a"], None, None, None, None, None], True),
    "half of a surrogate pair": (["a", "b", "c", "d", "e", "\ud800"], True),
    "several surprises": ([None, None, 1, 2.5, None, "x"], True),
}


@pytest.mark.parametrize("what", COLUMNS)
@pytest.mark.parametrize("once", [False, True], ids=["list", "iterator"])
def test_a_column_has_the_type_of_all_its_values_whatever_group_they_are_in(tmp_path, monkeypatch, what, once):
    values, as_json = COLUMNS[what]
    monkeypatch.setattr(records, "GROUP_ROWS", 2)
    rows = [{"text": str(i), "own": value, f"only {i}": i} for i, value in enumerate(values)]
    told = []
    assert write_rows(tmp_path, "train", iter(rows) if once else rows, told.append) == sum(told) == 6
    texts = [None if value is None else json.dumps(value) for value in values]
    expected = {"text": [row["text"] for row in rows], "own": texts if as_json else values}
    expected |= {f"only {i}": [i if i == j else None for j in range(6)] for i in range(6)}
    found = pq.ParquetFile(tmp_path / "train.parquet")
    assert found.num_row_groups == 3
    assert found.read() == pa.table(expected)


def test_long_rows_are_written_in_smaller_groups(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "GROUP_CHARS", 100)
    rows = [{"messages": [{**USER, "content": "x" * length}, ASSISTANT]} for length in (10, 10, 100, 10, 300, 300)]
    write_rows(tmp_path, "train", rows)
    found = pq.ParquetFile(tmp_path / "train.parquet").metadata
    assert [found.row_group(i).num_rows for i in range(found.num_row_groups)] == [3, 2, 1]
    assert list(read_rows([tmp_path], "train")) == rows


def test_rows_that_end_in_an_error_leave_no_file(tmp_path, monkeypatch):
    def rows():
        yield from ({"text": str(i)} for i in range(5))
        raise InterruptedError

    class Rows:
        def __iter__(self):
            return rows()

    monkeypatch.setattr(records, "GROUP_ROWS", 2)
    with pytest.raises(InterruptedError):
        write_rows(tmp_path, "train", Rows())
    assert list(tmp_path.iterdir()) == []


def test_the_info_comes_back(tmp_path):
    write_info(tmp_path, record="prompts", dropped={"empty text": 2}, licence="é")
    assert read_info(tmp_path) == {"record": "prompts", "dropped": {"empty text": 2}, "licence": "é"}
    json.loads((tmp_path / "dataset.json").read_text(encoding="ascii"))


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("card:snli", "snli"),
        ("path:work/snli.jsonl.gz", "snli"),
        ("path:me@work/snli.jsonl", "snli"),
        ("hf:org/sets@0123", "sets"),
        ("path:.", "text"),
    ],
)
def test_a_source_is_called_by_its_last_part(source, name):
    assert source_name(source) == name


@pytest.mark.parametrize("name", ["gold", "labels", "text", "completions", "ranks", "responses", "messages", "texts"])
def test_a_column_of_the_user_s_may_have_the_name_of_another_record_s_field(name, tmp_path):
    """Values of several types become JSON text, as those of any column that no record owns."""
    values = [3, "three", [3], {"a": 3}]
    write_rows(tmp_path, "train", [{"prompt": [USER], name: value} for value in values], record="prompts")
    assert [json.loads(row[name]) for row in read_rows([tmp_path], "train")] == values
    with pytest.raises(pa.ArrowException):
        write_rows(tmp_path, "test", [{"prompt": value} for value in values], record="prompts")
