"""Rows out of files, whole and broken."""

import bz2
import csv
import gzip
import json
import lzma
import os
import re
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import mostly_slow

from align.data.files import Place, read_file, suffix_of
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
        ("two-members.jsonl.xz", lzma.compress(LINES[:14]) + lzma.compress(LINES[14:])),
        ("CAPITALS.JSONL.GZ", gzip.compress(LINES, mtime=0)),
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
        ("null", "row: expected an object, got null"),
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
    content = '{"a": "\\u0000", "b": "\\ud800", "c": NaN}'
    ((_, row),) = rows_of(tmp_path, "a.jsonl", content)
    assert (row["a"], row["b"]) == ("\x00", "\ud800")
    assert row["c"] != row["c"]


# -- encodings ---------------------------------------------------------------------------------------------------

CONTENT = {  # each kind of file with one row, {"text": "Café « là » €"}
    "a.jsonl": '{"text": "Café « là » €"}\n',
    "a.json": '[{"text": "Café « là » €"}]',
    "a.csv": "text\nCafé « là » €\n",
    "a.tsv": "text\nCafé « là » €\n",
    "a.txt": "Café « là » €",
    "a.md": "Café « là » €",
}


@pytest.mark.parametrize("name", CONTENT)
@pytest.mark.parametrize(
    ("encoding", "note"),
    [
        ("utf-8", None),
        ("utf-8-sig", None),
        ("utf-16", "read as UTF-16"),
        ("utf-16-be", "read as UTF-16"),
        ("utf-32", "read as UTF-32"),
        ("cp1252", "read as Windows-1252, because it is not UTF-8; save it as UTF-8 if letters are wrong"),
        ("latin-1", "read as Latin-1, because it is not UTF-8; save it as UTF-8 if letters are wrong"),
    ],
)
def test_text_is_read_in_the_encoding_it_has_and_an_unusual_one_is_reported(tmp_path, name, encoding, note):
    content = CONTENT[name] if encoding != "latin-1" else CONTENT[name].replace("€", "£")
    mark = b"\xfe\xff" if encoding == "utf-16-be" else b""
    (tmp_path / name).write_bytes(mark + content.encode(encoding))
    said = []
    ((_, row),) = read_file(tmp_path / name, said.append)
    assert row["text"] == ("Café « là » €" if encoding != "latin-1" else "Café « là » £")
    assert said == ([] if note is None else [f"{tmp_path / name}: {note}"])


def test_an_encoding_is_found_out_by_the_whole_file_and_through_what_packs_it(tmp_path):
    content = "text\n" + f"{'ascii' * 100}\n" * 4_000 + "Café\n"
    (tmp_path / "a.csv.xz").write_bytes(lzma.compress(content.encode("latin-1"), preset=0))
    said = []
    *_, (where, row) = read_file(tmp_path / "a.csv.xz", said.append)
    assert (where, row) == (f"{tmp_path}/a.csv.xz:4002", {"text": "Café"})
    assert said == [
        f"{tmp_path}/a.csv.xz: read as Latin-1, because it is not UTF-8; save it as UTF-8 if letters are wrong"
    ]


@pytest.mark.parametrize("name", CONTENT)
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "é".encode() * 9 + b"\n\xe9\n",
            "line 2: expected UTF-8 text, as most of the file is, but byte 1 of it, 0xe9, is none (invalid "
            "continuation byte); fix it, or save it as UTF-8",
        ),
        (
            b"\x81\xe9\n",
            "line 1: expected UTF-8 text, but byte 1 of it, 0x81, is none (invalid start byte), and it is not "
            "Windows-1252; save it as UTF-8",
        ),
        (
            "text\nabc\n".encode("utf-16-le"),
            "file: expected UTF-8 text, got zero bytes, as UTF-16 without its mark has; save it as UTF-8",
        ),
        (
            b"\xff\xfea\x00\n",
            "line 1: expected UTF-16 text, as its first bytes say, but byte 5 of it, 0x0a, is none (truncated data)",
        ),
        (
            b'\xef\xbb\xbf{"text": "a"}\n\n{"text": "\xff"}\n',
            "line 3: expected UTF-8 text, as its first bytes say, but byte 11 of it, 0xff, is none "
            "(invalid start byte)",
        ),
    ],
)
def test_a_file_that_is_no_text_or_damaged_is_malformed(tmp_path, name, content, message):
    assert rows_of(tmp_path, name, content) == [(name, message)]


# -- JSON --------------------------------------------------------------------------------------------------------


def test_a_json_list_gives_objects_and_texts(tmp_path):
    rows = rows_of(tmp_path, "a.json", '\ufeff["é", {"text": "b"}, 3, null, ["c"]]')
    assert rows[:2] == [("a.json[0]", {"text": "é"}), ("a.json[1]", {"text": "b"})]
    assert rows[2:] == [(f"a.json[{i}]", "row: expected an object") for i in (2, 3, 4)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "file: expected JSON ("),
        ('[{"a": 1}', "file: expected JSON ("),
        ('{"data": []}', "file: expected a JSON list of rows, got one object (data); put rows in a list, even one"),
        (
            '{"n": 1, "data": [{"text": "a"}]}',
            "file: expected a JSON list of rows, got an object with rows under 'data'; write that list alone (jq '.[",
        ),
        (
            '{"0": {"text": "a"}, "1": {"text": "b"}}',
            "file: expected a JSON list of rows, got an object of objects; write its rows as a list (jq '[.[]]' FILE;",
        ),
        ("{}", "file: expected a JSON list of rows, got one object (); "),
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


@pytest.mark.parametrize("content", ['{"text": "a"}\n{"text": "b"}\n', '\n{"text": "a"}\r\n\r\n{"text": "b"}'])
def test_json_lines_that_are_called_json_are_read_and_reported(tmp_path, content):
    (tmp_path / "a.json").write_text(content, newline="")
    said = []
    assert [row for _, row in read_file(tmp_path / "a.json", said.append)] == [{"text": "a"}, {"text": "b"}]
    assert said == [f"{tmp_path}/a.json: holds JSON lines, not one JSON list; read as those"]
    assert rows_of(tmp_path, "a.json", content + "\n{oops")[-1][1].startswith("row: expected JSON (")


@pytest.mark.parametrize("content", ['[{"text": "a"},\n{"text": "b"}]', '\n[\n {"text": "a"},\n "b"\n]\n'])
def test_a_json_list_that_is_called_json_lines_is_read_and_reported(tmp_path, content):
    (tmp_path / "a.jsonl").write_text(content)
    said = []
    assert [row for _, row in read_file(tmp_path / "a.jsonl", said.append)] == [{"text": "a"}, {"text": "b"}]
    assert said == [f"{tmp_path}/a.jsonl: holds one JSON list, not JSON lines; read as that"]


def test_lines_of_lists_are_malformed_each(tmp_path):
    assert [row for _, row in rows_of(tmp_path, "a.jsonl", '["a"]\n["b"]\n')] == [
        "row: expected an object, got list"
    ] * 2


def test_an_object_over_several_lines_is_one_error(tmp_path):
    ((_, problem),) = rows_of(tmp_path, "a.jsonl", json.dumps({"text": "a"}, indent=1) * 3)
    assert problem == "file: expected one object per line, got one over several; put each in one line (jq -c . FILE)"


# -- tables ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "mark"), [("a.csv", ","), ("a.tsv", "\t")])
def test_tables_are_read_and_rows_of_another_width_are_malformed(tmp_path, name, mark):
    content = "prompt, completion\r\na,b\r\n\r\né,\r\nonly\r\na,b,c\r\nlast,row".replace(",", mark).encode("utf-8-sig")
    rows = rows_of(tmp_path, name, content)
    assert [rows[0], rows[1], rows[4]] == [
        (f"{name}:2", {"prompt": "a", "completion": "b"}),
        (f"{name}:4", {"prompt": "é", "completion": ""}),
        (f"{name}:7", {"prompt": "last", "completion": "row"}),
    ]
    for place, cells in ((2, 1), (3, 3)):
        where, problem = rows[place]
        assert where == f"{name}:{place + 3}"
        assert problem.startswith(f"cells: expected 2, as the first line has, got {cells}; a cell ")


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("text,label,text", "header: line 1: two columns are called 'text'; rename one of them"),
        ("text,,label", "header: line 1: column 2 has no name; name every column"),
        ('"  "', "header: line 1: column 1 has no name; name every column"),
    ],
)
def test_a_header_without_names_or_with_one_twice_is_malformed(tmp_path, name, header, message):
    content = f"{header}\na,b,c\n".replace(",", "," if name == "a.csv" else "\t")
    if name == "a.tsv":
        content = content.replace('"', "")
    assert rows_of(tmp_path, name, content) == [(name, message)]


def test_the_row_numbers_of_pandas_and_r_have_no_name_and_are_left_out(tmp_path):
    assert rows_of(tmp_path, "a.csv", ",text\n0,a\n") == [("a.csv:2", {"text": "a"})]


def test_a_quoted_cell_may_hold_newlines_commas_and_quotes(tmp_path):
    ((_, row),) = rows_of(tmp_path, "a.csv", 'prompt,completion\r\n"one,\r\ntwo","say ""hi"""\r\n')
    assert row == {"prompt": "one,\r\ntwo", "completion": 'say "hi"'}


@pytest.mark.parametrize("mark", [",", ";", "\t", "|"])
def test_the_mark_between_the_cells_of_a_csv_file_is_found_out_and_reported(tmp_path, mark):
    rows = [["text, or both; and", "label|s"], ["One, two; three\tor | four", "yes"], ['"So"', "no"], ["a\nb", ""]]
    with (tmp_path / "a.csv").open("w", newline="") as file:
        csv.writer(file, delimiter=mark).writerows(rows)
    said = []
    found = [row for _, row in read_file(tmp_path / "a.csv", said.append)]
    assert found == [dict(zip(rows[0], row, strict=True)) for row in rows[1:]]
    words = {",": None, ";": "semicolons", "\t": "tabs", "|": "vertical bars"}[mark]
    assert said == ([f"{tmp_path}/a.csv: its cells are separated by {words}"] if words else [])


@pytest.mark.parametrize(
    ("text", "row"),
    [
        ('"prompt";"completion, long"\n"a, b";"c, d"\n', {"prompt": "a, b", "completion, long": "c, d"}),
        ("prompt;completion, final\na;b, c\n", {"prompt": "a", "completion, final": "b, c"}),
        ("Prompt, Completion; final\na, b; c\n", {"Prompt": "a", "Completion; final": " b; c"}),
        ('"my question, please";"its answer"\n"a";"b"\n', {"my question, please": "a", "its answer": "b"}),
        ("prompt;completion\na, b;c, d\ne;f\n", {"prompt": "a, b", "completion": "c, d"}),
        ("prompt,completion\na;b,c;d\n", {"prompt": "a;b", "completion": "c;d"}),
        ("zz;yy,xx\na,b;c\nd;e\n", {"zz": "a,b", "yy,xx": "c"}),  # as many cells in every row
        ("zz;yy,xx\na;b,c\n", {"zz;yy": "a;b", "xx": "c"}),  # nobody can tell: the first
    ],
)
def test_names_quotes_and_widths_say_what_separates_cells(tmp_path, text, row):
    assert rows_of(tmp_path, "a.csv", text)[0][1] == row


@pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson", "a.NDJSON", "a.json"])
def test_a_key_that_is_there_twice_in_an_object_is_no_row(tmp_path, name):
    lines = ['{"prompt": "a"}', '{"prompt": "b", "prompt": "c"}', '{"prompt": "d", "meta": [{"x": 1, "x": 1}]}']
    text = "\n".join(lines) + "\n"
    (_, first), (_, second), (_, third) = rows_of(tmp_path, name, text)
    assert first == {"prompt": "a"}
    assert "the key 'prompt' appears twice in one object" in str(second)
    assert "the key 'x' appears twice in one object" in str(third)


def test_a_list_with_a_key_twice_is_refused(tmp_path):
    ((_, problem),) = rows_of(tmp_path, "a.json", '[{"prompt": "a"}, {"prompt": "b", "prompt": "c"}]')
    assert "the key 'prompt' appears twice in one object" in str(problem)


def test_a_first_line_of_excel_says_what_separates_cells(tmp_path):
    assert rows_of(tmp_path, "a.csv", "sep=;\r\ntext;label\r\na,b;c\r\n") == [
        ("a.csv:3", {"text": "a,b", "label": "c"})
    ]


def test_a_comma_in_a_table_of_one_column_is_no_second_cell_in_silence(tmp_path):
    first, second = rows_of(tmp_path, "a.csv", 'text\n"Yes, I do"\nNo, I do not\n')
    assert first[1] == {"text": "Yes, I do"}
    assert second[0] == "a.csv:3"
    assert second[1].startswith("cells: expected 1, as the first line has, got 2; a cell that holds the separator")


def test_a_quote_that_is_not_closed_swallows_no_rows_in_silence(tmp_path):
    rows = rows_of(tmp_path, "a.csv", 'label,text\n1,"Hi there\n0,other\n1,"ok"\n0,last\n')
    assert rows[0][0] == "a.csv:2"
    assert rows[0][1].startswith("row: expected quotes around whole cells, and doubled inside them (")
    assert rows[1:] == [("a.csv:5", {"label": "0", "text": "last"})]
    *_, (where, problem) = rows_of(tmp_path, "b.csv", 'label,text\n1,"Hi there\n0,other\n')
    assert where == "b.csv:2"
    assert problem.startswith("row: expected quotes around whole cells")


MRPC = [  # quotes as its rows have them: one at the beginning alone, at the end alone, in the middle
    ['"We won, he said.', 'He said: "We won."'],
    ["No.", 'They said "no".'],
    ['It is over"', '"'],
    ['"All of it."', "a"],
]


def test_quotes_in_a_tsv_file_are_text(tmp_path):
    content = "a\tb\n" + "".join("\t".join(row) + "\n" for row in MRPC)
    said = []
    (tmp_path / "a.tsv").write_text(content)
    rows = list(read_file(tmp_path / "a.tsv", said.append))
    assert rows == [(f"{tmp_path}/a.tsv:{i}", {"a": a, "b": b}) for i, (a, b) in enumerate(MRPC, 2)]
    assert said == []


@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
def test_a_tsv_file_whose_quotes_enclose_cells_is_read_as_written_and_reported(tmp_path, quoting):
    rows = [["a", "b"], ["one\ttwo", 'say "hi"'], ["two\nlines", ""], *MRPC]
    with (tmp_path / "a.tsv").open("w", newline="") as file:
        csv.writer(file, delimiter="\t", quoting=quoting).writerows(rows)
    said = []
    found = [list(row.values()) for _, row in read_file(tmp_path / "a.tsv", said.append)]
    assert found == rows[1:]
    assert said == [f"{tmp_path}/a.tsv: quotes enclose its cells, as a spreadsheet writes them"]


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


@pytest.mark.parametrize("new", [pa.ipc.new_stream, pa.ipc.new_file])
def test_arrow_rows_are_read_from_both_of_its_formats(tmp_path, new):
    rows = [{"prompt": "é", "ranks": [1, 2]}, {"prompt": None, "ranks": []}]
    table = pa.Table.from_pylist(rows * 1500)
    with new(str(tmp_path / "a.arrow"), table.schema) as writer:
        writer.write_table(table, max_chunksize=1100)
    found = list(read_file(tmp_path / "a.arrow"))
    assert found == [(f"{tmp_path}/a.arrow:{i}", row) for i, row in enumerate(rows * 1500, 1)]
    content = (tmp_path / "a.arrow").read_bytes()
    *_, (where, problem) = rows_of(tmp_path, "cut.arrow", content[: len(content) // 2])
    assert where == "cut.arrow"
    assert problem.startswith("file: expected Arrow (")


def test_pairs_of_xml_are_rows_and_other_xml_is_malformed(tmp_path):
    content = '<c><pair id="1" value="TRUE"><t>A\n b</t><h>c &amp; d</h></pair><pair id="2"><t>e</t><h/></pair></c>'
    assert rows_of(tmp_path, "a.xml", content) == [
        ("a.xml[0]", {"id": "1", "value": "TRUE", "t": "A b", "h": "c & d"}),
        ("a.xml[1]", {"id": "2", "t": "e", "h": ""}),
    ]
    ((_, problem),) = rows_of(tmp_path, "b.xml", "<c><row/></c>")
    assert problem.startswith("file: expected <pair> elements")
    *_, (_, problem) = rows_of(tmp_path, "c.xml", content[:-5])
    assert problem.startswith("file: expected XML (")


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
        ("other.jsonl.xz", gzip.compress(LINES, mtime=0)),
        ("begun.jsonl.gz", b"\x1f"),
        ("cut.jsonl.bz2", bz2.compress(LINES * 1000)[:-20]),
        ("plain.jsonl.bz2", LINES),
        ("cut.jsonl.zst", zst(LINES * 1000)[:-20]),
        ("plain.jsonl.zst", LINES),
        ("cut.jsonl.xz", lzma.compress(LINES * 1000)[:-20]),
        ("plain.jsonl.xz", LINES),
        ("bad.parquet", b"PAR1 and no more"),
        ("bad.arrow", b"ARROW1 and no more"),
        ("empty.arrow", b""),
        ("empty.parquet", b""),
    ],
)
def test_a_broken_container_is_malformed(tmp_path, name, content):
    *_, (where, problem) = rows_of(tmp_path, name, content)
    assert where.startswith(name)
    assert problem.startswith("file: expected ")
    assert ("data, as its name says" in problem) == name.startswith(("plain", "other"))


@pytest.mark.parametrize(
    ("name", "suffix"),
    [
        ("a.jsonl", ".jsonl"),
        ("a.JSON.gz", ".json"),
        ("a.jsonl.zst", ".jsonl"),
        ("a.csv.bz2", ".csv"),
        ("A.CSV.XZ", ".csv"),
        ("a.b.csv", ".csv"),
        (".jsonl", ""),
        ("a", ""),
        ("a.gz", ""),
    ],
)
def test_the_suffix_is_seen_through_what_packs_it_and_capitals(tmp_path, name, suffix):
    assert suffix_of(tmp_path / name) == suffix


@pytest.mark.parametrize(
    "lines",
    [
        ['"We won, he said.\t1', "then we left.\t0", 'And so on."\t1'],
        ['"We won, he said.\t1', 'And so on."\t1'],
        ['so he said: "\t1', *["no quote\t0"] * 5, '"yes"\t1'],
    ],
)
def test_quotes_that_would_enclose_whole_rows_of_a_tsv_file_are_text(tmp_path, lines):
    found = rows_of(tmp_path, "a.tsv", "\n".join(["sentence\tlabel", *lines]) + "\n")
    assert [f"{row['sentence']}\t{row['label']}" for _, row in found] == lines


def test_a_stray_quote_ends_the_look_at_a_tsv_file(tmp_path):
    """Rows behind it are not gathered as one cell: the memory stays that of a few lines."""
    (tmp_path / "a.tsv").write_text("sentence\tlabel\n" + '"stray\t0\n' + "another row\t1\n" * 200_000)
    rows = read_file(tmp_path / "a.tsv")
    tracemalloc.start()
    assert next(rows).row == {"sentence": '"stray', "label": "0"}  # the look is over when the first row comes
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    rows.close()
    assert peak < 2**22  # the rows as text take 3 MB, and as strings 13


TWICE = pa.StructArray.from_arrays([pa.array(["b"]), pa.array(["c"])], names=["role", "role"])


@pytest.mark.parametrize("kind", ["parquet", "stream", "file"])
@pytest.mark.parametrize(
    ("table", "message"),
    [
        (
            pa.table([["a"], ["b"], ["c"]], names=["prompt", "completion", "completion"]),
            "header: two columns are called 'completion'; rename one of them",
        ),
        (pa.table({"prompt": ["a"], "messages": TWICE}), "messages: expected .*duplicate field names"),
    ],
)
def test_two_columns_or_fields_of_one_name_are_refused_in_binary_files_too(tmp_path, kind, table, message):
    path = tmp_path / ("a.parquet" if kind == "parquet" else "a.arrow")
    if kind == "parquet":
        pq.write_table(table, path)
    else:
        with {"stream": pa.ipc.new_stream, "file": pa.ipc.new_file}[kind](str(path), table.schema) as writer:
            writer.write_table(table)
    ((where, problem),) = read_file(path)
    assert where == str(path)
    assert re.match(message, str(problem))


def test_quotes_in_a_csv_file_of_tabs_may_be_text_and_the_error_says_how(tmp_path):
    ((_, problem),) = rows_of(tmp_path, "a.csv", 'text\tlabel\n"We" won.\t1\n' + "no\t0\n" * 3)[:1]
    assert "quotes around whole cells" in problem
    assert problem.endswith("; where quotes are text, name the file .tsv")
    ((_, problem),) = rows_of(tmp_path, "b.csv", 'text,label\na"b" "c,"1\n')
    assert ".tsv" not in problem


@pytest.mark.parametrize("before", [0, 2**20 - 2, 2**20, 3 * 2**20 + 5])
def test_a_bad_byte_is_named_by_its_line_and_its_place_in_it(tmp_path, before):
    """Wherever the blocks end in which a file is read; U+2028 and U+0085 end no line."""
    line = "\u2028\u0085é".encode() + b"a" * before
    content = "é\n".encode() * 20 + line + b"\xff" + "é\n".encode() * 20
    ((_, message),) = rows_of(tmp_path, "a.jsonl", content)
    assert f"line 21: expected UTF-8 text, as most of the file is, but byte {len(line) + 1} of it, 0xff, is" in message


@pytest.mark.parametrize(
    ("name", "head"),
    [("a.jsonl.gz", b'{"text": "'), ("a.csv.bz2", b"text\n"), ("a.tsv.xz", b"text\n"), ("a.jsonl", b'{"text": "')],
)
def test_a_line_that_no_memory_should_hold_is_refused_by_its_place(tmp_path, monkeypatch, name, head):
    monkeypatch.setattr("align.data.files.MAX_LINE", 2**20)
    content = b'{"text": "whole"}\n' if "json" in name else b""
    content += head + b"a" * 2**20 + b"b"
    packers = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}
    content = packers.get(Path(name).suffix, bytes)(content)
    message = [row for _, row in rows_of(tmp_path, name, content)][-1]
    assert message == "line 2: expected at most 1,048,576 characters in a line, got more; write it as several rows"


def test_a_list_in_one_long_line_of_a_jsonl_file_is_no_line_that_is_too_long(tmp_path, monkeypatch):
    monkeypatch.setattr("align.data.files.MAX_LINE", 1000)
    content = json.dumps([{"text": f"row {number}"} for number in range(200)])
    assert len(content) > 1000
    assert len(rows_of(tmp_path, "a.jsonl", content)) == 200


@pytest.mark.parametrize(("name", "limit"), [("a.json", "MAX_JSON"), ("a.txt", "MAX_TEXT")])
def test_a_file_that_no_memory_should_hold_is_refused(tmp_path, monkeypatch, name, limit):
    monkeypatch.setattr(f"align.data.files.{limit}", 1000)
    ((_, message),) = rows_of(tmp_path, name, b'[{"text": "' + b"a" * 1000 + b'"}]')
    assert message.startswith("file: expected at most 1,000 characters, got more; ")


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.jsonl")
    ((where, row),) = read_file(tmp_path / "a.jsonl")
    assert (where, str(row)) == (f"{tmp_path}/a.jsonl", "file: expected an ordinary file, got a pipe")


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="this system has no /proc")
@pytest.mark.parametrize("target", ["/proc/self/mem", "/proc/self/environ", "/proc/cpuinfo"])
def test_an_entry_of_proc_is_refused_through_a_link_too(tmp_path, target):
    (tmp_path / "a.jsonl").symlink_to(target)
    ((_, row),) = read_file(tmp_path / "a.jsonl")
    assert str(row) == "file: expected an ordinary file, got an entry of /proc"


@pytest.mark.parametrize(
    "kind", [pa.duration("s"), pa.timestamp("ms"), pa.date64(), pa.timestamp("us", "no/such_zone")]
)
def test_a_time_that_python_cannot_hold_is_the_fault_of_its_column(tmp_path, kind):
    table = pa.table({"text": ["a", "b"], "when": pa.array([0, 2**62], pa.int64()).cast(kind, safe=False)})
    pq.write_table(table, tmp_path / "a.parquet")
    *_, (where, row) = read_file(tmp_path / "a.parquet")
    assert where.startswith(f"{tmp_path}/a.parquet")
    assert str(row).startswith("when: expected a value that Python can hold")


def _as_arrow_stream(path, table):
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=500)


def _as_arrow_file(path, table):
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=500)


def _packed(opener, **options):
    def write(path, table):
        with opener(path, "wb", **options) as file:
            file.write("".join(json.dumps(row) + "\n" for row in table.to_pylist()).encode())

    return write


def _as_table(mark):
    return lambda path, table: path.write_text("\n".join(["text", *table["text"].to_pylist()]).replace(" ", mark))


def _as_zst(path, table):
    with pa.CompressedOutputStream(str(path), "zstd") as file:
        file.write("".join(json.dumps(row) + "\n" for row in table.to_pylist()).encode())


OF_A_KIND = {
    "a.jsonl": _packed(open),
    "a.jsonl.gz": _packed(gzip.open),
    "a.jsonl.bz2": _packed(bz2.open, compresslevel=1),
    "a.jsonl.xz": _packed(lzma.open, preset=0),
    "a.jsonl.zst": _as_zst,
    "a.csv": _as_table("-"),
    "a.tsv": _as_table("-"),
    "a.parquet": lambda path, table: pq.write_table(table, path, row_group_size=500),
    "a.arrow": _as_arrow_stream,
    "b.arrow": _as_arrow_file,
}


@pytest.mark.parametrize("name", mostly_slow(OF_A_KIND, [*OF_A_KIND][::3]))
def test_how_far_the_reading_is_follows_the_rows_of_every_kind_of_file(tmp_path, name):
    rows = [{"text": f"{os.urandom(40).hex()} {number}"} for number in range(16_000)]
    OF_A_KIND[name](tmp_path / name, pa.Table.from_pylist(rows))
    place, size = Place(), (tmp_path / name).stat().st_size
    shares = []
    for number, (_, row) in enumerate(read_file(tmp_path / name, place=place), 1):
        assert not isinstance(row, Malformed)
        if number % 4_000 == 0:
            shares.append(place.bytes() / size)
    assert shares[:3] == pytest.approx([0.25, 0.5, 0.75], abs=0.15)
    assert place.bytes() == size
    for _ in read_file(tmp_path / name, place=place):
        pass
    assert place.bytes() == 2 * size
