"""Rows out of files, whole and broken."""

import bz2
import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from align.data.files import read_file, suffix_of
from align.data.records import Malformed


def rows_of(tmp_path, name, content):
    """The rows of a file, each with its place below the folder; what is malformed as its message."""
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    rows = list(read_file(path))
    assert all(where.startswith(str(path)) for where, _ in rows)
    return [(where[len(str(tmp_path)) + 1 :], str(r) if isinstance(r, Malformed) else r) for where, r in rows]


def zst(content):
    return pa.compress(content, codec="zstd", asbytes=True)


LINES = b'{"text": "a"}\n{"text": "b"}\n'


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", LINES),
        ("bom.jsonl", b"\xef\xbb\xbf" + LINES),
        ("crlf.jsonl", LINES.replace(b"\n", b"\r\n")),
        ("no-last-newline.jsonl", LINES[:-1]),
        ("spaces.jsonl", b"  " + LINES.replace(b"}", b"} ")),
        ("UPPER.JSONL", LINES),
        ("zipped.jsonl.gz", gzip.compress(LINES, mtime=0)),
        ("two-members.jsonl.gz", gzip.compress(LINES[:14], mtime=0) + gzip.compress(LINES[14:], mtime=0)),
        ("two-members.jsonl.bz2", bz2.compress(LINES[:14]) + bz2.compress(LINES[14:])),
        ("two-members.jsonl.zst", zst(LINES[:14]) + zst(LINES[14:])),
    ],
)
def test_json_lines_are_read(tmp_path, name, content):
    assert rows_of(tmp_path, name, content) == [(f"{name}:1", {"text": "a"}), (f"{name}:2", {"text": "b"})]


def test_blank_lines_are_no_rows_but_count_as_lines(tmp_path):
    assert rows_of(tmp_path, "a.jsonl", '\n{"a": 1}\n  \n\n{"a": 2}\n') == [
        ("a.jsonl:2", {"a": 1}),
        ("a.jsonl:5", {"a": 2}),
    ]


def test_separators_of_unicode_end_no_line(tmp_path):
    line = json.dumps({"text": "a\u2028b\u0085c"}, ensure_ascii=False)
    assert rows_of(tmp_path, "a.jsonl", line) == [("a.jsonl:1", {"text": "a\u2028b\u0085c"})]


def test_a_cut_last_line_is_malformed(tmp_path):
    *_, (where, problem) = rows_of(tmp_path, "a.jsonl", LINES + b'{"text": "c')
    assert where == "a.jsonl:3"
    assert problem.startswith("row: expected JSON (Unterminated string")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "b', "row: expected JSON ("),
        ('{"text": ', "row: expected JSON ("),
        ("{'text': 'b'}", "row: expected JSON ("),
        ('{"text": "a\x00b"}', "row: expected JSON (Invalid control character"),
        ("\x00\x00\x00", "row: expected JSON ("),
        ('{"text": "a"} {"text": "b"}', "row: expected JSON (Extra data"),
        ('["a"]', "row: expected an object, got list"),
        ('"a"', "row: expected an object, got str"),
        ("null", "row: expected an object, got NoneType"),
        ("NaN", "row: expected an object, got float"),
        ("[" * 10_000 + "]" * 10_000, "row: expected JSON ("),
        ('{"text": ' + "[" * 10_000 + "]" * 10_000 + "}", "row: expected JSON ("),
        ('{"n": ' + "9" * 5000 + "}", "row: expected JSON ("),
    ],
)
def test_a_bad_line_is_malformed_and_the_others_are_read(tmp_path, line, message):
    first, bad, last = rows_of(tmp_path, "a.jsonl", f'{{"a": 1}}\n{line}\n{{"a": 3}}\n')
    assert (first, last) == (("a.jsonl:1", {"a": 1}), ("a.jsonl:3", {"a": 3}))
    assert bad[0] == "a.jsonl:2"
    assert bad[1].startswith(message)


def test_what_json_allows_in_python_comes_as_it_is(tmp_path):
    content = '{"a": "\\u0000", "b": "\\ud800", "c": NaN, "d": 1, "d": 2}'
    ((_, row),) = rows_of(tmp_path, "a.jsonl", content)
    assert (row["a"], row["b"], row["d"]) == ("\x00", "\ud800", 2)
    assert row["c"] != row["c"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.tsv", "a.txt", "a.md"])
def test_bytes_that_are_no_utf_8_are_malformed_with_their_place(tmp_path, name):
    *_, (where, problem) = rows_of(tmp_path, name, b'[{"text": "caf\xe9"}]\n')
    assert where == name
    assert problem.startswith("file: expected ")
    assert "invalid continuation byte" in problem
    assert "14" in problem


def test_a_json_list_gives_objects_and_texts(tmp_path):
    rows = rows_of(tmp_path, "a.json", '\ufeff["é", {"text": "b"}, 3, null, ["c"]]')
    assert rows[:2] == [("a.json[0]", {"text": "é"}), ("a.json[1]", {"text": "b"})]
    assert rows[2:] == [(f"a.json[{i}]", "row: expected an object") for i in (2, 3, 4)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "file: expected JSON ("),
        ('[{"a": 1}', "file: expected JSON ("),
        ('{"data": []}', "file: expected a JSON list of rows, got dict"),
        ("3", "file: expected a JSON list of rows, got int"),
        ("[" * 10_000 + "]" * 10_000, "file: expected JSON ("),
    ],
)
def test_a_json_file_that_is_no_list_is_malformed(tmp_path, content, message):
    ((where, problem),) = rows_of(tmp_path, "a.json", content)
    assert where == "a.json"
    assert problem.startswith(message)


def test_an_empty_json_list_has_no_rows(tmp_path):
    assert rows_of(tmp_path, "a.json", "[]") == []


@pytest.mark.parametrize(("name", "mark"), [("a.csv", ","), ("a.tsv", "\t")])
def test_tables_are_read_with_quotes_newlines_and_gaps(tmp_path, name, mark):
    content = "prompt,completion\r\na,b\r\né,\r\nonly\r\n".replace(",", mark).encode("utf-8-sig")
    rows = [row for _, row in rows_of(tmp_path, name, content)]
    assert rows == [
        {"prompt": "a", "completion": "b"},
        {"prompt": "é", "completion": ""},
        {"prompt": "only", "completion": None},
    ]


def test_a_quoted_cell_may_hold_newlines_commas_and_quotes(tmp_path):
    ((_, row),) = rows_of(tmp_path, "a.csv", 'prompt,completion\r\n"one,\r\ntwo","say ""hi"""\r\n')
    assert row == {"prompt": "one,\r\ntwo", "completion": 'say "hi"'}


def test_a_table_row_after_a_cell_of_two_lines_has_the_line_it_begins_at(tmp_path):
    assert rows_of(tmp_path, "a.csv", 'text\n"one\ntwo"\nlast\n')[1] == ("a.csv:4", {"text": "last"})


def test_a_long_cell_is_read(tmp_path):
    assert rows_of(tmp_path, "a.csv", "text\n" + "a" * 200_000 + "\n") == [("a.csv:2", {"text": "a" * 200_000})]


@pytest.mark.parametrize("content", ["", "prompt\n"])
def test_a_table_without_rows_has_none(tmp_path, content):
    assert rows_of(tmp_path, "a.csv", content) == []


@pytest.mark.parametrize("name", ["a.txt", "a.md", "a.txt.gz"])
def test_plain_text_is_one_row_with_line_ends_made_alike(tmp_path, name):
    text = "One\ntwo\u2028\n"
    written = text.replace("\n", "\r\n")
    content = gzip.compress(written.encode()) if name.endswith(".gz") else written.encode("utf-8-sig")
    assert rows_of(tmp_path, name, content) == [(name, {"text": text, "file": name})]


def test_parquet_rows_are_read(tmp_path):
    rows = [{"prompt": "é", "ranks": [1, 2]}, {"prompt": None, "ranks": []}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert list(read_file(tmp_path / "a.parquet")) == [
        (f"{tmp_path}/a.parquet:{i}", row) for i, row in enumerate(rows, 1)
    ]


def test_the_rows_before_a_damaged_place_of_a_parquet_file_are_read(tmp_path):
    with pq.ParquetWriter(tmp_path / "a.parquet", pa.schema([("text", pa.string())])) as writer:
        for text in "abc":
            writer.write_table(pa.table({"text": [text * 100] * 2000}))
    place = pq.ParquetFile(tmp_path / "a.parquet").metadata.row_group(1).column(0).dictionary_page_offset
    content = bytearray((tmp_path / "a.parquet").read_bytes())
    content[place : place + 20] = b"\xff" * 20
    *good, (where, problem) = rows_of(tmp_path, "a.parquet", bytes(content))
    assert good == [(f"a.parquet:{i}", {"text": "a" * 100}) for i in range(1, 2001)]
    assert where == "a.parquet"
    assert problem.startswith("file: expected Parquet (")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("cut.jsonl.gz", gzip.compress(LINES * 1000, mtime=0)[:-20]),
        ("plain.jsonl.gz", LINES),
        ("damaged.jsonl.gz", gzip.compress(LINES * 1000, mtime=0)[:40] + b"\x00" * 40),
        ("cut.jsonl.bz2", bz2.compress(LINES * 1000)[:-20]),
        ("plain.jsonl.bz2", LINES),
        ("cut.jsonl.zst", zst(LINES * 1000)[:-20]),
        ("plain.jsonl.zst", LINES),
        ("bad.parquet", b"PAR1 and no more"),
        ("empty.parquet", b""),
    ],
)
def test_a_broken_container_is_malformed(tmp_path, name, content):
    *_, (where, problem) = rows_of(tmp_path, name, content)
    assert where.startswith(name)
    assert problem.startswith("file: expected ")


@pytest.mark.parametrize(
    ("name", "suffix"),
    [
        ("a.jsonl", ".jsonl"),
        ("a.JSON.gz", ".json"),
        ("a.jsonl.zst", ".jsonl"),
        ("a.csv.bz2", ".csv"),
        ("a.b.csv", ".csv"),
        (".jsonl", ""),
        ("a", ""),
        ("a.gz", ""),
    ],
)
def test_the_suffix_is_seen_through_what_packs_it_and_capitals(tmp_path, name, suffix):
    assert suffix_of(tmp_path / name) == suffix
