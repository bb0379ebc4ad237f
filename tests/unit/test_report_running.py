"""The report on steps that are not finished: while they run, and after a crash."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from small_store import add, evaluation
from stage_jobs import job_at

from align.cli.report import main
from align.errors import StoreError
from align.report.page import write_report
from align.report.running import unfinished
from align.store.artifacts import NOTE, STEPS, ArtifactStore
from align.store.seals import digest_of

KEY = digest_of("a run")


@pytest.fixture
def store(tmp_path):
    return ArtifactStore(tmp_path / "store")


def begin(work, name="toy/ppo", total=8, error="", log=()):
    """What a step leaves in its work folder while it runs."""
    (work / "out").mkdir(exist_ok=True)
    (work / NOTE).write_text(json.dumps({"name": name, "begun": time.time()} | ({"error": error} if error else {})))
    (work / STEPS).write_text(json.dumps({"total": total, "unit": "iterations"}))
    rows = [json.dumps({"step": step, "objective/score": 0.1 * step, "objective/kl": 0.1}) + "\n" for step in log]
    (work / "out/metrics.jsonl").write_text("".join(rows))


def page_of(store, refs=("toy",), **more):
    out = store.root / "page.html"
    write_report(store, refs, out, "toy", **more)
    return out.read_text()


def test_a_running_step_is_shown_with_its_curves_and_half_a_line_is_left_out(store):
    with store.claim("ppo", KEY) as work:
        begin(work, log=[1, 2, 3])
        with (work / "out/metrics.jsonl").open("a") as file:
            file.write('{"step": 4, "objective/sc')
        (step,) = unfinished(store, ["toy"])
        assert (step.is_running, step.step, step.total) == (True, 3, 8)
        page = page_of(store)
    assert f"toy/ppo: running, last written {time.strftime('%H:%M')}" in page
    assert "iteration 3 of 8" in page
    assert "objective/score from 0.1 to 0.3" in page
    assert "reloads itself" not in page
    assert "no step is finished yet" in page


@pytest.mark.parametrize(
    ("error", "said"), [("", "did not end: it was killed"), ("the loss is nan", "stopped before its end")]
)
def test_after_a_crash_the_page_shows_what_there_is_and_says_that_the_step_did_not_end(store, error, said):
    add(store, "toy/sft", "model", {})
    with store.claim("ppo", KEY) as work:
        begin(work, log=[1, 2], error=error)
    page = page_of(store)
    assert f"toy/ppo: {said}" in page
    assert "iteration 2 of 8" in page
    assert error in page
    assert '<li class="bad"><span class="badge bad"><span aria-hidden="true">✕</span> Stopped</span>' in page
    assert "objective/score from 0.1 to 0.2" in page


def test_beside_a_first_step_that_still_runs_all_that_is_finished_is_shown(store):
    add(store, "toy/sft", "model", {}, {"eval/loss": 0.5})
    with store.claim("ppo", KEY) as work:
        begin(work, log=[1, 2])
        page = page_of(store, ("toy/ppo", "toy"))
    assert "toy/ppo: running" in page
    assert "no step is finished yet" not in page


def test_a_step_that_stopped_is_no_news_once_its_name_has_a_newer_artifact(store):
    with store.claim("ppo", KEY) as work:
        begin(work, log=[1])
    for file in (work / NOTE, work / "out/metrics.jsonl"):
        os.utime(file, (time.time() - 100, time.time() - 100))
    assert len(unfinished(store, ["toy"])) == 1
    add(store, "toy/ppo", "model", {})
    assert unfinished(store, ["toy"]) == []
    with store.claim("ppo", KEY):  # begun again: it runs, however old its log is
        assert len(unfinished(store, ["toy"])) == 1


@pytest.mark.parametrize(
    ("ref", "is_meant"),
    [("toy", True), ("toy/ppo", True), (f"ppo@{KEY[:8]}", True), ("toys", False), ("toy/pp", False), ("sft@", False)],
)
def test_a_reference_means_the_unfinished_steps_of_its_name(store, ref, is_meant):
    with store.claim("ppo", KEY) as work:
        begin(work)
    assert bool(unfinished(store, [ref])) is is_meant
    if not is_meant:
        with pytest.raises(StoreError):
            page_of(store, [ref])


def test_beside_what_is_made_already(store):
    sft = add(store, "toy/sft", "model", {})
    ppo = add(store, "toy/ppo", "model", {"policy": sft})
    add(store, "toy/evaluate_ppo", "evaluation", {"model": ppo, "baseline": sft}, evaluation(0.7, 0.6, 0.8))
    with store.claim("ppo", KEY) as work:
        begin(work, log=[1, 2])
        page = page_of(store, ["toy/ppo", "toy/evaluate_ppo"])
    assert "It worked" in page
    assert "What follows is about the steps that are finished." in page
    assert "toy/ppo (running" in page


def test_a_step_says_how_many_steps_it_has(tmp_path):
    job = job_at(tmp_path)
    for _ in job.steps(7, start=2, unit="iterations"):
        assert json.loads((tmp_path / STEPS).read_text()) == {"total": 7, "unit": "iterations"}


# -- the command -----------------------------------------------------------------------------------------------------


def follow(store: ArtifactStore) -> subprocess.Popen[str]:
    """`align report toy --follow` in a process of its own, when its first page is written."""
    # A shell that started the tests behind it ignores SIGINT, and its children inherit that.
    code = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)"
    code += "; from align.cli.report import main; sys.exit(main(sys.argv[1:]))"
    arguments = ["toy", "--follow", "--store", str(store.root)]
    process = subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert Path(process.stdout.readline().strip()).is_file()
    return process


def test_ctrl_c_ends_the_following_cleanly(store):
    page = store.root / "reports/toy.html"
    with store.claim("ppo", KEY) as work:
        begin(work, log=[1, 2, 3])
        process = follow(store)
        assert "This page reloads itself every 5 s." in page.read_text()
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    assert "reloads itself" not in page.read_text()
    assert "running, last written" in page.read_text()


@pytest.mark.slow
def test_the_page_follows_the_log_and_the_end_of_a_step(store):
    page = store.root / "reports/toy.html"

    def until(text: str) -> None:
        limit = time.monotonic() + 120
        while text not in page.read_text():
            assert time.monotonic() < limit
            time.sleep(0.1)

    with store.claim("ppo", KEY) as work:
        begin(work, log=[1, 2, 3])
        process = follow(store)
        until("iteration 3 of 8")
        begin(work, log=[1, 2, 3, 4, 5])
        until("iteration 5 of 8")
    until("did not end: it was killed")
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0


def test_a_pipeline_that_nobody_knows_is_one_line(store):
    add(store, "toy/sft", "model", {})
    with pytest.raises(StoreError, match="nope: no pipeline of that name"):
        main(["nope", "--follow", "--store", str(store.root)])
