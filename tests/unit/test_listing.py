"""`align artifacts ls` remembers what it read, and never shows what is no longer so."""

import hashlib
import json
import os
import time
from pathlib import Path

import pytest
from conftest import run_toy
from watching import opened_files

import align
from align.cli.main import main
from align.configs import STAGES
from align.report.listing import remember
from align.store.artifacts import ArtifactStore
from align.store.seals import seal_of


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """Stores of three artifacts, two of one name. Their files are old: one that is new is read again each time."""
    made = []
    for _ in range(28):
        store = ArtifactStore(tmp_path_factory.mktemp("listing") / "store")
        for number, name in enumerate(["mine/data", "mine/data", "mine/more"]):
            key = f"{number:064x}"
            with store.claim("data", key) as work:
                (work / "out").mkdir(parents=True)
                (work / "out/rows.txt").write_text("rows " * (number + 1))
                manifest = {"kind": "documents", "inputs": {}, "metrics": {"rows/train": float(number)}}
                store.publish(name, store.commit("data", key, work / "out", manifest))
        made.append(store)
    time.sleep(2.1)
    return made


@pytest.fixture
def store(stores):
    return stores.pop()


def shown(store, capsys):
    assert main(["artifacts", "ls", "--json", "--store", str(store.root)]) == 0
    printed = capsys.readouterr()
    return json.loads(printed.out), printed.err


def seal_anew(path, **changes):
    manifest = json.loads(path.read_text()) | changes
    path.write_text(json.dumps(manifest | {"seal": seal_of(manifest)}, indent=1, sort_keys=True))


def longer_rows(store, folder):
    (folder / "rows.txt").write_text("some more rows")


def other_figures(store, folder):
    seal_anew(folder / "manifest.json", metrics={"rows/train": 7.0})


def other_figures_at_the_old_time(store, folder):
    before = (folder / "manifest.json").stat()
    seal_anew(folder / "manifest.json", metrics={"rows/train": 7.0})
    os.utime(folder / "manifest.json", ns=(before.st_atime_ns, before.st_mtime_ns))


def broken_manifest(store, folder):
    (folder / "manifest.json").write_text("{")


def no_artifact(store, folder):
    folder.rename(folder.with_name("elsewhere"))


def other_alias(store, folder):
    store.tag("mine/data", 0, "best")


def broken_version(store, folder):
    (store.root / "names/mine/data/v1.json").write_text("{}")


def no_version(store, folder):
    (store.root / "names/mine/data/v1.json").unlink()


CHANGES = (
    *(longer_rows, other_figures, other_figures_at_the_old_time, broken_manifest, no_artifact),
    *(other_alias, broken_version, no_version),
)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_what_was_remembered_and_changed_is_read_again(store, capsys, change):
    before = shown(store, capsys)
    assert shown(store, capsys) == before
    change(store, store.root / "objects/data" / f"{1:064x}")
    remembered = shown(store, capsys)
    assert remembered != before
    # What is not remembered is read, and says the same.
    (store.root / "cache/listing.jsonl").unlink()
    assert shown(store, capsys) == remembered


@pytest.mark.parametrize("damage", [b"", b"{", b'{"mine/data:v0": 1}', b"check\n{}"])
def test_a_listing_that_is_damaged_is_made_again(store, capsys, damage):
    before = shown(store, capsys)
    file = store.root / "cache/listing.jsonl"
    whole = file.read_bytes()
    file.write_bytes(damage)
    assert shown(store, capsys) == before
    assert file.read_bytes() == whole


def test_a_figure_changed_in_the_listing_is_not_shown(store, capsys):
    before = shown(store, capsys)
    file = store.root / "cache/listing.jsonl"
    file.write_bytes(file.read_bytes().replace(b"2 train", b"9 train"))
    assert shown(store, capsys) == before


def read_by_a_look(store, capsys):
    with opened_files() as opened:
        rows, _ = shown(store, capsys)
    return rows, [path for path in opened if path.endswith(("manifest.json", "v0.json", "v1.json"))]


def test_unchanged_artifacts_are_not_read_again(store, capsys):
    (before, first), (after, second) = (read_by_a_look(store, capsys) for _ in range(2))
    assert before == after
    assert (len(first), second) == (6, [])


def test_what_a_step_has_just_published_is_not_read(store, capsys):
    seal_anew(store.root / "objects/data" / f"{1:064x}" / "manifest.json", metrics={"rows/train": 7.0})
    expected, _ = read_by_a_look(store, capsys)
    (store.root / "cache/listing.jsonl").unlink()
    for name, number in [("mine/data", 0), ("mine/more", 0), ("mine/data", 1), ("mine/data", 0)]:
        remember(store, name, number)
    assert read_by_a_look(store, capsys) == (expected, [])


def test_a_line_that_was_torn_costs_its_neighbours_nothing(store, capsys):
    expected, _ = shown(store, capsys)
    file = store.root / "cache/listing.jsonl"
    first, second, third = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(first + second[:40] + third + second)
    assert read_by_a_look(store, capsys)[0] == expected
    file.write_bytes(first + third[:40])
    remember(store, "mine/data", 1)
    assert read_by_a_look(store, capsys)[0] == expected


def test_what_is_no_file_of_the_store_is_not_written_to(store, tmp_path):
    (tmp_path / "precious.txt").write_text("mine")
    listing = store.root / "cache/listing.jsonl"
    listing.parent.mkdir(exist_ok=True)
    listing.symlink_to(tmp_path / "precious.txt")
    remember(store, "mine/data", 0)
    assert (tmp_path / "precious.txt").read_text() == "mine"
    listing.unlink()
    os.mkfifo(listing)
    remember(store, "mine/data", 0)  # does not wait for a reader


def test_a_version_that_is_not_there_gets_no_line(store):
    remember(store, "mine/data", 7)
    assert not (store.root / "cache/listing.jsonl").exists()


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_a_figure_that_is_not_finite_hides_no_artifact(store, capsys, value):
    seal_anew(store.root / "objects/data" / f"{1:064x}" / "manifest.json", metrics={"rows/train": float(value)})
    rows, _ = shown(store, capsys)
    assert [row["figures"] for row in rows] == ["0 train", f"{value} train", "2 train"]


@pytest.mark.parametrize(
    "odd", ["3", "[[", '["mine/data:v0", {}]', '["mine/data:v0", {"row": 3, "stage": 1, "key": 2}]']
)
def test_a_line_of_another_form_counts_for_nothing(store, capsys, odd):
    """Who may write to a store can also make the digest of a line."""
    before = shown(store, capsys)
    code = hashlib.sha256()
    for file in ("listing.py", "summary.py", "tables.py"):
        code.update((Path(align.__file__).parent / "report" / file).read_bytes())
    code.update(repr({stage: cls.HEADLINE for stage, cls in STAGES.items()}).encode())
    digest = hashlib.sha256(code.digest() + odd.encode()).hexdigest()
    with (store.root / "cache/listing.jsonl").open("a") as file:
        file.write(f"{digest} {odd}\n")
    assert shown(store, capsys) == before


def test_a_run_leaves_nothing_to_read(tmp_path, capsys):
    run_toy(tmp_path / "store", "step=text")
    rows, read = read_by_a_look(ArtifactStore(tmp_path / "store"), capsys)
    assert ([row["name"] for row in rows], read) == (["toy/text"], [])


def test_a_store_that_may_not_be_written_to_is_listed(store, capsys):
    (store.root / "cache").write_text("a file where the folder belongs")
    rows, told = shown(store, capsys)
    assert [f"{row['name']}:{row['version']}" for row in rows] == ["mine/data:v0", "mine/data:v1", "mine/more:v0"]
    assert told == ""
