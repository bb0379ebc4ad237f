"""The store loses nothing, tears nothing, and notices what was changed behind its back."""

import json
import os
import shutil

import pytest

from align.__main__ import main
from align.artifacts import ArtifactStore
from align.errors import StoreError
from align.seals import seal_of

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
        ("mine/dta", r"^mine/dta: no artifact of that name in .*; names: mine/data$"),
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
