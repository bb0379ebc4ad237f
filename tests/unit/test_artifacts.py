"""The store loses nothing, tears nothing, and notices what was changed behind its back."""

import json
import os
import shutil
import stat
import threading

import pytest
from watching import opened_files, watching

from align.cli.main import main
from align.errors import StoreError
from align.store.artifacts import ArtifactStore
from align.store.audit import audit
from align.store.seals import seal_of

FILES = {"a.txt": b"hello", "sub/b.bin": bytes(range(256))}


def key_of(number):
    return f"{number:064x}"


def make(store, number=1, files=None, inputs=(), stage="data"):
    """Claim, write and commit an artifact, as a step does."""
    with store.claim(stage, key_of(number)) as work:
        for name, content in (files or FILES).items():
            path = work / "out" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        entries = [{"ref": a.ref, "stage": a.stage, "key": a.key, "digest": a.digest} for a in inputs]
        manifest = {"kind": "documents", "inputs": {"data": entries}, "metrics": {"rows": 2.0}}
        return store.commit(stage, key_of(number), work / "out", manifest)


@pytest.fixture
def store(tmp_path):
    return ArtifactStore(tmp_path / "store")


# -- objects -----------------------------------------------------------------------------------------------------


def test_files_of_an_artifact_may_be_read_by_whom_the_umask_says(store):
    """Safetensors makes files that their owner alone can read, and a store may be that of several people."""
    with store.claim("data", key_of(1)) as work:
        (work / "out").mkdir()
        (work / "out/model.safetensors").touch(mode=0o600)
        (work / "out/readme.txt").touch()
        made = store.commit("data", key_of(1), work / "out", {"kind": "model", "inputs": {}, "metrics": {}})
    own, other = ((made.path / name).stat().st_mode for name in ("model.safetensors", "readme.txt"))
    assert own == other


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")
def test_what_another_user_left_in_a_step_keeps_its_rights(store):
    """Only a file's owner can change its rights, and another user may resume the step."""
    with store.claim("data", key_of(1)) as work:
        (work / "out").mkdir()
        (work / "out/metrics.jsonl").touch(mode=0o660)
        (work / "out/metrics.jsonl").chmod(0o660)
        os.chown(work / "out/metrics.jsonl", 1, 1)
        made = store.commit("data", key_of(1), work / "out", {"kind": "model", "inputs": {}, "metrics": {}})
    assert stat.S_IMODE((made.path / "metrics.jsonl").stat().st_mode) == 0o660


def test_a_committed_artifact_is_there_whole(store):
    assert store.get("data", key_of(1)) is None
    made = make(store)
    got = store.get("data", key_of(1))
    assert got == made
    assert (got.kind, got.ref, got.metrics) == ("documents", "data@000000000000", {"rows": 2.0})
    assert {name: (got.path / name).read_bytes() for name in FILES} == FILES
    assert got.manifest["files"]["a.txt"] == {
        "sha256": "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824",
        "size": 5,
    }
    store.verify(got)
    assert not (store.root / "work" / "data" / key_of(1)).exists()


def test_the_digest_is_of_names_and_contents(store):
    same, renamed, changed = make(store, 2), make(store, 3, {"b.txt": b"hello"}), make(store, 4, {"a.txt": b"hallo"})
    assert make(store, 1).digest == same.digest
    assert len({same.digest, renamed.digest, changed.digest, make(store, 5, {"a.txt": b"hello"}).digest}) == 4


def test_a_failed_step_leaves_its_work_and_no_object(store):
    def fail():
        with store.claim("data", key_of(1)) as work:
            (work / "checkpoint").write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert store.get("data", key_of(1)) is None
    with store.claim("data", key_of(1)) as work:
        assert (work / "checkpoint").read_text() == "half"


def _edit(artifact, change):
    """Change a manifest as somebody would who computes its seal anew."""
    path = artifact.path / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps({**manifest, "seal": seal_of(manifest)}))


def _unsafe(name):
    return lambda a: _edit(a, lambda m: m["files"].update({name: {"sha256": "0" * 64, "size": 1}}))


def _replace_by_link(path, kept):
    shutil.move(path, kept)
    path.symlink_to(kept)


DAMAGE = {
    "a byte flipped": (lambda a: (a.path / "a.txt").write_bytes(b"hellp"), "a.txt has sha256"),
    "a byte flipped below": (lambda a: (a.path / "sub/b.bin").write_bytes(bytes(256)), "sub/b.bin has sha256"),
    "cut": (lambda a: os.truncate(a.path / "a.txt", 4), "a.txt has 4 bytes"),
    "longer": (lambda a: (a.path / "a.txt").write_bytes(b"hello\n"), "a.txt has 6 bytes"),
    "emptied": (lambda a: os.truncate(a.path / "sub/b.bin", 0), "sub/b.bin has 0 bytes"),
    "deleted": (lambda a: (a.path / "a.txt").unlink(), "a.txt is missing"),
    "folder deleted": (lambda a: shutil.rmtree(a.path / "sub"), "sub/b.bin is missing"),
    "file for a folder": (lambda a: ((a.path / "a.txt").unlink(), (a.path / "a.txt").mkdir()), "a.txt is missing"),
    "a file added": (lambda a: (a.path / "sub/c.pkl").write_bytes(b"x"), "sub/c.pkl is not in the manifest"),
    "a file replaced by a link": (lambda a: _replace_by_link(a.path / "a.txt", a.path.parent / "kept"), "is a link"),
    "no manifest": (lambda a: (a.path / "manifest.json").unlink(), "manifest.json is missing or damaged"),
    "manifest cut": (lambda a: os.truncate(a.path / "manifest.json", 30), "manifest.json is missing or damaged"),
    "manifest of bytes": (lambda a: (a.path / "manifest.json").write_bytes(b"\xff"), "is missing or damaged"),
    "manifest a list": (lambda a: (a.path / "manifest.json").write_text("[]"), "manifest.json is missing or damaged"),
    "manifest without files": (lambda a: _edit(a, lambda m: m.pop("files")), "manifest.json is missing or damaged"),
    "a file left out": (lambda a: _edit(a, lambda m: m["files"].pop("a.txt")), "a.txt is not in the manifest"),
    "another sha256": (lambda a: _edit(a, lambda m: m["files"]["a.txt"].update(sha256="0" * 64)), "a.txt has sha256"),
    "another size": (lambda a: _edit(a, lambda m: m["files"]["a.txt"].update(size=4)), "a.txt has 5 bytes"),
    "a name above": (_unsafe("../a.txt"), "'../a.txt' is not a safe file name"),
    "a name above, below": (_unsafe("sub/../../a.txt"), "is not a safe file name"),
    "an absolute name": (_unsafe("/etc/hostname"), "'/etc/hostname' is not a safe file name"),
    "a backslash": (_unsafe("..\\a.txt"), "is not a safe file name"),
    "a drive": (_unsafe("C:a.txt"), "is not a safe file name"),
    "an empty name": (_unsafe(""), "is not a safe file name"),
    "a zero byte": (_unsafe("a\0b"), "is not a safe file name"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_noticed(store, damage):
    make(store)
    harm, message = DAMAGE[damage]
    harm(store.get("data", key_of(1)))
    with pytest.raises(StoreError) as caught:
        store.verify(store.get("data", key_of(1)))
    assert message in str(caught.value)
    assert str(caught.value).startswith(str(store.object_path("data", key_of(1))))


KNOWN_GAPS = {
    "a link to a folder added": lambda a: (a.path / "more").symlink_to("/"),
    "a dangling link added": lambda a: (a.path / "more").symlink_to("nowhere"),
    "a folder replaced by a link": lambda a: _replace_by_link(a.path / "sub", a.path.parent / "kept"),
    "a pipe added": lambda a: os.mkfifo(a.path / "more"),
    "manifest without kind": lambda a: _edit(a, lambda m: m.pop("kind")),
    "manifest of another key": lambda a: _edit(a, lambda m: m.update(key="f" * 64)),
    "an entry without size": lambda a: _edit(a, lambda m: m["files"]["a.txt"].pop("size")),
    "an entry of nothing": lambda a: _edit(a, lambda m: m["files"].update({"a.txt": None})),
}


@pytest.mark.parametrize("damage", KNOWN_GAPS)
def test_rarer_damage_is_noticed(store, damage):
    make(store)
    KNOWN_GAPS[damage](store.get("data", key_of(1)))
    with pytest.raises(StoreError):
        store.verify(store.get("data", key_of(1)))


def test_a_file_changed_together_with_its_manifest_is_noticed_by_name(store):
    artifact = make(store)
    store.publish("mine/data", artifact)
    other = make(store, 2, {**FILES, "a.txt": b"hallo"})
    for name in ("a.txt", "manifest.json"):
        shutil.copy(other.path / name, artifact.path / name)
    with pytest.raises(StoreError):
        store.verify(store.find("mine/data"))


def test_a_commit_cut_off_before_its_rename_can_be_made_again(store):
    with store.claim("data", key_of(1)) as work:
        (work / "out").mkdir()
        (work / "out" / "manifest.json").write_text('{"kind": "documents", "files": {}}')
    artifact = make(store)
    store.verify(store.get("data", key_of(1)))
    assert set(artifact.manifest["files"]) == set(FILES)


def test_a_payload_with_a_link_to_a_file_is_refused(store, tmp_path):
    with store.claim("data", key_of(1)) as work:
        (work / "out").mkdir()
        (work / "out" / "a.txt").symlink_to(__file__)
        with pytest.raises(StoreError, match=r"a\.txt is a link"):
            store.commit("data", key_of(1), work / "out", {"kind": "documents"})
    assert store.get("data", key_of(1)) is None


# -- names -------------------------------------------------------------------------------------------------------


def test_versions_count_up_and_latest_follows(store):
    one, two = make(store, 1), make(store, 2)
    assert [store.publish("mine/data", a) for a in (one, two, one, two, one)] == [0, 1, 0, 1, 0]
    assert list(store.versions("mine/data")) == [0, 1]
    assert store.find("mine/data") == one  # the last success, not the highest number
    assert store.aliases("mine/data") == {"latest": 0}
    assert store.names() == ["mine/data"]
    record = store.versions("mine/data")[1]
    assert (record["stage"], record["key"], record["digest"]) == ("data", two.key, two.digest)
    assert store.publish("other/data", two) == 0
    assert store.names_of(two) == ["mine/data:v1", "other/data:v0"]


def test_versions_are_in_the_order_of_their_numbers(store):
    assert [store.publish("mine/data", make(store, number)) for number in range(11)] == list(range(11))


def test_every_way_to_name_an_artifact_finds_it(store):
    one, two = make(store, 1), make(store, 0xABCDEF << 232)
    store.publish("mine/data", one)
    store.publish("mine/data", two)
    store.tag("mine/data", 0, "best")
    assert store.find("mine/data") == store.find("mine/data:latest") == store.find("mine/data:v1") == two
    assert store.find("mine/data:v0") == store.find("mine/data:best") == one
    assert store.find(two.ref) == store.find(f"data@{two.key}") == two


@pytest.mark.parametrize(
    ("ref", "message"),
    [
        ("mine/dta", r"^mine/dta: no artifact of that name in .* \(did you mean mine/data\?\)$"),
        ("mine/zzzzzz", r"^mine/zzzzzz: no artifact of that name in .*; names: mine/data$"),
        ("mine/data:v7", r"^mine/data:v7: no such version; mine/data has v0, v1, best, latest$"),
        ("mine/data:beast", r"^mine/data:beast: no such version; mine/data has v0, v1, best, latest$"),
        ("mine/data:v0:v1", "no such version"),
        ("data@ffff", "0 artifacts of .* have that key, expected one"),
        ("data@0000", "2 artifacts of .* have that key, expected one"),
        ("data@", "expected one"),
        ("data@*", "expected one"),
        ("data@../data", "expected one"),
        ("mine", "expected PIPELINE/STEP"),
        ("mine/data/more", "expected PIPELINE/STEP"),
        ("../store/data", "expected PIPELINE/STEP"),
        ("Mine/Data", "expected PIPELINE/STEP"),
        ("", "expected PIPELINE/STEP"),
    ],
)
def test_what_is_not_there_is_an_error_that_says_what_is(store, ref, message):
    for number in (1, 2):
        store.publish("mine/data", make(store, number))
    store.tag("mine/data", 1, "best")
    with pytest.raises(StoreError, match=message):
        store.find(ref)


def test_a_name_whose_object_is_gone_says_so(store):
    artifact = make(store)
    store.publish("mine/data", artifact)
    shutil.rmtree(artifact.path)
    with pytest.raises(StoreError, match=r"^mine/data: its files are gone"):
        store.find("mine/data")


@pytest.mark.parametrize("alias", ["v1", "v01", "Best", "../best", "a/b", "", ".best", "a" * 64, "a b"])
def test_a_bad_alias_is_refused(store, alias):
    store.publish("mine/data", make(store))
    with pytest.raises(StoreError, match=r"^alias "):
        store.tag("mine/data", 0, alias)


@pytest.mark.parametrize("file", ["v0.json", "aliases/latest"])
def test_a_torn_name_is_a_store_error(store, file):
    store.publish("mine/data", make(store))
    (store.root / "names/mine/data" / file).write_text('{"key')
    with pytest.raises(StoreError):
        store.find("mine/data")


# -- the whole store ---------------------------------------------------------------------------------------------


def chain(store):
    data = make(store, 1)
    model = make(store, 2, inputs=[data], stage="pretrain")
    return data, model, make(store, 3, inputs=[model, data], stage="ppo")


def test_lineage_goes_back_to_the_data_each_once(store):
    data, model, policy = chain(store)
    assert store.lineage(policy) == [policy, model, data]
    assert list(store.objects()) == [data, policy, model]
    shutil.rmtree(data.path)
    with pytest.raises(StoreError, match=r"its input data@000000000000 is gone"):
        store.lineage(policy)


def test_lineage_shows_a_step_that_reads_functions_and_no_source(store, capsys):
    """As PPO with `reward_functions` does."""
    data = make(store)
    entry = {"ref": data.ref, "stage": data.stage, "key": data.key, "digest": data.digest}
    said = {"kind": "model", "metrics": {}, "inputs": {"prompts": [entry]}, "code": {"commit": "c" * 40}}
    with store.claim("ppo", key_of(2)) as work:
        (work / "out").mkdir()
        store.commit("ppo", key_of(2), work / "out", {**said, "config": {}, "data": "d" * 64})
    manifest = data.path / "manifest.json"
    changed = {**data.manifest, "config": {"source": "path:x"}, "data": "e" * 64, "code": {}}
    manifest.write_text(json.dumps({**changed, "seal": seal_of(changed)}))
    assert main(["artifacts", "--store", str(store.root), "lineage", f"ppo@{key_of(2)}"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "files of functions data sha256 dddddddddddd" in told
    assert "path:x data sha256 eeeeeeeeeeee" in told


# -- what is no damage ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [".DS_Store", "._a.txt", ".nfs000000000001b03e00000001", "sub/.DS_Store"])
def test_what_the_system_puts_into_a_folder_is_no_damage_and_no_part_of_an_artifact(store, name):
    """Who looks into a folder with the Finder leaves a file there, in finished artifacts and in those in progress."""
    artifact = make(store, 1, {**FILES, name: b"the system's"})
    assert set(artifact.manifest["files"]) == set(FILES)
    (artifact.path / name).write_bytes(b"changed by the system")
    (artifact.path.parent / ".DS_Store").write_bytes(b"the system's")
    store.verify(artifact)
    assert audit(store).faults == []


def test_what_went_wrong_in_a_step_is_said_though_its_work_folder_was_removed_meanwhile(store):
    def fail():
        with store.claim("data", key_of(1)) as work:
            shutil.rmtree(work)
            raise RuntimeError("what went wrong")

    with pytest.raises(RuntimeError, match="what went wrong"):
        fail()


def test_who_finds_an_artifact_made_does_not_wait_until_its_maker_has_ended(store):
    """Which may send it to W&B for minutes. What a maker left that was killed goes all the same."""
    with store.claim("data", key_of(1)) as work:
        (work / "out").mkdir()
        store.commit("data", key_of(1), work / "out", {"kind": "documents"})
        finder = threading.Thread(target=store.clear_work, args=("data", key_of(1)), daemon=True)
        finder.start()
        finder.join(10)
        assert not finder.is_alive()
        assert work.is_dir()
    work.mkdir(parents=True)
    (work / "lock").touch()
    store.clear_work("data", key_of(1))
    assert not (store.root / "work").exists()


@pytest.mark.parametrize("place", ["", "work", "work/data", "names"])
def test_a_link_to_a_disk_that_is_not_there_is_an_error_and_no_endless_loop(store, tmp_path, place):
    """As of a store on a disk that is not mounted."""
    link = store.root / place
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(tmp_path / "not mounted")
    with pytest.raises(FileExistsError, match=str(link)), store.claim("data", key_of(1)):
        store.publish("mine/data", make(store, 2))


def test_a_damaged_alias_hides_no_other(store):
    artifact = make(store)
    store.publish("mine/data", artifact)
    store.tag("mine/data", 0, "best")
    (store.root / "names/mine/data/aliases/best").write_text("{")
    assert store.find("mine/data:latest") == store.find("mine/data") == artifact
    assert store.publish("mine/data", artifact) == 0
    with pytest.raises(StoreError, match="aliases/best"):
        store.find("mine/data:best")
    with pytest.raises(StoreError, match="mine/data has v0, best, latest"):
        store.find("mine/data:worst")


def test_each_file_is_read_once_though_several_adapters_have_one_base(store):
    base = make(store, 1, stage="sft")
    adapter = {"adapter_config.json": json.dumps({"base_model_name_or_path": f"sft/{key_of(1)}"}).encode()}
    adapters = [make(store, number, adapter) for number in (2, 3)]
    for use in (lambda: store.verify(*adapters, base), lambda: audit(store)):
        with opened_files() as opened:
            use()
        assert opened.count(str(base.path / "a.txt")) == 1
        assert str(adapters[1].path / "adapter_config.json") in opened


# -- after a power cut ---------------------------------------------------------------------------------------------


@pytest.fixture
def on_disk(monkeypatch):
    """What was fsynced, by its inode, and what was renamed, by its new name, in their order."""
    happened, fsync = [], os.fsync

    def note(event, arguments):
        if event == "os.rename":
            happened.append(str(arguments[1]))

    def noted(descriptor):
        fsync(descriptor)
        happened.append(os.fstat(descriptor).st_ino)

    monkeypatch.setattr(os, "fsync", noted)
    with watching(note):
        yield happened


def test_a_name_leads_to_nothing_that_a_power_cut_could_take(store, on_disk):
    """Each file and folder is on disk before what leads to it: the payload, its manifest, its place, its name."""
    artifact = make(store)
    store.publish("mine/data", artifact)
    place, name = artifact.path, store.root / "names/mine/data/v0.json"
    manifest = next(number for number, new in enumerate(on_disk) if str(new).endswith("out/manifest.json"))
    in_place, named = on_disk.index(str(place)), on_disk.index(str(name))

    def first(path):
        return on_disk.index(path.stat().st_ino)

    for path in (*(place / file for file in FILES), place / "sub", place / "manifest.json"):
        assert first(path) < manifest
    assert manifest < first(place) < in_place
    assert in_place < on_disk.index(place.parent.stat().st_ino, in_place) < named
    assert on_disk.index(name.parent.stat().st_ino, named) > named
    for folder in (store.root.parent, store.root, *place.parents[1:2]):  # of each, that it holds the next
        assert first(folder) < in_place
    for folder in name.parents[1:3]:
        assert first(folder) < named
