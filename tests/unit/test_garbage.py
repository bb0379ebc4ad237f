"""What is removed from a store is what nobody needs, however old or busy the rest is."""

import json
import multiprocessing
import os
import shutil
import time
from pathlib import Path

import pytest

from align.cli.main import main
from align.store.artifacts import NOTE, ArtifactStore, held_if_free
from align.store.garbage import find_garbage, remove_garbage

DAY = 24 * 3600


def key_of(number):
    return f"{number:064x}"


def make(store, number, inputs=(), stage="data"):
    with store.claim(stage, key_of(number)) as work:
        (work / "out").mkdir(parents=True)
        (work / "out/rows.txt").write_text(str(number))
        entries = [{"ref": a.ref, "stage": a.stage, "key": a.key, "digest": a.digest} for a in inputs]
        return store.commit(stage, key_of(number), work / "out", {"kind": "model", "inputs": {"data": entries}})


def grow_old(*paths, days=1.1):
    for path in paths:
        for each in (path, *path.rglob("*")):
            os.utime(each, (time.time() - days * DAY,) * 2)


@pytest.fixture
def store(tmp_path):
    return ArtifactStore(tmp_path / "store")


def test_it_is_what_no_name_leads_to_and_nobody_wrote_to_for_a_day(store):
    data = make(store, 1)
    model = make(store, 2, [data], "pretrain")
    policy = make(store, 3, [model, data], "ppo")
    loose = make(store, 4)
    abandoned = store.root / "work/ppo" / key_of(5)
    abandoned.mkdir(parents=True)
    store.publish("mine/ppo", policy)
    assert find_garbage(store).paths == []
    grow_old(data.path, model.path, policy.path, loose.path, abandoned)
    assert find_garbage(store).paths == [loose.path, abandoned]
    grow_old(abandoned, days=0.9)
    assert find_garbage(store).paths == [loose.path]


def test_work_with_a_young_checkpoint_stays_however_long_ago_it_began(store):
    """A folder's own date is that of the first thing written to it, not of the last."""
    with store.claim("ppo", key_of(1)) as work:
        checkpoint = work / "checkpoints/step-7/tensors.safetensors"
        checkpoint.parent.mkdir(parents=True)
        checkpoint.write_bytes(b"saved a moment ago")
    for path in (work, work / "lock", work / "checkpoints", checkpoint.parent):
        os.utime(path, (time.time() - 9 * DAY,) * 2)
    assert list(remove_garbage(store)) == []
    assert checkpoint.is_file()
    grow_old(work)
    assert list(remove_garbage(store)) == [work]
    assert not work.exists()


def test_work_that_is_going_on_stays(store):
    with store.claim("ppo", key_of(1)) as work:
        (work / "half").touch()
        grow_old(work)
        assert list(remove_garbage(store)) == []
    assert list(remove_garbage(store)) == [work]


def test_what_a_step_in_progress_reads_stays_though_no_name_leads_to_it(store):
    data = make(store, 1)
    model = make(store, 2, [data], "pretrain")
    with store.claim("ppo", key_of(3)) as work:
        (work / NOTE).write_text(json.dumps({"name": "mine/ppo", "begun": 0, "inputs": [["pretrain", model.key]]}))
        grow_old(data.path, model.path)
        assert list(remove_garbage(store)) == []
    (work / NOTE).unlink()
    assert set(remove_garbage(store)) >= {data.path, model.path}


@pytest.mark.parametrize("file", ["names/mine/data/v0.json", "objects/data/{key}/manifest.json"])
def test_one_damaged_file_costs_no_artifact_and_work_goes_all_the_same(store, file, capsys):
    data, loose = make(store, 1), make(store, 2)
    store.publish("mine/data", data)
    abandoned = store.root / "work/ppo" / key_of(5)
    abandoned.mkdir(parents=True)
    (store.root / file.format(key=data.key)).write_text("{")
    grow_old(data.path, loose.path, abandoned)
    assert main(["artifacts", "gc", "--yes", "--store", str(store.root)]) == 0
    assert data.path.is_dir()
    assert loose.path.is_dir()
    assert not abandoned.exists()
    assert Path(file.format(key=data.key)).name in capsys.readouterr().err


def test_temporary_files_that_a_killed_process_left_under_names_go(store):
    store.publish("mine/data", make(store, 1))
    folder = store.root / "names/mine/data"
    (folder / ".v1.json.0123").write_text("{")
    (folder / "aliases/.latest.0123").write_text("{")
    assert store.names() == ["mine/data"]
    assert store.aliases("mine/data") == {"latest": 0}
    grow_old(folder)
    assert sorted(path.name for path in remove_garbage(store)) == [".latest.0123", ".v1.json.0123"]
    assert store.find("mine/data").key == key_of(1)


def test_a_removal_that_was_cut_off_leaves_no_half_of_an_artifact(store, monkeypatch):
    loose = make(store, 1)
    grow_old(loose.path)
    removing = remove_garbage(store)

    def killed(path, **kwargs):
        if kwargs:
            return
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            next(removing)
    assert store.get("data", key_of(1)) is None
    assert list(remove_garbage(store)) == []
    assert sorted(path.name for path in store.root.iterdir()) == ["lock", "objects"]


def test_nobody_waits_while_the_files_of_what_is_removed_go(store):
    """A model has gigabytes, and a run that begins meanwhile must not stand still without a word."""
    loose = [make(store, number).path for number in range(3)]
    grow_old(*loose)
    for path in remove_garbage(store):
        loose.remove(path)
        assert not any(each.exists() for each in loose)  # all have left their places
        with held_if_free(store.root) as is_free:
            assert is_free
    assert loose == []
    assert sorted(path.name for path in store.root.iterdir()) == ["lock", "objects"]


@pytest.mark.parametrize("note", ["{", "[]", '{"inputs": 1}', '{"inputs": [1]}', '{"inputs": [["sft"]]}'])
def test_a_note_of_a_step_that_cannot_be_read_keeps_all_artifacts(store, note):
    loose = make(store, 1)
    with store.claim("ppo", key_of(2)) as work:
        (work / NOTE).write_text(note)
        grow_old(loose.path)
        found = find_garbage(store)
    assert found.paths == []
    assert str(work / NOTE) in found.unreadable[0]


def test_a_note_with_a_number_for_a_key_is_no_defect(store):
    with store.claim("ppo", key_of(2)) as work:
        (work / NOTE).write_text('{"inputs": [[1, 2]]}')
        assert find_garbage(store).paths == []


def _use_again_and_again(root, barrier, rounds):
    """As a run that finds an old artifact without a name, and names it."""
    store = ArtifactStore(root)
    for number in range(rounds):
        barrier.wait()
        with store.claim("data", key_of(number)), store.in_use():
            artifact = store.get("data", key_of(number))
            if artifact is not None:
                store.publish("mine/data", artifact)
        barrier.wait()


def test_who_names_an_artifact_while_garbage_is_removed_keeps_it(store):
    """Either it was gone before, and the run makes it, or its name keeps it: a name never leads to nothing."""
    rounds = 30
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(2)
    user = context.Process(target=_use_again_and_again, args=(store.root, barrier, rounds))
    user.start()
    for number in range(rounds):
        artifact = make(store, number)
        grow_old(artifact.path)
        barrier.wait()
        list(remove_garbage(store))
        barrier.wait()
        for version in store.versions("mine/data") if store.names() else ():
            store.verify(store.find(f"mine/data:v{version}"))
    user.join()
    assert user.exitcode == 0
