"""The quickstart itself, against the bands of its account, and the same with rankings given over HTTP."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import align
from label_server import LabelServer

EXPECTED = Path(__file__).parent.parent / "pipelines/quickstart/expected.yaml"
PEOPLE = """
name: people
defaults:
  - quickstart
  - /stage@steps.candidates: compare
  - /stage@steps.collect: collect
  - /stage@steps.reward_of_people: reward
  - /stage@steps.ppo_of_people: ppo
  - /stage@steps.evaluate_people: evaluate
  - _self_
steps:
  candidates:
    inputs: {model: sft, prompts: prompts}
    num_labelers: 0
    num_prompts: 1600
    num_validation_prompts: 200
    num_responses: 8
    num_strays: 1
    max_new_tokens: 48
  collect: {inputs: {candidates: candidates}, labels: mine, num_rows: 1800}
  reward_of_people:
    inputs: {model: sft, data: collect, demonstrations: demonstrations}
    precision: fp32
    batch_size: 16
    learning_rate: 0.001
    warmup_steps: 10
  ppo_of_people:
    inputs: {policy: sft, reward_model: reward_of_people, prompts: prompts}
    precision: fp32
    num_iterations: 50
    rollout_batch_size: 128
    minibatch_size: 64
    learning_rate: 0.0003
    value_learning_rate: 0.001
    kl_coef: 0.1
    max_new_tokens: 48
  evaluate_people:
    inputs: {model: ppo_of_people, baseline: sft, prompts: prompts}
    precision: fp32
    max_new_tokens: 48
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("quickstart")


@pytest.fixture(scope="module")
def metrics(store: Path) -> dict[str, Any]:
    return metrics_of(align("run", "pipeline=quickstart", f"store={store}", "tracker=none", "--json").stdout)


def metrics_of(said: str) -> dict[str, Any]:
    return {outcome["step"].partition("/")[2]: outcome["metrics"] for outcome in json.loads(said)}


@pytest.mark.slow
def test_the_quickstart_falls_in_its_bands(metrics: dict[str, Any]) -> None:
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


@pytest.mark.slow
def test_rankings_that_are_given_over_http_raise_the_gold_score(
    store: Path, metrics: dict[str, Any], tmp_path: Path
) -> None:
    """40 simulated labelers at the page, then `collect`, a reward model and PPO by the same command."""
    file = tmp_path / "people.yaml"
    file.write_text(PEOPLE)
    run = ("run", "--config", file, f"store={store}", "tracker=none", "--json")
    assert "0 of 1,800 rankings are in" in align(*run, check=75).stderr
    align("label", "token", "mine", "ada", "--store", store)
    with LabelServer(store) as server:
        align(
            *("label", "simulate", "mine", "people/candidates", "--store", store),
            *("--url", server.url, "--labelers", 40, "--most", 60),
        )
    found = metrics_of(align(*run).stdout)
    assert found["collect"]["labelers"] > 30
    assert found["evaluate_people"]["gold/score"] >= metrics["evaluate_sft"]["gold/score"] + 0.08
    assert found["evaluate_people"]["win_rate_low"] > 0.5
