"""What was changed behind the store's back is noticed before it is used, and hides nothing else."""

import copy
import json
import os
import subprocess
import sys

import pytest
from conftest import mostly_slow
from small_store import add

from align.cli.main import main
from align.errors import StoreError
from align.report.page import write_report
from align.store.artifacts import ArtifactStore
from align.store.seals import seal_of

ADVICE = "remove that folder"


def key_of(number):
    return f"{number:064x}"


def make(store, number, inputs=(), stage="data", text="rows", metrics=None, created=0.0):
    with store.claim(stage, key_of(number)) as work:
        (work / "out").mkdir(parents=True)
        (work / "out/rows.txt").write_text(text)
        entries = [{"ref": a.ref, "stage": a.stage, "key": a.key, "digest": a.digest, "seal": a.seal} for a in inputs]
        manifest = {
            **{"kind": "model", "inputs": {"data": entries}, "data": "d" * 64, "seconds": 1.5, "created": created},
            **{"metrics": metrics or {"win_rate": 0.5}, "config": {"seed": 3, "lora": {"rank": 8}, "tasks": ["a"]}},
        }
        return store.commit(stage, key_of(number), work / "out", manifest)


@pytest.fixture
def store(tmp_path):
    """`mine/ppo`, made from `mine/data`, which has two versions and an alias."""
    store = ArtifactStore(tmp_path / "store")
    store.publish("mine/data", make(store, 1))
    data = make(store, 2, text="other")
    store.publish("mine/data", data)
    store.tag("mine/data", 0, "best")
    store.publish("mine/ppo", make(store, 3, [data], "ppo"))
    return store


def leaves(value, path=()):
    if isinstance(value, dict):
        for key in value:
            yield (*path, key)
            yield from leaves(value[key], (*path, key))
    elif isinstance(value, list):
        for place, item in enumerate(value):
            yield from leaves(item, (*path, place))
    else:
        yield path


def changed(value):
    if isinstance(value, bool | int | float):
        return value + 1
    if isinstance(value, str):
        return value[:-1] + ("0" if value[-1:] != "0" else "1")
    return "changed"


def put(document, path, value):
    copied = copy.deepcopy(document)
    *above, last = path
    place = copied
    for step in above:
        place = place[step]
    place[last] = value(place[last])
    return copied


def drop(document, path):
    copied = copy.deepcopy(document)
    place = copied
    for step in path[:-1]:
        place = place[step]
    del place[path[-1]]
    return copied


RESULT = ("kind", "stage", "key", "inputs", "config", "data", "files", "metrics", "seal")


def test_every_change_of_a_result_in_a_manifest_is_noticed_whenever_it_is_read(store):
    file = store.find("mine/ppo").path / "manifest.json"
    manifest = json.loads(file.read_text())
    paths = sorted({path for path in leaves(manifest) if path[0] in RESULT}, key=str)
    assert len(paths) > 20
    for path in paths:
        for mutant in (put(manifest, path, changed), drop(manifest, path)):
            file.write_text(json.dumps(mutant))
            for ref in ("mine/ppo", "mine/ppo:v0"):
                with pytest.raises(StoreError, match=r"manifest\.json"):
                    store.find(ref)
    file.write_text(json.dumps(manifest))
    assert store.find("mine/ppo").metrics == {"win_rate": 0.5}


def test_dates_seconds_and_versions_are_outside_the_seal(store):
    file = store.find("mine/ppo").path / "manifest.json"
    file.write_text(
        json.dumps({**json.loads(file.read_text()), "created": 9.0, "seconds": 7.0, "packages": {"x": "1"}})
    )
    store.verify(store.find("mine/ppo"))


def test_a_manifest_sealed_anew_fits_no_name_and_no_run_takes_it(store):
    artifact = store.find("mine/ppo")
    file = artifact.path / "manifest.json"
    forged = {**artifact.manifest, "metrics": {"win_rate": 0.95}}
    file.write_text(json.dumps({**forged, "seal": seal_of(forged)}))
    forged = store.get("ppo", artifact.key)
    for use in (lambda: store.find("mine/ppo"), lambda: store.publish("mine/ppo", forged)):
        with pytest.raises(StoreError, match="changed after it was written"):
            use()


@pytest.mark.parametrize("name", ["names/mine/data/v0.json", "names/mine/data/aliases/best"])
def test_every_change_of_a_version_or_an_alias_is_noticed(store, name):
    file = store.root / name
    record = json.loads(file.read_text())
    for path in sorted(set(leaves(record)), key=str):
        for mutant in (put(record, path, changed), drop(record, path)):
            file.write_text(json.dumps(mutant))
            with pytest.raises(StoreError):
                store.find("mine/data:best")
    for text in ("", "{", "[]", "1", "null", '"v0"', "\udcff"):
        file.write_bytes(text.encode("utf-8", "surrogateescape"))
        with pytest.raises(StoreError):
            store.find("mine/data:best")


def test_versions_and_aliases_that_change_places_are_noticed(store):
    folder = store.root / "names/mine/data"
    one, two = (folder / "v0.json").read_text(), (folder / "v1.json").read_text()
    (folder / "v0.json").write_text(two)
    with pytest.raises(StoreError):
        store.find("mine/data:v0")
    (folder / "v0.json").write_text(one)
    (folder / "aliases/best").write_text((folder / "aliases/latest").read_text())
    with pytest.raises(StoreError):
        store.find("mine/data:best")


def test_an_artifact_made_again_after_it_was_gone_fits_its_names_and_what_was_made_from_it(store, capsys):
    """Its log holds seconds, so its files differ: that is no damage."""
    data = store.find("mine/data")
    store.publish("other/data", data)
    for path in sorted(data.path.rglob("*"), reverse=True):
        path.unlink()
    data.path.rmdir()
    again = make(store, 2, text="other, later", created=1.0)
    assert again.seal != data.seal
    assert store.publish("mine/data", again) == 1
    assert store.find("mine/data:v1") == store.find("other/data") == again
    assert main(["artifacts", "verify", "--store", str(store.root)]) == 0


@pytest.mark.parametrize("field", ["seal", "digest"])
def test_verify_notices_an_input_that_was_replaced_together_with_its_names(store, capsys, field):
    artifact = store.find("mine/data")
    forged = {**artifact.manifest, "metrics": {"win_rate": 0.95}}
    (artifact.path / "manifest.json").write_text(json.dumps({**forged, "seal": seal_of(forged)}))
    for file in (store.root / "names/mine/data").glob("v1.json"):
        file.unlink()
    store.publish("mine/data", store.get("data", artifact.key))
    assert main(["artifacts", "verify", "--store", str(store.root)]) == 3
    assert f"its input data, {artifact.ref}, was changed after it was read" in capsys.readouterr().err


def unsealed(store):
    """Make the store as earlier code left it."""
    for file in store.root.glob("objects/*/*/manifest.json"):
        manifest = json.loads(file.read_text())
        del manifest["seal"]
        for entries in manifest["inputs"].values():
            for entry in entries:
                del entry["seal"]
        file.write_text(json.dumps(manifest))
    for file in store.root.glob("names/*/*/v*.json"):
        record = json.loads(file.read_text())
        file.write_text(json.dumps({field: record[field] for field in ("stage", "key", "digest", "created")}))
    for file in store.root.glob("names/*/*/aliases/*"):
        file.write_text(str(json.loads(file.read_text())["version"]))


def test_a_store_of_earlier_code_is_read_and_verify_says_what_it_cannot_check(store, capsys):
    unsealed(store)
    assert store.find("mine/data:best").key == key_of(1)
    assert store.publish("mine/data", store.find("mine/data:best")) == 0
    assert main(["artifacts", "verify", "--store", str(store.root)]) == 0
    assert "3 of earlier code without a seal" in capsys.readouterr().out


OF_OTHER_TYPES = [
    *(("created", value) for value in ("x", 1e300, True)),
    *((field, value) for field in ("code", "packages", "hardware", "config") for value in (None, [])),
    *(("inputs", value) for value in (None, {"data": None}, {"data": ["x"]}, {"data": [{"stage": "..", "key": "x"}]})),
    *[
        ("seconds", None),
        ("data", 5),
        ("metrics", {"win_rate": "x"}),
        ("files", {"rows.txt": {"sha256": 1, "size": 5}}),
    ],
]


@pytest.mark.parametrize(("field", "value"), OF_OTHER_TYPES, ids=str)
def test_a_manifest_of_other_types_is_refused_in_a_line_by_every_verb(store, capsys, field, value):
    """Not all is under the seal, and a store of earlier code has none: such a manifest is read as it is."""
    unsealed(store)
    (file,) = store.root.glob("objects/ppo/*/manifest.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | {field: value}))
    for verb in (["verify"], ["show", "mine/ppo"], ["lineage", "mine/ppo"], ["diff", "mine/ppo", "mine/data"]):
        assert main(["artifacts", *verb, "--store", str(store.root)]) == 3
        assert f"manifest.json: {field} is not what align writes; remove that folder" in capsys.readouterr().err
    for verb in ("ls", "gc"):
        assert main(["artifacts", verb, "--store", str(store.root)]) == 0
        assert f"manifest.json: {field} is not what align writes" in capsys.readouterr().err


NOT_READ = [("a file", "ls"), ("a file", "gc"), ("an alias", "gc")]
HARM = {
    "a manifest": "objects/data/{data}/manifest.json",
    "a file": "objects/data/{data}/rows.txt",
    "a version": "names/mine/data/v1.json",
    "an alias": "names/mine/data/aliases/best",
}


@pytest.mark.parametrize(
    ("what", "verb"),
    mostly_slow(
        [(what, verb) for what in HARM for verb in ("ls", "verify", "gc")],
        [("a manifest", "ls"), ("a file", "verify"), ("an alias", "gc")],
    ),
)
def test_a_pipe_in_the_place_of_a_file_is_damage_and_not_waited_for(store, what, verb):
    file = store.root / HARM[what].format(data=store.find("mine/data").key)
    file.unlink()
    os.mkfifo(file)
    command = [sys.executable, "-m", "align", "artifacts", verb, "--store", str(store.root)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode in (0, 3)
    assert str(file) in done.stderr or file.name in done.stderr or (what, verb) in NOT_READ


@pytest.mark.parametrize("what", HARM)
def test_one_bad_file_hides_nothing_else(store, capsys, what):
    file = store.root / HARM[what].format(data=store.find("mine/data").key)
    file.write_text("{")
    assert main(["artifacts", "ls", "--json", "--store", str(store.root)]) == 0
    shown = capsys.readouterr()
    assert {"mine/data v0", "mine/ppo v0"} <= {f"{row['name']} {row['version']}" for row in json.loads(shown.out)}
    assert str(file.parent) in shown.err
    other = store.get("data", key_of(1)).path / "rows.txt"
    other.write_text("rowz")
    assert main(["artifacts", "verify", "--store", str(store.root)]) == 3
    told = capsys.readouterr().err
    assert str(file.parent) in told
    assert str(other.parent) in told


@pytest.mark.parametrize("what", ["objects/data/{data}/manifest.json", "names/mine/data/v1.json"])
def test_a_report_on_a_pipeline_leaves_out_what_is_damaged_and_says_so(tmp_path, what):
    store = ArtifactStore(tmp_path)
    data = add(store, "mine/data", "documents", {})
    add(store, "mine/data", "documents", {}, log=[{"step": 1}])
    add(store, "mine/sft", "model", {"data": data}, {"eval/loss": 1.5})
    (tmp_path / what.format(data=store.find("mine/data").key)).write_text("{")
    write_report(store, ["mine"], tmp_path / "page.html", "mine")
    page = (tmp_path / "page.md").read_text()
    assert "Left out: mine/data: " in page
    assert "| sft | sft | v0 |" in page
    with pytest.raises(StoreError):
        write_report(store, ["mine/data"], tmp_path / "page.html", "mine")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
@pytest.mark.parametrize("name", ["objects/data/{data}/manifest.json", "names/mine/data/v1.json"])
def test_what_may_not_be_read_is_not_said_to_be_damaged(store, name):
    file = store.root / name.format(data=store.find("mine/data").key)
    file.chmod(0)
    with pytest.raises(StoreError, match="Permission denied") as caught:
        store.find("mine/data")
    assert "remove" not in str(caught.value)


@pytest.mark.parametrize("name", ["objects/data/{data}/manifest.json", "names/mine/data/v1.json"])
def test_what_the_system_does_not_give_is_not_said_to_be_damaged(store, name):
    """A folder where a file was: like missing rights, and also for root."""
    file = store.root / name.format(data=store.find("mine/data").key)
    file.unlink()
    file.mkdir()
    with pytest.raises(StoreError, match="Is a directory") as caught:
        store.find("mine/data:v1")
    assert "remove" not in str(caught.value)


@pytest.mark.parametrize("ref", ["mine/data:v" + "9" * 5000, "mine/data:v" + "0" * 5000, "mine/data:v01"])
def test_a_version_of_many_digits_is_none(store, ref):
    with pytest.raises(StoreError, match="no such version"):
        store.find(ref)


def test_a_file_named_as_a_version_of_many_digits_is_none(store):
    (store.root / "names/mine/data" / ("v" + "9" * 200 + ".json")).write_text("{}")
    assert list(store.versions("mine/data")) == [0, 1]
