"""Data cards, and sources resolved down to the bytes they stand for."""

import os

import pytest
import torch
from safetensors.torch import save_file

from align.configs import Data, RunConfig
from align.data import smallworld
from align.data.cards import cards_folders, file_digests, load_card, resolve, resolve_model
from align.errors import ConfigError
from align.pipeline.plan import data_digest
from align.store.artifacts import ArtifactStore

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with data_cards of its own."""
    (tmp_path / "data_cards").mkdir()
    (tmp_path / "store").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_card(folder, front, name="mine"):
    (folder / "data_cards" / f"{name}.md").write_text(f"---\n{front}\n---\n# mine\n", encoding="utf-8")


def touch(path, ns):
    os.utime(path, ns=(ns, ns))


# -- cards -------------------------------------------------------------------------------------------------------


def test_every_shipped_card_is_read():
    names = sorted(path.stem for path in cards_folders()[-1].glob("*.md"))
    assert "smallworld" in names
    assert [load_card(name).name for name in names] == names


def test_a_card_of_ones_own_goes_before_a_shipped_one(folder):
    write_card(folder, "licence: mine\nformat: text\nlocal: [a.txt, b/*.txt]\nheld_out: 0.2", "smallworld")
    card = load_card("smallworld")
    assert (card.name, card.licence, card.format, card.local, card.held_out) == (
        "smallworld",
        "mine",
        "text",
        ("a.txt", "b/*.txt"),
        0.2,
    )
    assert card.generator is None


@pytest.mark.parametrize(
    ("front", "message"),
    [
        ("licences: mine", r"mine\.md: unknown field 'licences'; fields: .*licence"),
        ("format: jsonl", r"mine\.md: format: expected one of text, .*got 'jsonl'"),
        ("licence: [a", r"mine\.md: its front matter is not YAML"),
        ("- a\n- b", r"mine\.md: expected YAML front matter"),
        ("", r"mine\.md: expected YAML front matter"),
        ("!!python/object/apply:os.getcwd []", r"mine\.md: its front matter is not YAML"),
    ],
)
def test_a_card_with_a_bad_front_is_refused(folder, front, message):
    write_card(folder, front)
    with pytest.raises(ConfigError, match=message) as caught:
        load_card("mine")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["", "# mine\n", "---\nlicence: mine\n", "text\n---\nlicence: mine\n---\n"])
def test_a_card_without_front_is_refused(folder, content):
    (folder / "data_cards" / "mine.md").write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"mine\.md: expected YAML front matter between two lines of ---"):
        load_card("mine")


@pytest.mark.parametrize(
    "front", ["format: [text]", "local: data/*.json", "held_out: a lot", "held_out: 0.6", "hub_splits: train", "hub: 3"]
)
def test_a_card_with_a_value_of_the_wrong_kind_is_refused(folder, front):
    write_card(folder, front)
    with pytest.raises(ConfigError, match=front.partition(":")[0]):
        load_card("mine")


def test_an_unknown_card_is_refused_with_those_there_are(folder):
    write_card(folder, "licence: mine")
    with pytest.raises(
        ConfigError, match=r"^card:mien: no such data card \(did you mean mine\?\); cards: .*mine.*smallworld"
    ):
        resolve("card:mien", None, None)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("card:nosuch", r"^steps\.texts\.source: card:nosuch: no such data card"),
        ("card:instructions", r"^steps\.texts\.options\.x: card:instructions has seed"),
    ],
)
def test_a_plan_says_which_step_names_a_wrong_card_or_option(folder, source, said):
    with pytest.raises(ConfigError, match=said):
        data_digest(
            "texts", Data(source=source, record="prompts", options={"x": 1}), RunConfig(), ArtifactStore(folder)
        )


# -- sources -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "source", ["", "mine", "card:", "hf:", "path:", "s3:bucket/a", "CARD:smallworld", "/data/a.jsonl"]
)
def test_what_is_no_source_is_refused(folder, source):
    with pytest.raises(ConfigError, match="expected card:NAME, path:FILE_OR_FOLDER or hf:ORG/NAME@COMMIT"):
        resolve(source, None, None)


@pytest.mark.parametrize(
    "rest",
    [
        "org/name",
        "org/name@main",
        "org/name@" + COMMIT[:7],
        f"org/name@{COMMIT}0",
        f"org/name@{COMMIT.upper()}",
        f"@{COMMIT}x",
    ],
)
def test_the_hub_without_a_full_commit_is_refused(folder, rest):
    for ask in (lambda: resolve(f"hf:{rest}", None, None), lambda: resolve_model(f"hf:{rest}", None)):
        with pytest.raises(ConfigError, match="full commit hash only"):
            ask()
    write_card(folder, f"hub: {rest!r}")
    with pytest.raises(ConfigError, match="full commit hash only"):
        resolve("card:mine", None, None)


def test_a_pinned_repository_has_a_digest_of_its_own():
    digests = {
        resolve(f"hf:{name}@{commit}", None, None).digest
        for name in ("a/b", "a/c")
        for commit in (COMMIT, COMMIT[::-1])
    }
    assert len(digests) == 4


def test_local_patterns_pick_files_below_data_root(folder):
    write_card(folder, 'local: ["one/*.json", "two/*/*.json", "one/a.*"]')
    for name in ("one/a.json", "one/b.json", "one/c.txt", "two/x/d.json", "two/e.json"):
        (folder / "root" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "root" / name).write_text("[]")
    source = resolve("card:mine", str(folder / "root"), None)
    assert [path.relative_to(folder / "root").as_posix() for path in source.files] == [
        "one/a.json",
        "one/b.json",
        "two/x/d.json",
    ]
    assert not source.is_local_path


def test_a_data_root_without_the_files_is_refused_with_the_patterns(folder):
    write_card(folder, 'local: ["one/*.json", "two/*.json"]')
    with pytest.raises(
        ConfigError, match=r"^card:mine: nothing in data_root=nowhere matches one/\*\.json, two/\*\.json"
    ):
        resolve("card:mine", "nowhere", None)


@pytest.mark.parametrize("pattern", ["/data/*.json", ""])
def test_a_pattern_that_is_none_is_refused(folder, pattern):
    write_card(folder, f'local: ["{pattern}"]')
    with pytest.raises(ConfigError):
        resolve("card:mine", str(folder), None)


def test_what_a_card_says_of_reading_is_in_the_digest(folder):
    (folder / "a.txt").write_text("hello")
    digests = set()
    for front in ("", "format: text\n", "format: book\n", "held_out: 0.1\n"):
        write_card(folder, front + "local: [a.txt]")
        digests.add(resolve("card:mine", str(folder), folder / "store").digest)
    assert len(digests) == 4
    write_card(folder, "licence: other words\nlocal: [a.txt]")
    assert resolve("card:mine", str(folder), folder / "store").digest in digests


def test_a_folder_of_ones_own_gives_its_tables_or_else_its_texts(folder):
    for name in ("mine/b.jsonl", "mine/sub/a.CSV", "mine/c.txt.gz", "mine/picture.png", "mine/model.bin"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")
    source = resolve("path:mine", None, None)
    assert [path.as_posix() for path in source.files] == ["mine/b.jsonl", "mine/sub/a.CSV"]
    for path in source.files:
        path.unlink()
    assert [path.as_posix() for path in resolve("path:mine", None, None).files] == ["mine/c.txt.gz"]
    assert source.is_local_path


def test_what_a_folder_holds_besides_rows_is_left_out_and_known(folder):
    """Read-mes beside tables, what `datasets` saves beside its rows, and others; hidden files are none."""
    names = ("train/data-0.arrow", "train/state.json", "train/dataset_info.json", "dataset_dict.json", "README.md")
    for name in (*names, "model.bin", ".cache/a.jsonl", ".hidden.jsonl"):
        (folder / "mine" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "mine" / name).write_text("x")
    source = resolve("path:mine", None, None)
    assert [path.as_posix() for path in source.files] == ["mine/train/data-0.arrow"]
    left_out = {path.relative_to("mine").as_posix() for path in source.left_out}
    assert left_out == {"model.bin", *names[1:]}
    (folder / "mine/train/data-0.arrow").unlink()
    assert [path.name for path in resolve("path:mine", None, None).files] == [
        "dataset_dict.json",
        "dataset_info.json",
        "state.json",
    ]


@pytest.mark.parametrize(
    ("source", "split"),
    [
        ("mine/test", "test"),
        ("mine/Dev", "validation"),
        ("mine/my_test", "test"),
        ("mine/latest", None),
        ("mine", "test"),
    ],
)
def test_a_folder_that_is_called_after_a_split_is_that_split(folder, source, split):
    path = folder / source / ("test/a.jsonl" if source == "mine" else "a.jsonl")
    path.parent.mkdir(parents=True)
    path.write_text("{}")
    assert list(resolve(f"path:{source}", None, None).file_splits().values()) == [split]


def test_files_behind_links_are_read_once(folder):
    (folder / "elsewhere").mkdir()
    (folder / "elsewhere/a.jsonl").write_text("{}")
    (folder / "mine").mkdir()
    (folder / "mine/train").symlink_to(folder / "elsewhere")
    (folder / "mine/b.jsonl").symlink_to(folder / "elsewhere/a.jsonl")
    (folder / "mine/again").symlink_to(folder / "mine")
    files = resolve("path:mine", None, None).files
    assert [path.as_posix() for path in files] == ["mine/b.jsonl", "mine/train/a.jsonl"]


@pytest.mark.parametrize("name", ["test.jsonl", "test", "sub/test.parquet"])
def test_a_broken_link_in_a_folder_is_refused_with_its_name(folder, name):
    (folder / "mine/sub").mkdir(parents=True)
    (folder / "mine/train.jsonl").write_text("{}")
    (folder / "mine" / name).symlink_to("/gone/there")
    with pytest.raises(ConfigError, match=rf"^path:mine: mine/{name} is a broken symbolic link, to /gone/there; "):
        resolve("path:mine", None, None)


def test_a_broken_link_that_is_the_source_or_a_card_s_file_is_refused(folder):
    (folder / "a.jsonl").symlink_to("/gone")
    write_card(folder, 'local: ["*.jsonl"]')
    for source in ("path:a.jsonl", "card:mine"):
        with pytest.raises(ConfigError, match=rf"^{source}: .*a\.jsonl is a broken symbolic link, to /gone; "):
            resolve(source, str(folder), None)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("path:nothing.jsonl", "^path:nothing.jsonl: no such file or folder$"),
        ("path:store", "^path:store: holds no .jsonl, .*file$"),
        ("path:a.png", r"^path:a\.png: expected a file ending in \.jsonl"),
    ],
)
def test_a_path_without_rows_is_refused(folder, source, message):
    (folder / "a.png").write_text("x")
    with pytest.raises(ConfigError, match=message):
        resolve(source, None, None)


# -- digests, and the memory of them -----------------------------------------------------------------------------


def test_the_digest_is_of_names_and_contents_alone(folder):
    def digest():
        return resolve("path:mine", None, folder / "store").digest

    (folder / "mine").mkdir()
    (folder / "mine/a.txt").write_text("one")
    first = digest()
    touch(folder / "mine/a.txt", 10**18)
    assert digest() == first
    (folder / "mine/a.txt").write_text("two")
    second = digest()
    (folder / "mine/a.txt").rename(folder / "mine/b.txt")
    third = digest()
    (folder / "mine/c.txt").write_text("")
    assert len({first, second, third, digest()}) == 4
    (folder / "mine").rename(folder / "elsewhere")
    assert resolve("path:elsewhere", None, None).is_local_path


def test_digests_are_sha256(folder):
    (folder / "a.txt").write_bytes(b"abc")
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, appendix B.1
    assert file_digests([folder / "a.txt"], folder / "store") == [known]
    assert file_digests([folder / "a.txt"], None) == [""]


def test_a_file_unchanged_by_size_time_and_inode_is_not_read_again(folder):
    path = folder / "a.txt"
    path.write_text("one")
    touch(path, 10**18)
    before = file_digests([path], folder / "store")
    with path.open("r+") as file:
        file.write("two")  # in place: the same inode and size
    touch(path, 10**18)
    assert file_digests([path], folder / "store") == before
    touch(path, 10**18 + 1)
    after = file_digests([path], folder / "store")
    assert after == file_digests([path], folder / "another store that is not there")
    assert after != before


@pytest.mark.parametrize("change", ["size", "inode"])
def test_a_change_of_size_or_inode_reads_the_file_again(folder, change):
    path, new = folder / "a.txt", folder / "new.txt"
    path.write_text("one")
    touch(path, 10**18)
    before = file_digests([path], folder / "store")
    if change == "size":
        path.write_text("longer")
    else:
        new.write_text("two")
        new.replace(path)
    touch(path, 10**18)
    assert file_digests([path], folder / "store") != before


def test_the_memory_makes_no_store_and_may_be_torn(folder):
    (folder / "a.txt").write_text("one")
    fresh = file_digests([folder / "a.txt"], folder / "none")
    assert not (folder / "none").exists()
    file_digests([folder / "a.txt"], folder / "store")
    (folder / "store/cache/digests.json").write_text('{"a": [1, ')
    assert file_digests([folder / "a.txt"], folder / "store") == fresh


# -- models ------------------------------------------------------------------------------------------------------


def test_a_model_is_a_folder_with_a_config(folder):
    (folder / "model/sub").mkdir(parents=True)
    for source in ("path:model", "path:nothing", "path:a.txt", "card:smallworld", "model", ""):
        with pytest.raises(
            ConfigError, match=r"expected hf:ORG/NAME@COMMIT or path:FOLDER with a model's config\.json"
        ):
            resolve_model(source, None)
    (folder / "model/config.json").write_text("{}")
    save_file({"weights": torch.zeros(2)}, folder / "model/model.safetensors")
    (folder / "model/sub/other.bin").write_text("not a part")
    source = resolve_model("path:model", folder / "store")
    assert [path.name for path in source.files] == ["config.json", "model.safetensors"]
    assert source.root.samefile(folder / "model")
    save_file({"weights": torch.ones(2)}, folder / "model/model.safetensors")
    assert resolve_model("path:model", folder / "store").digest != source.digest


def test_a_generators_version_is_in_its_digest(folder, monkeypatch):
    write_card(folder, "generator: smallworld")
    first = resolve("card:mine", None, None).digest
    assert resolve("card:mine", None, None).digest == first
    monkeypatch.setattr(smallworld, "VERSION", smallworld.VERSION + 1)
    assert resolve("card:mine", None, None).digest != first
    write_card(folder, "generator: nowhere")
    with pytest.raises(ConfigError, match="generator 'nowhere': no such generator"):
        resolve("card:mine", None, None)


@pytest.mark.parametrize("cache", ["cache-1f2e3d.arrow", "cache-1f2e3d_00001_of_00004.arrow"])
def test_what_datasets_computes_beside_its_rows_is_no_row_and_a_file_of_ones_own_is(folder, cache):
    for name in ("saved/data-0.arrow", "saved/state.json", f"saved/{cache}", f"own/{cache}"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("x")
    source = resolve("path:saved", None, None)
    assert [path.name for path in source.files] == ["data-0.arrow"]
    assert cache in [path.name for path in source.left_out]
    assert [path.name for path in resolve("path:own", None, None).files] == [cache]
