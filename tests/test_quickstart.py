"""The quickstart itself, against the bands of its account."""

import json
from pathlib import Path

import pytest
import yaml
from conftest import align

EXPECTED = Path(__file__).parent.parent / "pipelines/quickstart/expected.yaml"


@pytest.mark.slow
def test_the_quickstart_falls_in_its_bands(tmp_path: Path) -> None:
    done = align("run", "pipeline=quickstart", f"store={tmp_path}", "tracker=none", "--json")
    metrics = {outcome["step"].partition("/")[2]: outcome["metrics"] for outcome in json.loads(done.stdout)}
    bands = yaml.safe_load(EXPECTED.read_text())
    outside = {
        f"{step}: {name}": (metrics[step][name], band)
        for step, expected in bands.items()
        for name, band in expected.items()
        if not band[0] <= metrics[step][name] <= band[1]
    }
    assert outside == {}
    sft, ppo = metrics["evaluate_sft"], metrics["evaluate_ppo"]
    assert ppo["gold/score"] >= sft["gold/score"] + 0.08
    assert ppo["greedy/gold/score"] >= sft["greedy/gold/score"]
