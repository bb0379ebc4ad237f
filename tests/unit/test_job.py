"""What a job writes, and what of it is there again after its process was gone."""

import json
import os

import pytest
import torch
from stage_jobs import job_at

from align.configs import HardwareConfig, RunConfig
from align.runtime.job import Job
from align.runtime.tracking import NoTracker
from align.store.checkpoints import load_checkpoint, save_checkpoint


def steps_of(file):
    return [json.loads(line)["step"] for line in file.read_bytes().split(b"\n") if line]


def write(job, *steps):
    """One row in each log for each step, with a line separator of Unicode in the text."""
    for step in steps:
        job.log.metrics({"loss": 1.0}, step)
        job.log.event(step, "cut_off", "only 10 %\u2028end")
        job.log.append("samples", step, [{"response": "a\u2028\u2029\u0085b"}, {"response": "c"}])


@pytest.fixture
def folder(tmp_path):
    """A job that saved at 2 and at 3, and was gone after it had logged 4 and the beginning of 5."""
    job = job_at(tmp_path, checkpoint_seconds=0)
    assert job.resume.last() is None
    write(job, 1, 2)
    job.resume.save_if_due(2, lambda: {"at": 2})
    write(job, 3)
    job.resume.save_if_due(3, lambda: {"at": 3})
    write(job, 4)
    for name in ("metrics", "events", "samples"):
        with (tmp_path / f"out/{name}.jsonl").open("ab") as file:
            file.write(b'{"step": 5, "lo')
    return tmp_path


def logged(folder):
    return {file.stem: steps_of(file) for file in sorted((folder / "out").glob("*.jsonl"))}


def test_every_log_is_cut_to_what_the_checkpoint_says(folder):
    assert job_at(folder).resume.last() == (3, {"at": 3})
    assert logged(folder) == {"events": [1, 2, 3], "metrics": [1, 2, 3], "samples": [1, 1, 2, 2, 3, 3]}


def test_with_a_damaged_checkpoint_every_log_is_cut_to_the_one_before_and_both_are_said(folder, capsys):
    (folder / "checkpoints/step-3/state.json").write_text("{}")
    assert job_at(folder).resume.last() == (2, {"at": 2})
    assert logged(folder) == {"events": [1, 2], "metrics": [1, 2], "samples": [1, 1, 2, 2]}
    told = capsys.readouterr().err
    assert "the checkpoint of 3 is damaged (state.json is not as it was written)" in told
    assert "going on from 2" in told


@pytest.mark.parametrize("name", ["metrics", "events", "samples"])
def test_a_log_that_was_changed_is_not_gone_on_with(folder, name, capsys):
    """Of step 3, which the checkpoint of 2 knows nothing of; then of step 1."""
    file = folder / f"out/{name}.jsonl"
    file.write_bytes(file.read_bytes().replace(b'"step": 3', b'"step": 8'))
    assert job_at(folder).resume.last() == (2, {"at": 2})
    assert f"the checkpoint of 3 is damaged (out/{name}.jsonl is not as it was written)" in capsys.readouterr().err
    file.write_bytes(file.read_bytes().replace(b'"step": 1', b'"step": 9'))
    assert job_at(folder).resume.last() is None


def test_without_a_whole_checkpoint_every_log_begins_again_and_that_is_said(folder, capsys):
    for step in (2, 3):
        (folder / f"checkpoints/step-{step}/manifest.json").unlink()
    assert job_at(folder).resume.last() is None
    assert logged(folder) == {}
    told = capsys.readouterr().err
    assert "the checkpoint of 2 is damaged" in told
    assert "the checkpoint of 3 is damaged" in told
    assert "there is no older checkpoint: starting again" in told


def test_a_process_that_was_gone_before_it_saved_leaves_no_line(tmp_path):
    job = job_at(tmp_path)
    job.resume.last()
    write(job, 0, 1)
    again = job_at(tmp_path)
    assert again.resume.last() is None
    write(again, 0)
    assert logged(tmp_path) == {"events": [0], "metrics": [0], "samples": [0, 0]}


def test_a_checkpoint_vouches_for_logs_that_are_on_disk(tmp_path, monkeypatch):
    """Else a power cut takes the end of a log, and with it every checkpoint that knows of it."""
    synced, fsync = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: (fsync(descriptor), synced.append(os.fstat(descriptor).st_ino)))
    job = job_at(tmp_path, checkpoint_seconds=0)
    write(job, 1)
    job.resume.save_if_due(1, lambda: {"at": 1})
    saved = synced.index((tmp_path / "checkpoints/step-1/manifest.json").stat().st_ino)
    for name in ("metrics", "events", "samples"):
        assert synced.index((tmp_path / f"out/{name}.jsonl").stat().st_ino) < saved


def test_a_step_that_was_begun_on_a_cpu_goes_on_on_a_gpu(folder, capsys):
    """The device is no part of a step's key: the same command on another machine finds the same work."""
    job = job_at(folder)
    job.group.device = torch.device("cuda")
    assert job.resume.last() == (3, {"at": 3})
    assert "started on another kind of device" in capsys.readouterr().err


def test_a_step_that_was_begun_on_a_gpu_goes_on_on_a_cpu(folder, capsys):
    saved = folder / "checkpoints/step-3"
    step, whole = load_checkpoint(folder / "checkpoints")
    whole["random"][0]["cuda"] = torch.zeros(16, dtype=torch.uint8)
    save_checkpoint(folder / "checkpoints", step, whole, json.loads((saved / "manifest.json").read_text())["logs"])
    assert job_at(folder).resume.last() == (3, {"at": 3})
    assert "started on another kind of device" in capsys.readouterr().err


class Counting(NoTracker):
    """Keep the number of rows of each table that it was sent."""

    def __init__(self):
        self.sent = []

    def table(self, name, columns, rows):
        self.sent.append(len(rows))


def test_a_table_that_grows_is_sent_whole_at_the_last_step_and_takes_no_square_of_the_steps(tmp_path):
    tracker = Counting()
    (tmp_path / "out").mkdir()
    job = Job("test", tmp_path, RunConfig(hardware=HardwareConfig(device="cpu")), tracker)
    for step in job.steps(500):
        job.log.append("samples", step + 1, [{"response": "the same length"}])
    assert tracker.sent[:4] == [1, 2, 3, 4]
    assert tracker.sent[-1] == 500
    assert sum(tracker.sent) < 6 * 500  # sent each time: 125,250
    assert len((tmp_path / "out/samples.jsonl").read_text().splitlines()) == 500
