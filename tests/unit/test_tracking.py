"""What a W&B tracker leaves offline, read back from its file, and how it takes trouble."""

import json
import os
import sys
import time
from pathlib import Path

import pytest
from conftest import align
from wandb_file import OfflineRun, read_run

from align.configs import Collect, TrackerConfig
from align.data.records import write_info, write_rows
from align.runtime.job import Inputs, Job
from align.runtime.tracking import Tracked, Tracker, make_tracker
from align.stages import collect
from align.store.artifacts import Artifact, ArtifactStore

TRACKED = Tracked(
    name="mine/ppo",
    stage="ppo",
    group="mine-1",
    tags=["mine", "ppo", "x" * 80],
    config={"kl_coef": 0.05, "parents": {"policy": [{"ref": "mine/sft", "digest": "d" * 64}]}},
    parents=[(["mine/sft"], "d" * 64)],
)


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    for name in ("WANDB_MODE", "WANDB_DATA_DIR", "WANDB_HTTP_TIMEOUT", "WANDB_SILENT"):
        monkeypatch.setenv(name, "")  # so that what the tracker sets is undone
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("WANDB_MODE", "offline")


def started(root: Path, tracked: Tracked = TRACKED) -> Tracker:
    (root / "work" / "out").mkdir(parents=True, exist_ok=True)
    tracker = make_tracker(TrackerConfig(), root)
    tracker.start(tracked, root / "work")
    return tracker


def left(root: Path) -> OfflineRun:
    (folder,) = root.glob("wandb/offline-run-*")
    return ended(folder)


def ended(folder: Path) -> OfflineRun:
    """A run that was finished; W&B's own process writes the last of it a moment later."""
    limit = time.monotonic() + 10
    while (run := read_run(folder)).exit_code is None and time.monotonic() < limit:
        time.sleep(0.02)
    return run


def committed(root: Path) -> Artifact:
    payload = root / "payload"
    payload.mkdir()
    (payload / "model.safetensors").write_bytes(bytes(1_000_000))
    entry = {"ref": "mine/sft", "stage": "sft", "key": "b" * 64, "digest": "d" * 64}
    manifest = {"kind": "model", "inputs": {"policy": [entry]}, "metrics": {"objective/kl": 3.0}, "seconds": 7.5}
    return ArtifactStore(root).commit("ppo", "a" * 64, payload, manifest)


def test_a_run_says_what_it_is_of_and_has_an_axis_of_its_own(tmp_path: Path) -> None:
    tracker = started(tmp_path)
    for step in (1, 2):
        tracker.log({"objective/kl": step / 10, "ppo/clip_fraction": 0.5}, step)
    tracker.table("samples", ["prompt", "response"], [["a", "b"], ["c", "d"]])
    tracker.alert("cut_off", "raise max_new_tokens")
    tracker.finish()
    run = left(tmp_path)
    assert (run.name, run.group, run.job_type, run.exit_code) == ("mine/ppo", "mine-1", "ppo", 0)
    assert sorted(run.tags) == ["mine", "ppo", "x" * 64]
    assert run.config["kl_coef"] == 0.05
    assert run.config["parents"]["policy"][0]["digest"] == "d" * 64
    assert run.axes == {"ppo/*": "ppo/iteration"}
    assert [(row["ppo/iteration"], row["ppo/objective/kl"]) for row in run.history[:2]] == [(1, 0.1), (2, 0.2)]
    assert run.history[0]["ppo/clip_fraction"] == 0.5
    assert run.tables["ppo/samples"]["nrows"] == 2
    assert list(tmp_path.glob("wandb/artifacts/staging/*"))  # what `wandb sync` sends is all in one place
    assert not list((tmp_path / "home").rglob("staging"))
    (file,) = tmp_path.glob("wandb/offline-run-*/files/" + run.tables["ppo/samples"]["path"])
    assert json.loads(file.read_text())["data"] == [["a", "b"], ["c", "d"]]
    assert run.alerts == [("cut_off", "raise max_new_tokens")]


def test_the_artifact_is_a_list_of_references(tmp_path: Path) -> None:
    tracker, artifact = started(tmp_path), committed(tmp_path)
    tracker.log({"objective/kl": 0.0}, 1)
    tracker.log_artifact(3, ["latest", "blessed"], artifact)
    tracker.finish()
    run = left(tmp_path)
    assert run.name == "mine/ppo:v3"
    assert run.summary["ppo/objective/kl"] == 3.0
    assert run.summary["ppo/time/seconds"] == 7.5
    (mirror,) = run.outputs
    assert (mirror.name, mirror.type) == ("mine.ppo", "model")
    assert set(mirror.aliases) == {"latest", "blessed", "align-v3", f"sha256-{artifact.digest[:12]}"}
    metadata = json.loads(mirror.metadata)
    assert (metadata["version"], metadata["digest"]) == ("v3", artifact.digest)
    files = {entry.path: entry for entry in mirror.manifest.contents}
    assert set(files) == {"manifest.json", "model.safetensors"}
    assert files["model.safetensors"].ref == (artifact.path / "model.safetensors").as_uri()
    assert not any(entry.local_path for entry in files.values())
    ours = [*tmp_path.glob("wandb/**/*"), *(tmp_path / "home").rglob("*")]
    assert max(path.stat().st_size for path in ours if path.is_file()) < 500_000  # no copy of the weights


def test_a_killed_run_is_told_again_what_it_had_logged(tmp_path: Path) -> None:
    cut_off = tmp_path / "wandb/offline-run-20260101_000000-feedbeef"
    cut_off.mkdir(parents=True)
    (cut_off / "run-feedbeef.wandb").write_bytes(b"")
    tracker = started(tmp_path)
    (tmp_path / "work/wandb_run_id").write_text("feedbeef")
    rows = [{"step": step, "objective/kl": step / 10} for step in (1, 2)]
    (tmp_path / "work/out/metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "work/out/events.jsonl").write_text('{"step": 1, "name": "cut_off", "message": "so it is"}\n')
    tracker.log({"objective/kl": 0.3}, 3)
    tracker.finish()
    run = left(tmp_path)  # one folder, not two
    assert run.id == "feedbeef"
    assert [row["ppo/iteration"] for row in run.history] == [1, 2, 3]
    assert run.alerts == [("cut_off", "so it is")]


def test_the_run_of_another_process_that_ended_stands(tmp_path: Path) -> None:
    """As rank 0's does, whose artifact the first process logs."""
    tracker = started(tmp_path)
    tracker.log({"objective/kl": 0.1}, 1)
    tracker.finish()
    (tmp_path / "work/out").rename(tmp_path / "gone")
    time.sleep(1.1)  # a folder's name has the second in it
    after = make_tracker(TrackerConfig(), tmp_path)
    after.start(TRACKED, tmp_path / "work")
    after.log_artifact(0, [], committed(tmp_path))
    after.finish()
    first, second = (ended(folder) for folder in sorted(tmp_path.glob("wandb/offline-run-*")))
    assert first.id == second.id
    assert len(first.history) == 1
    assert len(second.outputs) == 1


def test_a_step_that_tells_nothing_leaves_no_run(tmp_path: Path) -> None:
    started(tmp_path).finish(exit_code=1)
    assert not (tmp_path / "wandb").exists()


def add_candidates(root: Path) -> None:
    store = ArtifactStore(root)
    with store.claim("compare", "c" * 64) as work:
        (work / "out").mkdir()
        row = {"prompt": [{"role": "user", "content": "q"}], "responses": ["a", "b"]}
        write_rows(work / "out", "train", [row], record="candidates")
        write_info(work / "out", licence="CC0", gold=None)
        manifest = {"kind": "candidates", "inputs": {}, "metrics": {}, "seconds": 1.0}
        artifact = store.commit("compare", "c" * 64, work / "out", manifest)
    store.publish("mine/candidates", artifact)


@pytest.mark.parametrize("tells", [False, True])
def test_a_step_that_waits_for_people_leaves_no_failed_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tells: bool
) -> None:
    """`collect` itself tells nothing before it waits. A stage of a plugin may."""
    add_candidates(tmp_path)
    run = collect.run

    def telling(cfg: Collect, inputs: Inputs, job: Job) -> dict[str, float]:
        job.log.metrics({"asked": 1.0}, 1)
        return run(cfg, inputs, job)

    if tells:
        monkeypatch.setattr(collect, "run", telling)
    words = ("candidates=mine/candidates", "labels=mine", "num_rows=1", f"store={tmp_path}", "name=mine/collect")
    assert "waiting: 0 of 1 rankings are in" in align("collect", *words, check=75).stderr
    assert [ended(folder).exit_code for folder in tmp_path.glob("wandb/offline-run-*")] == [0] * tells


def test_what_cannot_be_told_is_said_once_and_ends_that_run_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tracker = started(tmp_path)
    tracker.log({"objective/kl": 0.1}, 1)
    tracker.table("samples", ["prompt"], [["a", "b"]])  # a column short
    tracker.log({"objective/kl": 0.2}, 2)
    tracker.finish()
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1
    assert told[0].startswith("  mine/ppo: W&B stopped taking this step's numbers (")
    assert len(left(tmp_path).history) == 1
    other = started(tmp_path / "other", Tracked(name="mine/evaluate", stage="evaluate", group="mine-1"))
    other.log({"kl": 0.5}, 0)
    other.finish()
    assert left(tmp_path / "other").name == "mine/evaluate"


def test_without_wandb_a_step_runs_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    tracker = started(tmp_path)
    tracker.log({"objective/kl": 0.1}, 1)
    tracker.log({"objective/kl": 0.2}, 2)
    tracker.finish()
    assert capsys.readouterr().err.count("W&B stopped taking this step's numbers") == 1
