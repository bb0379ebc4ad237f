"""Rows from a user's file to a dataset artifact, through the command line."""

import gzip
import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from align.__main__ import main
from align.artifacts import ArtifactStore


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


BAD = ['{"prompt": "good"}', '{"prompt": 3}', "{oops", '{"prompt": [{"role": "bot", "content": "x"}]}', '{"other": 1}']


def test_each_bad_row_has_its_line_and_no_artifact_is_made(here, capsys):
    (here / "a.jsonl").write_text("\n".join(BAD) + "\n")
    assert data("source=path:a.jsonl", "record=prompts") == 2
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert [line.partition(": expected")[0] for line in told[:3]] == [
        "error: a.jsonl:2: prompt",
        "error: a.jsonl:3: row",
        "error: a.jsonl:4: prompt[0].role",
    ]
    assert told[3].startswith("error: a.jsonl:5: row: columns other make no known format")
    assert len(told) == 4
    assert not [name for name in written(here) if name.startswith(("objects", "names"))]


def test_a_bad_row_leaves_nothing_at_all(here):
    (here / "a.jsonl").write_text("\n".join(BAD) + "\n")
    assert data("source=path:a.jsonl", "record=prompts") == 2
    assert not (here / "store").exists()


def test_twenty_bad_rows_are_shown_and_the_others_counted(here, capsys):
    (here / "a.jsonl").write_text('{"prompt": 3}\n' * 32 + '{"prompt": true}\n')
    assert data("source=path:a.jsonl", "record=prompts") == 2
    told = capsys.readouterr().err
    assert told.count("error: a.jsonl:") == 20
    assert "(and 13 more)" in told


def test_what_is_wrong_with_every_row_is_said_once(here, capsys):
    (here / "a.jsonl").write_text('{"prompt": 3}\n' * 33)
    assert data("source=path:a.jsonl", "record=prompts") == 2
    told = capsys.readouterr().err
    assert told.count("error: a.jsonl:") == 1
    assert "(and 32 more)" in told


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
        (["source=path:blank.jsonl"], "no row is left; dropped: empty text 1"),
        (
            ["source=card:smallworld", "record=prompts", "options.sed=1", "train_rows=1", "splits=[train]"],
            "options.sed",
        ),
    ],
)
def test_what_cannot_be_read_is_one_line_and_exit_code_2(here, capsys, arguments, message):
    (here / "a.jsonl").write_text(lines({"text": "a"}))
    (here / "blank.jsonl").write_text(lines({"text": " "}))
    assert data(*(f"+{word}" if word.startswith("options.") else word for word in arguments)) == 2
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(told) == 1
    assert message in told[0]
    assert "defect" not in told[0]
    assert not [name for name in written(here) if name.startswith(("objects", "names"))]


UNFIT = {
    "lone surrogate": ["documents", '{"text": "a\\ud800"}'],
    "mixed types": ["prompts", '{"prompt": "a", "id": 1}\n{"prompt": "b", "id": "x"}'],
    "empty object": ["prompts", '{"prompt": "a", "meta": {}}'],
    "huge number": ["prompts", '{"prompt": "a", "id": 1000000000000000000000}'],
    "responses of objects": ["comparisons", '{"prompt": "a", "responses": [{"a": 1}, {"a": 2}], "ranks": [1, 2]}'],
    "a short history": ["demonstrations", '{"instruction": "a", "output": "b", "history": [3]}'],
}


@pytest.mark.parametrize("what", UNFIT)
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


def test_long_labelled_rows_are_dropped_by_what_is_asked_and_the_longest_choice(here):
    rows = [{"question": "q" * 5, "choices": ["x", "y" * size], "answerKey": "A"} for size in (5, 6)]
    (here / "a.jsonl").write_text(lines(*rows, {"texts": ["t" * 5, "u" * 5], "choices": ["v", "w"], "label": 0}))
    assert data("source=path:a.jsonl", "record=labelled", "max_chars=10") == 0
    assert [len(row["choices"][1]) for rows in splits(here).values() for row in rows] == [5]
