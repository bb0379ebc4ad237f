"""The compare stage on the toy pipeline's own model: what is left out."""

from __future__ import annotations

from pathlib import Path

import pytest
from stage_jobs import job_at, made_by, planned

from align.configs import Compare
from align.data.records import read_rows
from align.errors import ConfigError
from align.runtime.job import Inputs
from align.stages import compare


def test_prompts_that_are_too_long_are_counted(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inputs = Inputs(model=made_by(finished, "sft"), prompts=made_by(finished, "prompts"))
    count = len(list(read_rows(inputs.folders("prompts"), "train")))
    with pytest.raises(ConfigError, match="no training prompt leaves room for 126 new tokens"):
        compare.run(planned(Compare(max_new_tokens=126, seed=0)), inputs, job_at(tmp_path))
    assert f"{count} of {count} train prompts left out: longer than 2 tokens" in capsys.readouterr().err
