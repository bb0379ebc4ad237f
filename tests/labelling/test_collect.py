"""From people to a policy: candidates, the page, `collect`, and what a second session changes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from conftest import align
from documents import ROOT
from label_server import LabelServer

from align.configs import Collect, RunConfig
from align.data.records import read_rows, write_info, write_rows
from align.errors import Waiting
from align.labelling.conflicts import conflicts
from align.labelling.crowd import Browser
from align.labelling.database import Labeler, Settings, Votes
from align.runtime.job import Inputs, Job
from align.stages import collect
from align.store.artifacts import Artifact

sys.path.insert(0, str(ROOT / "pipelines"))
PIPELINE = """
name: human
defaults:
  - /stage@steps.candidates: compare
  - /stage@steps.collect: collect
  - /stage@steps.reward: reward
  - /stage@steps.ppo: ppo
  - /stage@steps.answers: collect
  - _self_
steps:
  candidates:
    inputs: {model: toy/sft, prompts: toy/prompts}
    num_labelers: 0
    num_responses: 4
    num_prompts: 40
    num_validation_prompts: 20
    max_new_tokens: 8
  collect: {inputs: {candidates: candidates}, labels: mine, num_rows: 30}
  reward: {inputs: {model: toy/sft, data: collect}, batch_size: 8}
  ppo:
    inputs: {policy: toy/sft, reward_model: reward, prompts: toy/prompts}
    num_iterations: 2
    rollout_batch_size: 8
    minibatch_size: 8
    max_new_tokens: 8
  answers: {inputs: {candidates: candidates}, labels: mine, record: demonstrations, num_rows: 2}
"""


def shown(step: str, store: Path) -> dict[str, float]:
    """The metrics of a step's newest artifact."""
    found = json.loads(align("artifacts", "show", step, "--json", "--store", store).stdout)
    metrics: dict[str, float] = found["metrics"]
    return metrics


def token_of(name: str, store: Path) -> str:
    """The token of a new labeler."""
    return align("label", "token", "mine", name, "--store", store).stdout.split("#")[1].strip()


def steps(store: Path, file: Path, *words: str) -> dict[str, tuple[str, bool]]:
    """The key of each step, and whether it is made."""
    done = align("plan", "--config", file, f"store={store}", "--json", *words)
    return {step["step"]: (step["key"], step["cached"]) for step in json.loads(done.stdout)}


def no_page_answers(store: Path, *urls: str) -> None:
    """At these addresses `simulate` ends with an error and adds no labeler to the file of votes."""
    for url in urls:
        said = align("label", "simulate", "mine", "human/candidates", "--store", store, "--url", url, check=2).stderr
        assert f"--url {url}: no labelling page answers; start it in another terminal: align label" in said
    assert "simulated" not in align("label", "token", "mine", "--store", store).stdout


def test_a_run_waits_for_people_and_goes_on_when_they_are_done(store: Path, tmp_path: Path) -> None:
    from dashboard import named_metrics

    file = tmp_path / "human.yaml"
    file.write_text(PIPELINE)
    run = ("run", "--config", file, f"store={store}", "tracker=none")
    align("label", "create", "mine", "--overlap-share", 1, "--overlap", 6, "--store", store)
    waiting = align(*run, check=75)
    assert "waiting: 0 of 30 rankings are in; people give them at align label serve mine" in waiting.stderr
    assert "human/reward" not in waiting.stderr
    assert list((store / "work").glob("collect/*/*")) == []

    align("label", "token", "mine", "ada", "--store", store)
    with LabelServer(store) as server:
        no_page_answers(store, "http://127.0.0.1:9", f"{server.url}/wrong")
        said = align(
            *("label", "simulate", "mine", "human/candidates", "--store", store),
            *("--url", server.url, "--labelers", 3, "--most", 9),
        )
        assert "27 rankings by 3 simulated labelers" in said.stdout
        assert "waiting: 27 of 30 rankings are in" in align(*run, check=75).stderr
        # The scores of what this model writes are all alike, so the simulated labelers order nothing.
        people = [Browser(server.url, token_of(name, store)) for name in ("cid", "dan")]
        vote = {"ranks": [1, 2, 3, 4], "ratings": [7, 5, 3, 1], "flags": [[]] * 4, "seconds": 2.0}
        for _ in range(3):
            for person in people:
                person.post("vote", item=person.post("next")["item"], vote=vote)
    assert "waiting: 0 of 2 answers are in" in align(*run, check=75).stderr
    first = steps(store, file)
    assert [step for step, (_, cached) in first.items() if not cached] == ["human/answers"]
    made = shown("human/collect", store)
    assert {name for name in named_metrics() if name.startswith("collect/")} <= {f"collect/{name}" for name in made}
    assert (made["rows"], made["labelers"]) == (30, 5)
    assert made["labelers/agreement"] == 1
    assert made["rows/validation"] > 0

    with LabelServer(store) as server:  # a second session, in which somebody also writes answers
        align(
            *("label", "simulate", "mine", "human/candidates", "--store", store),
            *("--url", server.url, "--labelers", 1, "--most", 9, "--seed", 1),
        )
        ben = Browser(server.url, token_of("ben", store))
        item = ben.post("next")
        for text in ("In Oakvale.", "She lives in Oakvale."):
            ben.post("demonstration", item=item["item"], text=text)
    later = steps(store, file)
    assert later.pop("human/answers") != first.pop("human/answers")
    assert later == first  # rankings that come later change no key
    align(*run)
    folder = Path(json.loads(align("artifacts", "show", "human/answers", "--json", "--store", store).stdout)["path"])
    answers = [row for split in ("train", "validation") for row in read_rows([folder], split)]
    assert [row["messages"][-1]["content"] for row in answers] == ["In Oakvale.", "She lives in Oakvale."]
    assert [row["messages"][:-1] for row in answers] == [item["prompt"]] * 2
    assert {row["labeler"] for row in answers} == {"ben"}
    more = steps(store, file, "steps.collect.num_rows=40")
    assert more["human/candidates"] == first["human/candidates"]
    assert more["human/collect"][0] != first["human/collect"][0]
    assert more["human/reward"][0] != first["human/reward"][0]
    assert more["human/ppo"][0] != first["human/ppo"][0]
    other = align(*run, "steps.candidates.num_responses=3", check=2)  # other candidates, the same file of votes
    assert "labels: mine has comparisons of other candidates; give each collect step a file of its own" in other.stderr
    align(*run, "steps.collect.num_rows=40")
    rows = align("label", "export", "mine", "--store", store).stdout
    assert "42 comparisons" in rows  # all that were given: 27 + 6 + 9


def test_a_waiting_step_counts_the_rows_that_it_can_take_and_says_when_no_more_come(tmp_path: Path) -> None:
    """Known items give no row, and the two rankings of a decided item give one."""
    (tmp_path / "candidates").mkdir()
    rows = [{"prompt": [{"role": "user", "content": "q"}], "responses": texts} for texts in (["a", "b"], ["c", "d"])]
    write_rows(tmp_path / "candidates", "train", rows, record="candidates")
    write_info(tmp_path / "candidates", licence="CC0", gold=None)
    votes = Votes.create(tmp_path / "labels/mine.db", Settings(overlap=2, overlap_share=1.0, gold_share=0.5))
    votes.add_items(rows, "train")
    votes.add_items([{**rows[0], "responses": ["e", "f"], "ranks": [1, 2]}], "train")

    def said() -> str:
        job = Job("test", tmp_path / "work", RunConfig(store=str(tmp_path)))
        inputs = Inputs(candidates=(Artifact("compare", "0" * 64, "candidates", tmp_path / "candidates"),))
        with pytest.raises(Waiting) as waiting:
            collect.run(Collect(labels="mine", num_rows=4), inputs, job)
        return str(waiting.value)

    def rank_all(name: str, ranks: list[int]) -> Labeler:
        labeler = votes.of_token(votes.add_labeler(name))
        assert labeler is not None
        while (item := votes.next_item(labeler)) is not None:
            vote = {"ranks": ranks, "ratings": [1, 2], "flags": [[], []], "seconds": 1.0}
            votes.vote(labeler, item.id, f"request {item.id}", vote)
        return labeler

    ada = rank_all("ada", [1, 2])
    assert votes.counts()["votes"] == 3
    assert said().startswith("2 of 4 rankings are in; people give them at align label serve mine")
    rank_all("ben", [2, 1])
    votes.adjudicate(ada, conflicts(votes.rankings(), [])[0]["item"], "decision", {"ranks": [1, 2]})
    assert said() == "3 of 4 rankings are in, and all items are done; lower num_rows, or add candidates"
