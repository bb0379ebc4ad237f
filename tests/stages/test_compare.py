"""The compare stage on the toy pipeline's own model: what is left out."""

from __future__ import annotations

from pathlib import Path

import pytest
from stage_jobs import job_at, made_by, planned

from align.configs import Compare
from align.data.records import read_rows
from align.errors import ConfigError
from align.models.load import load_tokenizer
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


def test_responses_that_end_by_themselves_are_counted(finished: Path, tmp_path: Path) -> None:
    """No response of one token ends with text in it; with more room more end, and those as long as the room do not."""
    model, room = made_by(finished, "sft"), 24
    inputs, ended = Inputs(model=model, prompts=made_by(finished, "prompts")), []
    knobs = {"num_prompts": 8, "num_validation_prompts": 4, "num_responses": 4, "seed": 0}
    for most in (1, room):
        cfg = planned(Compare(max_new_tokens=most, **knobs))
        ended.append(compare.run(cfg, inputs, job_at(tmp_path / str(most)))["response/ended"])
    rows = [row for split in ("train", "validation") for row in read_rows([tmp_path / f"{room}/out"], split)]
    texts, tokenizer = [text for row in rows for text in row["responses"]], load_tokenizer(model[0].path)
    cut = sum(len(tokenizer(text).input_ids) >= room for text in texts) / len(texts)
    assert ended[0] < ended[1] <= 1 - cut < 1
