"""Whatever a file of data holds, the data stage makes rows of it or says what is wrong, where: nothing else happens."""

from __future__ import annotations

from pathlib import Path

import pytest
from hostile_files import write
from stage_jobs import job_at

from align.configs import Data
from align.data.records import SPLITS, check_row, read_rows
from align.errors import ConfigError
from align.job import Inputs
from align.stages import data as stage

# Seeds on which reading once failed otherwise than in a ConfigError, or made rows that no stage can read.
REGRESSIONS: list[int] = []


def outcome(folder: Path, seed: int) -> str:
    """What comes of the file of a seed as a random record: "rows", or the line that refuses it."""
    folder.mkdir()
    path, record = write(folder, seed)
    job = job_at(folder / "job")
    try:
        stage.run(Data(source=f"path:{path}", record=record), Inputs({}), job)
    except ConfigError as error:
        said = str(error)
        assert str(path) in said or path.name in said, said
        said.encode(errors="strict")  # it is printed
        assert not list(job.out.glob("*.parquet"))
        return said
    for split in SPLITS:
        for row in read_rows([job.out], split):
            assert check_row(record, row)
    return "rows"


def test_a_file_made_at_random_is_read_or_refused_by_its_name(tmp_path: Path) -> None:
    """A few seeds, and those that once failed; `-m soak` tries many."""
    found = [outcome(tmp_path / str(seed), seed) for seed in [*range(150), *REGRESSIONS]]
    assert 20 < found.count("rows") < 120


@pytest.mark.soak
@pytest.mark.parametrize("block", range(60))
def test_many_files_made_at_random_are_read_or_refused_by_their_names(tmp_path: Path, block: int) -> None:
    for seed in range(100 * block, 100 * block + 100):
        try:
            outcome(tmp_path / str(seed), seed)
        except Exception as error:
            raise AssertionError(f"seed {seed}: {type(error).__name__}: {error}") from error
