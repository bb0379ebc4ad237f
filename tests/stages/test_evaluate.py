"""What an evaluation takes besides a model: its average, and facts of its pretraining text."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import manifests

from align.artifacts import Artifact
from align.configs import Evaluate, RunConfig
from align.errors import ConfigError
from align.job import Inputs, Job, Metrics
from align.stages import evaluate


def scores(finished: Path, folder: Path, model: str, **knobs: object) -> Metrics:
    made = manifests(finished)

    def artifact(step: str) -> tuple[Artifact, ...]:
        found = made[step]
        place = finished / "objects" / found["stage"] / found["key"]
        return (Artifact(found["stage"], found["key"], found["kind"], place),)

    (folder / "out").mkdir(parents=True)
    inputs = Inputs(model=artifact(model), prompts=artifact("prompts"), text=artifact("text"))
    return evaluate.run(Evaluate(max_new_tokens=8, seed=0, **knobs), inputs, Job("test", folder, RunConfig()))


def test_the_average_is_another_model(finished: Path, tmp_path: Path) -> None:
    raw, average = (scores(finished, tmp_path / w, "ppo", weights=w) for w in ("raw", "ema"))
    assert raw["pretrain_loss"] != average["pretrain_loss"]
    assert raw["pretrain_loss"] == pytest.approx(average["pretrain_loss"], rel=0.05)
    assert 0 <= raw["fact_recall"] <= 1


def test_a_model_without_an_average_is_refused(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"weights=ema: sft@.* keeps no average; give weights=raw"):
        scores(finished, tmp_path, "sft", weights="ema")
