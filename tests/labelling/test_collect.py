"""From people to a reward model: candidates, the page, `collect`, and what a second session changes."""

from __future__ import annotations

import json
from pathlib import Path

from conftest import align
from label_server import LabelServer

PIPELINE = """
name: human
defaults:
  - /stage@steps.candidates: compare
  - /stage@steps.collect: collect
  - /stage@steps.reward: reward
  - _self_
steps:
  candidates:
    inputs: {model: toy/sft, prompts: toy/prompts}
    num_labelers: 0
    num_responses: 4
    num_prompts: 40
    num_validation_prompts: 20
    max_new_tokens: 8
  collect: {inputs: {candidates: candidates}, labels: mine, num_rankings: 30}
  reward: {inputs: {model: toy/sft, data: collect}, batch_size: 8}
"""


def steps(store: Path, file: Path, *words: str) -> dict[str, tuple[str, bool]]:
    """The key of each step, and whether it is made."""
    done = align("plan", "--config", file, f"store={store}", "--json", *words)
    return {step["step"]: (step["key"], step["cached"]) for step in json.loads(done.stdout)}


def test_a_run_waits_for_people_and_goes_on_when_they_are_done(store: Path, tmp_path: Path) -> None:
    file = tmp_path / "human.yaml"
    file.write_text(PIPELINE)
    run = ("run", "--config", file, f"store={store}", "tracker=none")
    waiting = align(*run, check=75)
    assert "waiting: 0 of 30 rankings are in; people rank at align label serve mine" in waiting.stderr
    assert "human/reward" not in waiting.stderr
    assert list((store / "work").glob("collect/*/*")) == []

    align("label", "token", "mine", "ada", "--store", store)
    with LabelServer(store) as server:
        said = align(
            *("label", "simulate", "mine", "human/candidates", "--store", store),
            *("--url", server.url, "--labelers", 3, "--most", 9),
        )
        assert "27 rankings by 3 simulated labelers" in said.stdout
        assert "waiting: 27 of 30 rankings are in" in align(*run, check=75).stderr
        align(
            *("label", "simulate", "mine", "human/candidates", "--store", store),
            *("--url", server.url, "--labelers", 1, "--most", 6),
        )
    align(*run)
    first = steps(store, file)
    assert all(cached for _, cached in first.values())
    made = json.loads(align("artifacts", "show", "human/collect", "--json", "--store", store).stdout)
    assert made["metrics"]["rankings"] == 30
    assert made["metrics"]["labelers"] == 4
    assert made["metrics"]["prompts/validation"] > 0

    with LabelServer(store) as server:  # a second session
        align(
            *("label", "simulate", "mine", "human/candidates", "--store", store),
            *("--url", server.url, "--labelers", 1, "--most", 9, "--seed", 1),
        )
    assert steps(store, file) == first  # rankings that come later change no key
    more = steps(store, file, "steps.collect.num_rankings=40")
    assert more["human/candidates"] == first["human/candidates"]
    assert more["human/collect"][0] != first["human/collect"][0]
    assert more["human/reward"][0] != first["human/reward"][0]
    align(*run, "steps.collect.num_rankings=40")
    rows = align("label", "export", "mine", "--store", store).stdout
    assert "42 comparisons" in rows  # all that were given: 27 + 6 + 9
