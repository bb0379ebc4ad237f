"""What comparisons keep for evaluations, from rows as benchmarks publish them."""

from __future__ import annotations

import json

import pyarrow.parquet as pq
import pytest
from conftest import align

from align.data.files import RawRow
from align.data.records import Dropped, read_rows
from align.data.row_reader import RowReader
from align.errors import ConfigError

Q, A, B = "Can ducks swim?", "They can.", "No idea."
SIX = {"chosen": ["Yes.", "Yes, well.", "* Yes"], "rejected": ["No.", "No, never.", "* No"]}
STYLES = ["concise", "detailed", "markdown"] * 2
REWARD_BENCH_2 = {"prompt": Q, "chosen": [A, "Sure."], "rejected": [B], "num_correct": 2, "num_incorrect": 1}
PANDALM = {"idx": 1, "instruction": Q, "input": "", "response1": A, "response2": B, "annotator1": 1}

# name: (raw row, details, columns said to be unused)
DETAILS = {
    "RewardBench": (
        {"prompt": Q, "chosen": A, "rejected": B, "subset": "donotanswer", "id": 7},
        {"group": "donotanswer"},
        {"id"},
    ),
    "RewardBench 2": (
        {**REWARD_BENCH_2, "id": "12", "subset": "Math"},
        {"group": "Math"},
        {"id", "num_correct", "num_incorrect"},
    ),
    "RewardBench 2, Ties": (
        {**REWARD_BENCH_2, "id": "tied:3", "subset": "Ties"},
        {"group": "Ties", "ties": "tied:3"},
        {"num_correct", "num_incorrect"},
    ),
    "RM-Bench": ({"id": "chat/1", "prompt": Q, **SIX, "domain": "chat"}, {"group": "chat", "styles": STYLES}, {"id"}),
    "RM-Bench with an empty response": (
        {"prompt": Q, "chosen": ["Yes.", "", "* Yes"], "rejected": SIX["rejected"], "domain": "chat"},
        {"group": "chat"},
        set(),
    ),
    "six responses of another set": ({"prompt": Q, **SIX}, {}, set()),
    "LLMBar": ({"input": Q, "output_1": A, "output_2": B, "label": 2}, {}, set()),
    "PandaLM": (
        {**PANDALM, "annotator2": 1, "annotator3": 0},
        {"votes": [[1, 2], [1, 2], [1, 1]]},
        {"idx"},
    ),
    "Auto-J": (
        {"scenario": "planning", "prompt": Q, "response 1": A, "response 2": B, "label": 0},
        {"group": "planning"},
        set(),
    ),
    "HHH": ({"input": Q, "targets": {"choices": [A, B], "labels": [1, 0]}}, {}, set()),
    "AlpacaEval": (
        {"instruction": Q, "output_1": A, "output_2": B, "preference": 1, "dataset": "koala"},
        {"group": "koala"},
        set(),
    ),
    "K-wise": (
        {"prompt": Q, "responses": [A, B], "ranks": [1, 2], "group": "own"},
        {"group": "own"},
        set(),
    ),
}


def read(row, **options):
    reader = RowReader("comparisons", **options)
    (found,) = reader.read(RawRow("rows.jsonl:1", row))
    return found.made, reader


@pytest.mark.parametrize("name", DETAILS)
def test_details_are_kept_where_they_are_asked_for(name):
    row, details, unused = DETAILS[name]
    made, reader = read(row, details=True)
    assert {n: v for n, v in made.items() if n not in ("prompt", "responses", "ranks")} == details
    assert {*reader.unused} == unused


@pytest.mark.parametrize("name", [name for name in DETAILS if name != "K-wise"])
def test_they_change_nothing_else_and_are_not_kept_without_being_asked_for(name):
    row, _, _ = DETAILS[name]
    plain, _ = read(row)
    detailed, _ = read(row, details=True)
    assert plain.keys() == {"prompt", "responses", "ranks"}
    assert {n: detailed[n] for n in plain} == plain


def test_a_user_s_own_column_can_be_the_group():
    row = {"prompt": Q, "chosen": A, "rejected": B, "topic": "birds", "subset": "other"}
    made, reader = read(row, columns={"group": "topic"})
    assert made["group"] == "birds"
    assert {*reader.unused} == {"subset"}
    reader.check_columns()
    assert read(row, columns={"group": "topic"}, details=True)[0]["group"] == "birds"


def test_rows_that_make_a_ranking_together_have_no_group():
    reader = RowReader("comparisons", columns={"group": "topic"})
    for good in (True, False):
        row = {"prompt": Q, "completion": A if good else B, "label": good, "topic": "birds"}
        assert list(reader.read(RawRow("rows.jsonl:1", row))) == []
    with pytest.raises(ConfigError, match=r"^columns.group: nothing reads group from rows of these columns"):
        reader.check_columns()


def test_a_row_without_agreement_is_left_out_with_its_votes():
    with pytest.raises(Dropped, match="no two annotators agree"):
        read({**PANDALM, "annotator2": 2, "annotator3": 0}, details=True)


def test_a_dataset_stores_them(tmp_path):
    file = tmp_path / "total_dataset.json"
    file.write_text(json.dumps([{"id": str(i), "prompt": f"{Q} {i}", **SIX, "domain": "chat"} for i in range(3)]))
    given = ("record=comparisons", "split=test", "tracker=none", f"store={tmp_path / 'store'}")
    align("data", f"source=path:{file}", *given, "details=true", "name=bench/rm")
    (folder,) = (tmp_path / "store/objects/data").iterdir()
    rows = list(read_rows([folder], "test"))
    assert [(row["group"], json.loads(row["styles"])) for row in rows] == [("chat", STYLES)] * 3
    assert pq.read_schema(folder / "test.parquet").names == ["group", "styles", "prompt", "responses", "ranks"]


def test_only_comparisons_have_details(tmp_path):
    done = align("data", "source=card:smallworld", "record=prompts", "details=true", f"store={tmp_path}", check=2)
    assert "details: expected false with record=prompts: only comparisons have details, got true" in done.stderr
