"""Rows from a user's file to a dataset artifact, through the command line."""

import contextlib
import gzip
import hashlib
import json
import os
import random
import re
import resource
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import mostly_slow
from memory import peak_memory

from align.cli.main import main
from align.configs import Data, RunConfig
from align.data.records import read_rows
from align.errors import ConfigError, Preempted
from align.runtime import progress
from align.runtime.job import Inputs, Job
from align.runtime.signals import Stop
from align.stages import data as stage
from align.store.artifacts import ArtifactStore


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def data(*arguments):
    return main(["data", *arguments, "tracker=none", "store=store", "name=mine/data"])


def written(folder):
    """Everything a command left, below the store."""
    return sorted(path.relative_to(folder / "store").as_posix() for path in (folder / "store").rglob("*"))


def artifact(folder):
    return ArtifactStore(folder / "store").find("mine/data")


def splits(folder):
    found = artifact(folder)
    return {path.stem: pq.read_table(path).to_pylist() for path in sorted(found.path.glob("*.parquet"))}


def lines(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def prompts(count, start=0):
    return [{"prompt": f"What is {i} and one?"} for i in range(start, start + count)]


def test_a_file_becomes_a_dataset(here):
    rows = [{"text": f"Document {i}"} for i in range(400)] + [{"text": "Document 3"}, {"text": " "}, {"text": ""}]
    (here / "a.jsonl").write_text(lines(*rows))
    assert data("source=path:a.jsonl") == 0
    made = splits(here)
    assert {row["text"] for rows in made.values() for row in rows} == {f"Document {i}" for i in range(400)}
    assert sum(map(len, made.values())) == 400
    assert 8 <= len(made["validation"]) <= 35  # 5 % of 400 is 20, with a deviation of 4.4
    assert 8 <= len(made["test"]) <= 35
    found = artifact(here)
    assert found.kind == "documents"
    assert found.metrics == {
        **{f"rows/{split}": len(rows) for split, rows in made.items()},
        "dropped/duplicate": 1,
        "dropped/empty text": 2,
    }
    info = json.loads((found.path / "dataset.json").read_text())
    assert info == {
        "record": "documents",
        "source": "path:a.jsonl",
        "licence": "yours",
        "dropped": {"duplicate": 1, "empty text": 2},
    }
    assert not list((here / "store" / "work").glob("*/*"))


def test_a_folder_with_named_splits_is_split_as_named(here):
    (here / "mine").mkdir()
    (here / "mine/train.jsonl").write_text(lines(*prompts(30)))
    (here / "mine/validation.jsonl.gz").write_bytes(gzip.compress(lines(*prompts(4, 100)).encode()))
    (here / "mine/test.csv").write_text("prompt\nWhy?\nHow?\n")
    assert data("source=path:mine", "record=prompts") == 0
    made = {split: {row["prompt"][0]["content"] for row in rows} for split, rows in splits(here).items()}
    assert made == {
        "train": {row["prompt"] for row in prompts(30)},
        "validation": {row["prompt"] for row in prompts(4, 100)},
        "test": {"Why?", "How?"},
    }


def test_what_is_not_used_is_said_and_kept_in_the_artifact(here, capsys):
    rows = [{"instruction": f"Why {i}?", "response": "So.", "category": "qa", "id": i or None} for i in range(30)]
    (here / "a.jsonl").write_text(lines(*rows))
    assert data("source=path:a.jsonl", "record=demonstrations") == 0
    assert "columns not used: category (30 rows), id (29)\n" in capsys.readouterr().err
    info = json.loads((artifact(here).path / "dataset.json").read_text())
    assert info["columns_not_used"] == {"category": 30, "id": 29}


def test_answers_that_prompts_do_not_keep_are_said(here, capsys):
    (here / "a.jsonl").write_text(lines(*({**row, "completion": "So."} for row in prompts(30))))
    assert data("source=path:a.jsonl", "record=prompts") == 0
    assert "prompts are what 30 demonstrations ask; their answers are not kept\n" in capsys.readouterr().err


def test_the_columns_of_a_file_are_named_on_the_command_line(here, capsys):
    table = "".join(f'{i},"Why {i}, say?",So.,No.\n' for i in range(30))
    (here / "q.csv").write_text("id,my question,good,bad\n" + table)
    assert data("source=path:q.csv", "record=comparisons") == 2
    said = capsys.readouterr().err
    assert "error: q.csv:2: columns: comparisons need prompt, chosen, rejected (or " in said
    assert said.endswith(" (and 29 more rows like it)\n")
    knob = re.search(r"give columns='(\{.*?\})'", said)[1]
    assert knob == '{prompt: "my question", chosen: good, rejected: bad}'
    assert data("source=path:q.csv", "record=comparisons", f"columns={knob}") == 0
    made = {row["prompt"][0]["content"]: row["responses"] for rows in splits(here).values() for row in rows}
    assert made == {f"Why {i}, say?": ["So.", "No."] for i in range(30)}
    assert "columns not used: id (30 rows)\n" in capsys.readouterr().err


def test_columns_without_a_field_say_how_they_are_written(here, capsys):
    (here / "a.jsonl").write_text(lines(*prompts(3)))
    assert data("source=path:a.jsonl", "record=prompts", "columns=prompt") == 2
    said = capsys.readouterr().err
    assert "columns: expected names with values, as 'columns={NAME: VALUE}', got 'prompt'\n" in said


def test_the_name_of_a_column_is_text(here, capsys):
    (here / "a.jsonl").write_text(lines(*prompts(3)))
    assert data("source=path:a.jsonl", "record=prompts", "columns={prompt: 3}") == 2
    assert "columns.prompt: expected the name of a column of the file, got 3\n" in capsys.readouterr().err


def test_rows_that_share_a_prompt_are_one_ranking(here):
    rows = [{**row, "completion": f"{good}", "label": good} for row in prompts(40) for good in (True, False)]
    (here / "a.jsonl").write_text(lines(*rows, {**rows[0], "prompt": "alone"}))
    assert data("source=path:a.jsonl", "record=comparisons") == 0
    found = [row for rows in splits(here).values() for row in rows]
    assert [row["responses"] for row in found] == [["True", "False"]] * 40
    assert artifact(here).metrics["dropped/a prompt with good answers alone"] == 1
    assert not list((here / "store" / "work").glob("*/*"))


def test_messages_come_back_as_they_were_read(here):
    """A column of Parquet gives every message the fields of all; rows that lack them come back without."""
    calls = [{"type": "function", "function": {"name": "look", "arguments": {"at": "pond"}}}]
    asked, answer = {"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}
    rows = [
        [asked, answer],
        [{**asked, "content": "Where?"}, {**answer, "weight": 0}, asked, answer],
        [asked, {**answer, "tool_calls": json.dumps(calls)}, {"role": "tool", "content": "x", "name": "look"}, answer],
    ]
    raw = [*rows[:2], [asked, {**answer, "tool_calls": calls}, *rows[2][2:]]]
    (here / "a.jsonl").write_text(lines(*({"messages": messages} for messages in raw)))
    assert data("source=path:a.jsonl", "record=demonstrations") == 0
    found = [
        row["messages"] for split in ("train", "validation", "test") for row in read_rows([artifact(here).path], split)
    ]
    assert sorted(found, key=len) == sorted(rows, key=len)


def test_a_read_me_beside_the_rows_is_no_row(here):
    (here / "mine").mkdir()
    (here / "mine/train.jsonl").write_text(lines(*prompts(3)))
    (here / "mine/README.md").write_text("# My prompts\n")
    assert data("source=path:mine", "record=prompts") == 0


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "tsv", "parquet"])
def test_every_kind_of_file_gives_the_same_rows(here, suffix):
    rows = [{"prompt": f"Sag {i} é?", "completion": f"{i}, bitte"} for i in range(25)]
    path, mark = here / f"a.{suffix}", "\t" if suffix == "tsv" else ","
    if suffix == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif suffix in ("csv", "tsv"):
        table = [f'{r["prompt"]}{mark}"{r["completion"]}"\n' for r in rows]
        path.write_text(f"prompt{mark}completion\n" + "".join(table))
    else:
        path.write_text(lines(*rows) if suffix == "jsonl" else json.dumps(rows))
    assert data(f"source=path:{path.name}", "record=demonstrations") == 0
    asked = {r["messages"][0]["content"]: r["messages"][1]["content"] for rs in splits(here).values() for r in rs}
    assert asked == {row["prompt"]: row["completion"] for row in rows}


BAD = [
    '{"prompt": "good"}',
    '{"prompt": null}',
    "{oops",
    '{"prompt": [{"role": "bot", "content": "x"}]}',
    '{"other": 1}',
]


def test_each_bad_row_has_its_line_and_no_artifact_is_made(here, capsys):
    (here / "a.jsonl").write_text("\n".join(BAD) + "\n")
    assert data("source=path:a.jsonl", "record=prompts") == 2
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert [line.partition(": expected")[0] for line in told[:3]] == [
        "error: a.jsonl:2: prompt",
        "error: a.jsonl:3: row",
        "error: a.jsonl:4: prompt[0].role",
    ]
    assert told[3].startswith("error: a.jsonl:5: columns: prompts need prompt (or ")
    assert "the file has other; give columns='{prompt: COLUMN}', with a column's name in place" in told[3]
    assert len(told) == 4
    assert not [name for name in written(here) if name.startswith(("objects", "names"))]


def test_a_bad_row_leaves_nothing_at_all(here):
    (here / "a.jsonl").write_text("\n".join(BAD) + "\n")
    assert data("source=path:a.jsonl", "record=prompts") == 2
    assert not (here / "store").exists()


def test_each_kind_of_error_is_shown_once_with_its_count(here, capsys):
    (here / "a.jsonl").write_text('{"prompt": {}}\n' * 32 + '{"prompt": true}\n' + '{"prompt": {}}\n')
    assert data("source=path:a.jsonl", "record=prompts") == 2
    told = capsys.readouterr().err.splitlines()
    assert told[-2:] == [
        "error: a.jsonl:1: prompt: expected text or messages, got dict (and 32 more rows like it)",
        "error: a.jsonl:33: prompt: expected text or messages, got bool",
    ]


def test_an_error_in_another_place_of_a_row_is_of_the_same_kind(here, capsys):
    turns = [{"role": "user", "content": "How?"}, {"role": "assistant", "content": "So."}]
    rows = [{"messages": [*turns * before, {"role": "bot", "content": "x"}]} for before in range(12)]
    (here / "a.jsonl").write_text(lines(*rows))
    assert data("source=path:a.jsonl", "record=demonstrations") == 2
    (told,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert told.startswith("error: a.jsonl:1: messages[0].role: expected one of ")
    assert told.endswith('got "bot" (and 11 more rows like it)')


@pytest.mark.parametrize("values", [[f"cat{i}" for i in range(50)], [i / 64 for i in range(2, 50)], ["a b", "c"]])
def test_one_error_with_several_values_is_one_kind(here, capsys, values):
    (here / "a.jsonl").write_text(lines(*({"prompt": "x", "completion": "y", "label": value} for value in values)))
    assert data("source=path:a.jsonl", "record=comparisons") == 2
    (told,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert told.startswith("error: a.jsonl:1: label: expected true or false (")
    others = len(values) - 1
    assert told.endswith(f" (and {others} more row{'s' if others > 1 else ''} like it)")


def test_twenty_kinds_of_error_are_shown_and_the_others_counted(here, capsys):
    rows = [{f"column_{chr(97 + i)}": "x"} for i in range(23)]
    (here / "a.jsonl").write_text(lines(*rows, rows[0]))
    assert data("source=path:a.jsonl", "record=prompts") == 2
    told = capsys.readouterr().err
    assert told.count("error: a.jsonl:") == 20
    assert told.count("(and 1 more row like it)") == 1
    assert told.endswith("(and 3 rows with other problems)\n")


def test_what_is_wrong_with_every_row_is_said_once(here, capsys):
    (here / "a.jsonl").write_text('{"prompt": false}\n' * 33)
    assert data("source=path:a.jsonl", "record=prompts") == 2
    told = capsys.readouterr().err
    assert told.count("error: a.jsonl:") == 1
    assert "(and 32 more rows like it)" in told


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["source=path:nothing.jsonl"], "path:nothing.jsonl: no such file or folder"),
        (["source=card:nothing"], "card:nothing: no such data card; cards: "),
        (["source=hf:org/name"], "full commit hash only"),
        (["source=hf:org/name@main"], "full commit hash only"),
        (["source=nothing"], "expected card:NAME, path:FILE_OR_FOLDER or hf:ORG/NAME@COMMIT"),
        (["source=path:a.jsonl", "record=rows"], "record: expected one of documents, demonstrations"),
        (["source=path:a.jsonl", "train_rows=-1"], "train_rows: expected a number from 0 up"),
        (["source=path:a.jsonl", "record=comparisons"], "documents cannot become comparisons"),
        (["source=path:blank.jsonl"], "path:blank.jsonl: no rows for train, validation, test; dropped: empty text 1"),
        (["source=path:empty.jsonl"], "path:empty.jsonl: no rows for train, validation, test"),
        (
            ["source=card:smallworld", "record=prompts", "options.sed=1", "train_rows=1", "splits=[train]"],
            "options.sed",
        ),
    ],
)
def test_what_cannot_be_read_is_one_line_and_exit_code_2(here, capsys, arguments, message):
    (here / "a.jsonl").write_text(lines({"text": "a"}))
    (here / "blank.jsonl").write_text(lines({"text": " "}))
    (here / "empty.jsonl").touch()
    assert data(*(f"+{word}" if word.startswith("options.") else word for word in arguments)) == 2
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(told) == 1
    assert message in told[0]
    assert "a bug in align" not in told[0]
    assert not [name for name in written(here) if name.startswith(("objects", "names"))]


# -- which split a row is in ---------------------------------------------------------------------------------------


def made_of(folder, **knobs):
    """The prompts in each split of a source, by a run of the stage in this process."""
    job = Job("test", folder / f"work{len(list(folder.glob('work*')))}", RunConfig())
    job.out.mkdir(parents=True)
    stage.run(Data(record="prompts", **knobs), Inputs(), job)
    found = {path.stem: pq.read_table(path).to_pylist() for path in job.out.glob("*.parquet")}
    return {split: {row["prompt"][0]["content"] for row in rows} for split, rows in found.items()}


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_all_rows_of_a_file_can_be_one_split(tmp_path, split):
    (tmp_path / "a.jsonl").write_text(lines(*prompts(60)))
    assert made_of(tmp_path, source=f"path:{tmp_path}/a.jsonl", split=split).keys() == {split}
    assert len(made_of(tmp_path, source=f"path:{tmp_path}/a.jsonl", split=split)[split]) == 60


@pytest.mark.parametrize("name", ["eval.jsonl", "train_test.jsonl", "my_test/a.jsonl"])
def test_a_split_that_is_given_wins_over_the_names_of_one_file(tmp_path, name):
    (tmp_path / "my_test").mkdir()
    (tmp_path / name).write_text(lines(*prompts(9)))
    made = made_of(tmp_path, source=f"path:{tmp_path}/{name}", split="train")
    assert {split: len(rows) for split, rows in made.items()} == {"train": 9}


def test_files_that_say_several_splits_keep_them(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/train.jsonl").write_text(lines(*prompts(20)))
    (tmp_path / "mine/test.jsonl").write_text(lines(*prompts(10, start=50)))
    made = made_of(tmp_path, source=f"path:{tmp_path}/mine")
    assert {split: len(rows) for split, rows in made.items()} == {"train": 20, "test": 10}
    with pytest.raises(
        ConfigError,
        match=r"^split=test: the files of path:.* say their splits \(train: train\.jsonl, test: test\.jsonl\); leave",
    ):
        made_of(tmp_path, source=f"path:{tmp_path}/mine", split="test")


@pytest.mark.parametrize("names", [("ban-plastic", "growth-and-development"), ("train_test", "b"), ("eval", "dev")])
def test_a_split_that_is_given_wins_over_the_names_of_a_folder_s_files_unless_they_say_several(tmp_path, names):
    (tmp_path / "mine").mkdir()
    for place, name in enumerate(names):
        (tmp_path / "mine" / f"{name}.jsonl").write_text(lines(*prompts(10, start=20 * place)))
    made = made_of(tmp_path, source=f"path:{tmp_path}/mine", split="train")
    assert {split: len(rows) for split, rows in made.items()} == {"train": 20}


@pytest.mark.parametrize("name", ["held_out", "eval", "my_test", "test_sft"])
def test_rows_of_a_folder_that_is_named_held_out_do_not_train(here, capsys, name):
    (here / name).mkdir()
    (here / name / "part-0.jsonl").write_text(lines(*prompts(40)))
    assert data(f"source=path:{name}", "record=prompts") == 0
    assert "train" not in splits(here)
    assert f"part-0.jsonl (their folder is named {name})" in capsys.readouterr().err


def test_a_name_that_may_say_a_split_is_reported(here, capsys):
    (here / "mytest.jsonl").write_text(lines(*prompts(40)))
    assert data("source=path:mytest.jsonl", "record=prompts") == 0
    assert "mytest.jsonl: 'mytest' in its name is read as no split; where its rows are" in capsys.readouterr().err


def test_a_first_row_with_a_number_behind_it_is_no_header_of_glue(here, capsys):
    (here / "a.csv").write_text("prompt,1\nWhat?,2\n")
    assert data("source=path:a.csv", "record=prompts") == 0
    assert "no line of column names" not in capsys.readouterr().err
    assert [row["prompt"][0]["content"] for rows in splits(here).values() for row in rows] == ["What?"]


# -- a set of the Hub that has no card -----------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A folder that stands for a repository: the loader of the Hub's sets opens it alike."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own").mkdir()
    return tmp_path / "own"


HUB = "hf:./own@" + "a" * 40


@pytest.mark.parametrize("split", [None, "test"])
def test_a_set_of_the_hub_has_the_splits_that_its_names_say(hub, split, capsys):
    for number, name in enumerate(("train", "validation", "test")):
        (hub / f"{name}.jsonl").write_text(lines(*prompts(3 + number, start=10 * number)))
    made = made_of(hub.parent, source=HUB, split=split)
    wanted = {"train": 3, "validation": 4, "test": 5} if split is None else {"test": 5}
    assert {split: len(rows) for split, rows in made.items()} == wanted


def test_a_set_of_the_hub_with_train_alone_is_split_by_content(hub):
    (hub / "train.jsonl").write_text(lines(*prompts(400)))
    made = made_of(hub.parent, source=HUB)
    assert made.keys() == {"train", "validation", "test"}
    assert sum(map(len, made.values())) == 400


def test_what_is_wrong_with_rows_of_the_hub_is_said(hub, capsys):
    (hub / "train.jsonl").write_text(lines(*[{"zzz": f"a{i}"} for i in range(5)]))
    with pytest.raises(ConfigError, match=r"train\[0\]: .*columns.*zzz.*\(and 4 more rows like it\)"):
        made_of(hub.parent, source=HUB)
    (hub / "train.jsonl").write_text(lines({"prompt": "a"}, {"prompt": None}))
    made = made_of(hub.parent, source=HUB)
    assert sum(map(len, made.values())) == 1
    assert re.search(r"left out: hf:\./own/train\[1\]: prompt", capsys.readouterr().err)


def test_a_larger_share_holds_out_more_of_the_same_rows(tmp_path):
    (tmp_path / "a.jsonl").write_text(lines(*prompts(1000)))
    usual, large = (
        made_of(tmp_path, source=f"path:{tmp_path}/a.jsonl", validation_share=share) for share in (None, 0.2)
    )
    assert usual == made_of(tmp_path, source=f"path:{tmp_path}/a.jsonl", validation_share=0.05)
    assert usual["validation"] < large["validation"]
    for held_out in ("validation", "test"):
        assert abs(len(usual[held_out]) - 50) < 4 * 7  # deviation of a binomial of 1,000 at 0.05
        assert abs(len(large[held_out]) - 200) < 4 * 13
    assert sum(map(len, large.values())) == 1000


@pytest.mark.parametrize(
    ("knobs", "told"),
    [
        (["validation_share=0.5"], "validation_share: expected a number above 0 and below 0.5, or null, got 0.5"),
        (["validation_share=0"], "validation_share: expected a number above 0"),
        (["validation_share=0.1", "split=test"], "validation_share: expected null where all rows are one split"),
        (["validation_share=0.1", "record=items"], "validation_share: expected null where all rows are one split"),
        (["split=dev"], "split: expected train, validation or test, or null, got 'dev'"),
        (["validation_share=0.1", "source=path:named"], "say their splits, so leave it out"),
        (["validation_share=0.1", "source=card:smallworld"], "generates its splits, so leave it out"),
        (["split=test", "source=card:smallworld"], "split: card:smallworld generates its splits, so leave it out"),
    ],
)
def test_a_split_that_makes_no_sense_is_refused(here, capsys, knobs, told):
    (here / "named").mkdir()
    (here / "named/train.jsonl").write_text(lines(*prompts(3)))
    (here / "a.jsonl").write_text(lines(*prompts(3)))
    given = {"source": "path:a.jsonl", "record": "prompts"} | dict(knob.split("=", 1) for knob in knobs)
    assert data(*(f"{name}={value}" for name, value in given.items())) == 2
    assert told in capsys.readouterr().err


def test_a_file_without_a_validation_row_is_told(here, capsys):
    (here / "a.jsonl").write_text(lines(*prompts(3)))
    assert data("source=path:a.jsonl", "record=prompts", "split=train") == 0
    assert "no validation row" not in capsys.readouterr().err
    assert data("source=path:a.jsonl", "record=prompts") == 0
    said = capsys.readouterr().err
    assert "no validation row is left, 3 in other splits" in said
    assert "3 train, 0 validation, 0 test" in said


def test_duplicates_that_leave_nothing_to_train_on_are_told(here, capsys):
    same = {"prompt": "a5", "response": "b"}  # by its prompt a test row
    (here / "a.jsonl").write_text(lines(*[same] * 30))
    assert data("source=path:a.jsonl", "record=demonstrations") == 0
    said = capsys.readouterr().err
    assert "no training row is left, 1 in other splits: no step can train on these" in said
    assert "dropped 29: duplicate 29" in said


UNFIT = {
    "lone surrogate": ["documents", '{"text": "a\\ud800"}'],
    "mixed types": ["prompts", '{"prompt": "a", "id": 1}\n{"prompt": "b", "id": "x"}'],
    "empty object": ["prompts", '{"prompt": "a", "meta": {}}'],
    "huge number": ["prompts", '{"prompt": "a", "id": 1000000000000000000000}'],
    "a column that UTF-8 cannot hold": ["prompts", '{"prompt": "a", "\\ud800": 1}'],
    "an unused column that UTF-8 cannot hold": ["demonstrations", '{"prompt": "a", "completion": "b", "\\ud800": 1}'],
    "deep": ["prompts", '{"prompt": "a", "meta": ' + "[" * 900 + "]" * 900 + "}"],
    "a huge rank": ["comparisons", '{"prompt": "a", "responses": ["a", "b"], "ranks": [1, 1' + "0" * 30 + "]}"],
    "responses of objects": ["comparisons", '{"prompt": "a", "responses": [{"a": 1}, {"a": 2}], "ranks": [1, 2]}'],
    "a short history": ["demonstrations", '{"instruction": "a", "output": "b", "history": [3]}'],
}


@pytest.mark.parametrize("what", mostly_slow(UNFIT, [*UNFIT][::2]))
def test_a_row_that_cannot_be_kept_is_no_defect_of_ours(here, what):
    record, content = UNFIT[what]
    (here / "a.jsonl").write_text(content + "\n")
    assert data("source=path:a.jsonl", f"record={record}") in (0, 2)


@pytest.mark.parametrize("source", ["card:smallworld", "path:a.jsonl"])
def test_an_unknown_split_is_told_so(here, capsys, source):
    (here / "a.jsonl").write_text(lines(*prompts(5)))
    assert data(f"source={source}", "record=prompts", "splits=[tset]") == 2
    assert "splits" in capsys.readouterr().err


def test_one_prompt_in_two_rows_stays_in_one_split(here):
    rows = [{"prompt": f"{' ' * (i % 2)}Is {i // 4} EVEN?", "completion": f"answer {i}"} for i in range(600)]
    rows += [{"prompt": row["prompt"].lower(), "completion": "again"} for row in rows[::4]]
    (here / "a.jsonl").write_text(lines(*rows))
    assert data("source=path:a.jsonl", "record=demonstrations") == 0
    made = {s: {r["messages"][0]["content"].lower().strip() for r in rs} for s, rs in splits(here).items()}
    assert sum(map(len, made.values())) == len(set.union(*made.values())) == 150
    assert min(map(len, made.values())) > 0


def test_limits_take_the_same_rows_in_any_order_of_the_file(here):
    rows = prompts(200)
    (here / "a.jsonl").write_text(lines(*rows))
    assert data("source=path:a.jsonl", "record=prompts") == 0
    everything = splits(here)
    assert data("source=path:a.jsonl", "record=prompts", "train_rows=20", "test_rows=0") == 0
    some = splits(here)
    assert some["train"] == everything["train"][:20]
    assert some["train"] != sorted(some["train"], key=str)
    assert (len(some["validation"]), "test" in some) == (len(everything["validation"]), False)
    (here / "a.jsonl").write_text(lines(*reversed(rows)))
    assert data("source=path:a.jsonl", "record=prompts") == 0
    assert splits(here) == everything


def test_long_rows_are_dropped_and_documents_are_cut_at_line_ends(here):
    (here / "a.jsonl").write_text(lines({"prompt": "x" * 10}, {"prompt": "y" * 11}))
    assert data("source=path:a.jsonl", "record=prompts", "max_chars=10") == 0
    assert [r["prompt"][0]["content"] for rows in splits(here).values() for r in rows] == ["x" * 10]
    (here / "b.txt").write_text("one\ntwo\nthree\n")
    assert data("source=path:b.txt", "max_chars=8") == 0
    assert {r["text"] for rows in splits(here).values() for r in rows} == {"one\ntwo\n", "three\n"}


def test_labelled_answers_are_rows_of_their_own_and_a_hint_where_they_make_no_ranking(here, capsys):
    """The longest is dropped by its prompt and its answer together. An answer may be there as good and as bad."""
    rows = [{"prompt": "why", "completion": "y" * 7, "label": True}, {"prompt": "why", "completion": "n", "label": 0}]
    rows += [{"prompt": "who", "completion": "m", "label": good} for good in (True, False)]
    rows += [{"prompt": "how", "completion": "z" * 8, "label": True}, {"prompt": "how", "completion": "z", "label": 1}]
    (here / "a.jsonl").write_text(lines(*rows))
    assert data("source=path:a.jsonl", "record=unpaired", "max_chars=10") == 0
    found = sorted((row["prompt"][0]["content"], row["completion"], row["label"]) for row in every(here))
    assert found == [("how", "z", True), ("who", "m", False), ("who", "m", True), ("why", "n", False),
                     ("why", "y" * 7, True)]  # fmt: skip
    assert "record=unpaired" not in capsys.readouterr().err
    assert data("source=path:a.jsonl", "record=comparisons") == 0
    assert [row["responses"] for row in every(here)] == [["y" * 7, "n"]]
    hint = "record=unpaired keeps 2 of them: align kto inputs.unpaired=... learns from answers without a counterpart"
    assert hint in capsys.readouterr().err
    (here / "a.jsonl").write_text(lines(*rows[4:]))
    assert data("source=path:a.jsonl", "record=comparisons") == 2
    assert hint in capsys.readouterr().err


def every(here):
    return [row for rows in splits(here).values() for row in rows]


def test_the_pieces_of_a_document_are_in_one_split(here):
    documents = [{"text": "".join(f"{i} {line}\n" for line in range(12))} for i in range(60)]
    (here / "a.jsonl").write_text(lines(*documents))
    assert data("source=path:a.jsonl", "max_chars=20") == 0
    found = {split: {row["text"].split()[0] for row in rows} for split, rows in splits(here).items()}
    assert sum(map(len, found.values())) == len(set().union(*found.values())) == 60
    assert all(found.values())


def test_no_piece_of_a_document_is_blank(here):
    (here / "b.txt").write_text("one line\n" + "\n" * 20 + "another\n")
    assert data("source=path:b.txt", "max_chars=9") == 0
    assert all(r["text"].strip() for rows in splits(here).values() for r in rows)


def test_the_key_follows_the_bytes_and_not_the_clock(here, capsys):
    path = here / "a.jsonl"
    path.write_text(lines(*prompts(40)))
    keys = []
    for change in (lambda: None, lambda: os.utime(path, (1, 1)), lambda: path.write_text(lines(*prompts(41)))):
        change()
        assert data("source=path:a.jsonl", "record=prompts") == 0
        keys.append(artifact(here).key)
    assert keys[0] == keys[1] != keys[2]
    assert list(ArtifactStore(here / "store").versions("mine/data")) == [0, 1]
    assert capsys.readouterr().err.count("cached") == 1


def test_a_second_command_in_one_process_runs(here):
    (here / "a.jsonl").write_text(lines(*prompts(5)))
    command = ["data", "source=path:a.jsonl", "record=prompts", "tracker=none", "store=store"]
    assert [main(command), main(command)] == [0, 0]


def test_nothing_is_left_beside_the_store(here):
    (here / "a.jsonl").write_text(lines(*prompts(5)))
    assert data("source=path:a.jsonl", "record=prompts") == 0
    assert sorted(path.name for path in Path().iterdir()) == ["a.jsonl", "store"]


@pytest.mark.parametrize(("asked", "train", "test"), [(0, 0, 30), (8, 8, 22)])
def test_items_that_are_all_test_are_set_apart_for_shots_where_that_is_asked(here, asked, train, test):
    (here / "sums.jsonl").write_text(lines(*({"context": f"{i} + 1 =", "completion": f" {i + 1}"} for i in range(30))))
    assert data("source=path:sums.jsonl", "record=items", f"shot_rows={asked}") == 0
    made = splits(here)
    assert (len(made.get("train", [])), len(made["test"])) == (train, test)
    assert len({row["contexts"][0] for rows in made.values() for row in rows}) == 30


def test_limits_count_the_items_behind_those_set_apart_for_shots(here):
    sums = [{"context": f"{i} + 1 =", "completion": f" {i + 1}"} for i in range(30)]
    (here / "sums.jsonl").write_text(lines(*sums))
    made = []
    for knobs in (["shot_rows=0"], ["shot_rows=8", "train_rows=5", "test_rows=20"]):
        assert data("source=path:sums.jsonl", "record=items", *knobs) == 0
        made.append(splits(here))
    whole = made[0]["test"]
    assert made[1] == {"train": whole[:5], "test": whole[8:28]}


def test_the_training_items_of_a_published_set_are_told_by_their_file(here):
    """CommonsenseQA has a file a split; the card says which one is for training."""
    question = {"stem": "where?", "choices": [{"label": "A", "text": "x"}, {"label": "B", "text": "y"}]}
    (here / "all" / "commonsense_qa").mkdir(parents=True)
    for name, stem in (("train_rand_split", "here?"), ("dev_rand_split", "there?")):
        row = {"question": {**question, "stem": stem}, "answerKey": "A"}
        (here / "all" / "commonsense_qa" / f"{name}.jsonl").write_text(lines(row))
    assert data("source=card:commonsense_qa", "record=items", "data_root=all") == 0
    assert {split: [row["contexts"][0] for row in rows] for split, rows in splits(here).items()} == {
        "train": ["Question: here?\nAnswer:"],
        "test": ["Question: there?\nAnswer:"],
    }


def snli(name, *pairs):
    """A file of SNLI, as published."""
    folder = Path("all/snli")
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{"sentence1": a, "sentence2": b, "gold_label": label} for a, b, label in pairs]
    (folder / f"snli_1.0_{name}.jsonl").write_text(lines(*rows))


def test_published_splits_are_kept_where_their_training_file_is_there(here):
    """Premises may stand in several of them, but no whole row does."""
    snli("train", ("a man", "he runs", "neutral"), ("a man", "he is", "entailment"), ("a dog", "it is", "-"))
    snli("dev", ("a cat", "it is", "entailment"))
    snli("test", ("a man", "he is not", "contradiction"), ("a man", "he runs", "neutral"))
    assert data("source=card:snli", "record=labelled", "data_root=all") == 0
    texts = {split: {tuple(row["texts"]) for row in rows} for split, rows in splits(here).items()}
    assert texts == {
        "train": {("a man", "he is")},
        "validation": {("a cat", "it is")},
        "test": {("a man", "he is not"), ("a man", "he runs")},
    }
    dropped = {name: n for name, n in artifact(here).metrics.items() if name.startswith("dropped/")}
    assert dropped == {"dropped/no label": 1, "dropped/also in a held-out split": 1}


def test_without_a_training_file_rows_are_split_by_premise(here):
    for name, first in (("dev", 0), ("test", 200)):
        asked = [(f"caption {i}", f"claim {j}", "neutral") for i in range(first, first + 200) for j in range(3)]
        snli(name, *asked)
    assert data("source=card:snli", "record=labelled", "data_root=all") == 0
    made = {split: [row["texts"][0] for row in rows] for split, rows in splits(here).items()}
    assert {split: 3 * len(set(premises)) for split, premises in made.items()} == {k: len(v) for k, v in made.items()}
    assert sum(map(len, made.values())) == 1200
    assert len(set.union(*map(set, made.values()))) == sum(len(set(premises)) for premises in made.values())
    assert len(made["train"]) > 900


@pytest.mark.parametrize("name", ["dev", "valid", "val_0", "validation-00001-of-00002"])
def test_files_named_after_a_split_are_that_split(here, name):
    (here / "mine").mkdir()
    for file, rows in (("train", prompts(20)), (name, prompts(5, 100))):
        (here / "mine" / f"{file}.jsonl").write_text(lines(*rows))
    assert data("source=path:mine", "record=prompts") == 0
    assert {split: len(rows) for split, rows in splits(here).items()} == {"train": 20, "validation": 5}


@pytest.mark.parametrize("name", ["my_data.test.jsonl", "Test.jsonl", "test_prefs-00000-of-00001.jsonl"])
def test_the_rows_of_one_file_that_is_named_after_a_split_are_that_split(here, capsys, name):
    (here / name).write_text(lines(*prompts(20)))
    assert data(f"source=path:{name}", "record=prompts") == 0
    assert {split: len(rows) for split, rows in splits(here).items()} == {"test": 20}
    assert f"test: {name}" in capsys.readouterr().err


def test_which_files_are_which_split_is_reported_and_so_are_those_that_are_not_read(here, capsys):
    """UltraChat's train_sft and train_gen are both training rows."""
    names = ["data/train_gen-0.jsonl", *(f"data/train_sft-{i}.jsonl" for i in range(4)), "data/test_sft-0.jsonl"]
    (here / "mine/data").mkdir(parents=True)
    for i, name in enumerate(names):
        (here / "mine" / name).write_text(lines(*prompts(2, 100 * i)))
    (here / "mine/README.md").write_text("# Mine\n")
    assert data("source=path:mine", "record=prompts") == 0
    said = capsys.readouterr().err
    assert "train: data/train_gen-0.jsonl, data/train_sft-0.jsonl, data/train_sft-1.jsonl and 2 more\n" in said
    assert "test: data/test_sft-0.jsonl\n" in said
    assert "not read: README.md\n" in said
    assert {split: len(rows) for split, rows in splits(here).items()} == {"train": 10, "test": 2}


def test_items_of_a_validation_file_are_scored_where_there_is_no_test_file(here):
    sums = [{"context": f"{i} + 1 =", "completion": f" {i + 1}"} for i in range(9)]
    (here / "mine").mkdir()
    (here / "mine/train.jsonl").write_text(lines(*sums[:3]))
    (here / "mine/dev.jsonl").write_text(lines(*sums[3:7]))
    assert data("source=path:mine", "record=items") == 0
    assert {split: len(rows) for split, rows in splits(here).items()} == {"train": 3, "test": 4}
    (here / "mine/test.jsonl").write_text(lines(*sums[7:]))
    assert data("source=path:mine", "record=items") == 0
    assert {split: len(rows) for split, rows in splits(here).items()} == {"train": 3, "validation": 4, "test": 2}


def test_what_is_unusual_about_a_file_is_reported(here, capsys):
    (here / "a.csv").write_bytes("text;n\nCafé, là;1\n".encode("latin-1"))
    assert data("source=path:a.csv") == 0
    said = capsys.readouterr().err
    assert "a.csv: read as Latin-1, because it is not UTF-8; save it as UTF-8 if letters are wrong\n" in said
    assert "a.csv: its cells are separated by semicolons\n" in said
    assert [row["text"] for rows in splits(here).values() for row in rows] == ["Café, là"]


@pytest.mark.parametrize("name", ["tset", "trial", "trains"])
def test_a_file_that_is_no_split_among_files_that_are_is_refused(here, capsys, name):
    (here / "mine").mkdir()
    for file in ("train", name):
        (here / "mine" / f"{file}.jsonl").write_text(lines(*prompts(20)))
    assert data("source=path:mine", "record=prompts") == 2
    assert (
        f"mine: {name}.jsonl is named as no split, and train.jsonl is train by the word 'train'; rename"
        in capsys.readouterr().err
    )
    assert not list((here / "store").glob("objects/*"))


def test_demonstrations_of_a_labelled_file_are_split_as_its_rows_are_and_bear_the_file_s_name(here):
    rows = [{"premise": f"Man {i}.", "hypothesis": f"{n} men.", "label": "no"} for i in range(100) for n in range(3)]
    (here / "snli.jsonl.gz").write_bytes(gzip.compress(lines(*rows).encode()))
    premises = {}
    for record in ("labelled", "demonstrations"):
        assert data("source=path:snli.jsonl.gz", f"record={record}") == 0
        made = splits(here)
        texts = {s: [r["texts"][0] if "texts" in r else r["messages"][0]["content"] for r in made[s]] for s in made}
        if record == "demonstrations":
            assert all(
                re.match(r"snli hypothesis: \d men\. premise: Man ", text) for own in texts.values() for text in own
            )
        premises[record] = {s: {text.partition("Man ")[2].partition(".")[0] for text in texts[s]} for s in texts}
    assert premises["labelled"] == premises["demonstrations"]
    assert all(premises["labelled"].values())
    (here / "snli.jsonl.gz").rename(here / "mnli.jsonl.gz")
    assert data("source=path:mnli.jsonl.gz", "record=demonstrations") == 0
    assert splits(here)["train"][0]["messages"][0]["content"].startswith("mnli hypothesis: ")


def test_long_labelled_rows_are_dropped_by_what_is_asked_and_the_longest_choice(here):
    rows = [{"question": "q" * 5, "choices": ["x", "y" * size], "answerKey": "A"} for size in (5, 6)]
    (here / "a.jsonl").write_text(lines(*rows, {"texts": ["t" * 5, "u" * 5], "choices": ["v", "w"], "label": 0}))
    assert data("source=path:a.jsonl", "record=labelled", "max_chars=10") == 0
    assert [len(row["choices"][1]) for rows in splits(here).values() for row in rows] == [5]


# -- more rows than memory holds ---------------------------------------------------------------------------------


def test_rows_are_in_the_order_of_their_sha256(here):
    (here / "a.jsonl").write_text(lines(*prompts(200)))
    assert data("source=path:a.jsonl", "record=prompts") == 0
    for rows in splits(here).values():
        assert rows == sorted(rows, key=lambda row: hashlib.sha256(repr(row).encode()).digest())


def asked(first, last, answers=1):
    return [{"prompt": f"What is {i}?", "completion": f"It is {a}"} for i in range(first, last) for a in range(answers)]


CORPORA = {  # files below mine, and the knobs
    "documents": ({"a": [{"text": f"Document {i % 400}\nits end"} for i in range(500)]}, ["max_chars=15"]),
    "named splits": (
        {
            "train": asked(0, 200, 3),
            "validation": asked(90, 120),
            "test": asked(100, 110, 2),
            "train-2": asked(50, 300),
        },
        ["record=demonstrations", "train_rows=300", "validation_rows=15"],
    ),
    "a held-out split that is not kept": (
        {"train": asked(0, 100), "test": asked(50, 80)},
        ["record=demonstrations", "splits=[train]"],
    ),
    "items": (
        {"a": [{"context": f"{i % 90} + 1 =", "completion": f" {i % 90 + 1}"} for i in range(100)]},
        ["record=items", "shot_rows=7", "train_rows=5", "test_rows=50"],
    ),
    "few items": (
        {"a": [{"context": f"{i} + 1 =", "completion": f" {i + 1}"} for i in range(5)]},
        ["record=items", "shot_rows=9"],
    ),
}


@pytest.mark.parametrize("corpus", mostly_slow(CORPORA, [*CORPORA][::2]))
def test_the_files_are_the_same_whether_memory_holds_the_rows_or_not(here, monkeypatch, corpus):
    files, knobs = CORPORA[corpus]
    (here / "mine").mkdir()
    for name, rows in files.items():
        (here / "mine" / f"{name}.jsonl").write_text(lines(*rows))
    made = []
    for budget in (10**9, 2000):
        monkeypatch.setattr(stage, "IN_MEMORY", budget)
        assert data("source=path:mine", *knobs) == 0
        found = artifact(here)
        made.append((found.metrics, {path.name: path.read_bytes() for path in found.path.glob("*.parquet")}))
        assert not list((here / "store" / "work").glob("*/*"))
        (here / "store").rename(here / f"store with {budget}")  # or the second is cached
    assert made[0] == made[1]


@pytest.mark.parametrize("budget", [10**9, 2000])
def test_what_a_held_out_file_asks_is_taken_out_of_those_before_it(here, monkeypatch, budget):
    monkeypatch.setattr(stage, "IN_MEMORY", budget)
    (here / "mine").mkdir()
    train = [*asked(0, 60, 3), *asked(90, 95)]
    for name, rows in (("train", train), ("validation", asked(40, 80)), ("test", asked(70, 100))):
        (here / "mine" / f"{name}.jsonl").write_text(lines(*rows, rows[0]))
    assert data("source=path:mine", "record=demonstrations") == 0
    made = {split: {row["messages"][0]["content"] for row in rows} for split, rows in splits(here).items()}
    expected = {"train": range(40), "validation": range(40, 70), "test": range(70, 100)}
    assert made == {split: {f"What is {i}?" for i in numbers} for split, numbers in expected.items()}
    assert artifact(here).metrics == {
        "rows/train": 120,
        "rows/validation": 30,
        "rows/test": 30,
        "dropped/also in a held-out split": 20 * 3 + 5 + 10,
        "dropped/duplicate": 3,
    }


class StopAtThe(Stop):
    """Asked to stop, as it is looked at for the n-th time."""

    def __init__(self, n):
        self.left = n

    @property
    def signal(self):
        self.left -= 1
        return 15 if self.left < 0 else None


def test_a_stop_leaves_nothing_wherever_it_comes(here, monkeypatch):
    monkeypatch.setattr(stage, "IN_MEMORY", 20_000)
    monkeypatch.setattr(stage, "REPORT_EVERY", 100)
    (here / "a.jsonl").write_text(lines(*prompts(400)))
    cfg = Data(source="path:a.jsonl", record="prompts")
    for stopped in range(100):
        (here / f"{stopped}/out").mkdir(parents=True)
        job = Job("data", here / str(stopped), RunConfig(), stop=StopAtThe(stopped))
        try:
            metrics = stage.run(cfg, Inputs(), job)
            break
        except Preempted:
            assert [path.name for path in (here / str(stopped)).rglob("*")] == ["out"]
    assert sum(metrics.values()) == 400
    assert stopped > 10  # it came while they were read, compared and written


@contextlib.contextmanager
def short_files():
    """No file of this process may grow beyond 200,000 bytes, which is the nearest to a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("budget", [10**9, 2000])
def test_a_full_disk_is_told_in_one_line_and_nothing_is_left(here, monkeypatch, capsys, budget):
    monkeypatch.setattr(stage, "IN_MEMORY", budget)
    (here / "a.jsonl").write_text(lines(*({"prompt": f"{i} {os.urandom(300).hex()}"} for i in range(1500))))
    with short_files():
        assert data("source=path:a.jsonl", "record=prompts") == 3
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(told) == 1
    assert "File too large; rows beyond what memory holds take twice" in told[0]
    assert not [name for name in written(here) if name.endswith(".parquet") or name.startswith(("objects", "names"))]


@pytest.mark.parametrize("command", [["plan", "data", "check_data=true"], ["data"]])
def test_reading_says_how_far_it_is_and_how_long_it_takes(here, capsys, monkeypatch, command):
    monkeypatch.setattr(progress, "PLAIN_SECONDS", 0.0)
    (here / "a.jsonl").write_text("".join(json.dumps({"text": f"{n} " * 500}) + "\n" for n in range(3000)))
    assert main([*command, "source=path:a.jsonl", "record=documents", "tracker.backend=none"]) == 0
    told = capsys.readouterr().err
    assert re.search(r"^  own/data: [1-5]/6 MB read  [\d.]+/s  0:\d\d left$", told, re.MULTILINE)


COMMAND = "import sys; from align.cli.main import main; assert main(sys.argv[1:]) == 0"
CHECK = """
import sys; from align.configs import Data; from align.stages.data import check_rows
from align.runtime.progress import Progress
check_rows(Data(source=sys.argv[1]), None, Progress("data"))
"""
READ = """
import sys; from pathlib import Path; from align.data.records import read_rows
assert sum(len(row["text"]) for row in read_rows([Path(sys.argv[1])], "train")) > 10**7
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_corpus(here):
    """200 MB and 800 MB, by the command, as `align plan check_data=true` checks them, and as a consumer reads them."""
    peaks = []
    for megabytes in (200, 800):
        with (here / f"{megabytes}.jsonl").open("w") as file:
            while file.tell() < megabytes * 1e6:
                row = {"text": os.urandom(random.randrange(100, 3000)).hex(), "source": random.choice(["web", None])}
                file.write(lines(row) * random.choice([1, 1, 1, 2]))
        source = f"source=path:{megabytes}.jsonl"
        ran = peak_memory(COMMAND, "data", source, "tracker=none", "store=store", "name=mine/data")
        checked = peak_memory(CHECK, source.removeprefix("source="))
        peaks.append((ran, checked, peak_memory(READ, artifact(here).path)))
    grown = [large - small for small, large in zip(*peaks, strict=True)]
    assert max(grown) < 60e6, (peaks, grown)


def test_columns_of_a_generated_source_are_refused(tmp_path, capsys):
    """They would name nothing."""
    command = ["data", "source=card:smallworld", "record=prompts", "columns={prompt: x}", f"store={tmp_path}"]
    assert main(command) == 2
    assert "columns: card:smallworld generates its rows" in capsys.readouterr().err
