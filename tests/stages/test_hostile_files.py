"""Whatever a file of data holds, the data stage makes rows of it or says what is wrong, where: nothing else happens."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hostile_files import outcome
from stage_jobs import job_at

from align.configs import Data
from align.data.records import SPLITS, Row, read_rows
from align.errors import ConfigError
from align.runtime.job import Inputs
from align.stages import data as stage

# Seeds on which reading once failed otherwise than in a ConfigError, or refused in a line that cannot be printed.
REGRESSIONS = [714, 1071, 2895]
ASKED = [{"role": "user", "content": "Do ducks swim?"}]
RANKED = {"prompt": ASKED, "responses": ["yes", "no"]}


def made_of(folder: Path, record: str, rows: list[Row]) -> list[Row]:
    """What comes of rows of a user's file as they are read by a later stage."""
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    job = job_at(folder / "job")
    stage.run(Data(source=f"path:{path}", record=record), Inputs({}), job)
    return [row for split in SPLITS for row in read_rows([job.out], split)]


def test_a_file_made_at_random_is_read_or_refused_by_its_name(tmp_path: Path) -> None:
    """A few seeds, and those that once failed; tests/soak/files.py tries many."""
    found = [outcome(tmp_path / str(seed), seed) for seed in [*range(150), *REGRESSIONS]]
    assert [faults for _, faults in found if faults] == []
    assert 20 < [said for said, _ in found].count("rows") < 120


@pytest.mark.parametrize("own", [[1], ["x"], "x", [[1]], {"a": 1}, 7, None, True])
def test_a_user_s_own_column_may_have_the_name_of_a_record_s(tmp_path: Path, own: object) -> None:
    rows = [{**RANKED, "ranks": [1, 2], "messages": own}, {**RANKED, "ranks": [2, 1], "messages": [{"role": 1}]}]
    found = made_of(tmp_path, "comparisons", rows)
    assert sorted(row["ranks"] for row in found) == [[1, 2], [2, 1]]


@pytest.mark.parametrize(
    "rows",
    [
        [{"question": "q", "choices": ["a", "b"], "answer": 1}, {"sentence": "s", "label": "yes"}],
        [{"sentence": "s", "label": "yes"}, {"sentence1": "s", "sentence2": "t", "score": 0.5}],
    ],
)
def test_rows_of_two_tasks_are_no_dataset(tmp_path: Path, rows: list[Row]) -> None:
    with pytest.raises(ConfigError, match=r"rows\.jsonl:2: (label|score): expected .*, as the rows before have, got a"):
        made_of(tmp_path, "labelled", rows)


def test_labels_of_candidates_are_numbers_however_they_are_spelled(tmp_path: Path) -> None:
    items = [{"contexts": [f"{i}", "b"], "completions": ["x", "y"]} for i in range(3)]
    spelled = [[0, 1], [False, True], [0.0, 1]]
    found = made_of(
        tmp_path, "items", [{**item, "labels": labels} for item, labels in zip(items, spelled, strict=True)]
    )
    assert [row["labels"] for row in found] == [[0, 1]] * 3


@pytest.mark.parametrize(
    ("ranks", "is_ranking"),
    [
        *(([1, 2, 3], True), ([3, 1, 2], True), ([1, 1, 2], True), ([1, 1, 3], True), ([2, 2, 1], True)),
        *(([0, 1, 2], False), ([9, 3, 5], False), ([2, 3, 4], False), ([1, 3, 3], False), ([5, 4, 1], False)),
    ],
)
def test_scores_are_not_read_as_ranks(tmp_path: Path, ranks: list[int], is_ranking: bool) -> None:
    rows = [{"prompt": ASKED, "responses": ["yes", "no", "perhaps"], "ranks": ranks}]
    if is_ranking:
        assert [row["ranks"] for row in made_of(tmp_path, "comparisons", rows)] == [ranks]
    else:
        with pytest.raises(
            ConfigError, match=r"rows\.jsonl:1: ranks: expected the places of 3 responses, 1 for the best"
        ):
            made_of(tmp_path, "comparisons", rows)
