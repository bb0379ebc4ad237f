"""References as users write them: what a bare one was meant to be, and the commit that a name of the Hub stands for."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from align.cli.main import main
from align.configs import RunConfig
from align.errors import ConfigError, StoreError
from align.pipeline.plan import plan
from align.store.artifacts import ArtifactStore
from align.store.file_kinds import PACKED, SUFFIXES
from align.store.references import expanded, hint, meant, pinned

NEWEST, OF_DEV = "a" * 40, "b" * 40


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "rows.csv").write_text("prompt\nhow?\n")
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Hub(BaseHTTPRequestHandler):
    """The two answers of the Hub's API that a commit is read from."""

    def do_GET(self) -> None:
        if "/here/" in self.path:  # the library asks for more than that
            self.server.asked.append(self.path)
        known = {
            "/api/models/here/model": NEWEST,
            "/api/models/here/model/revision/dev": OF_DEV,
            "/api/datasets/here/rows": NEWEST,
        }
        commit = known.get(self.path.partition("?")[0])
        body = json.dumps({"id": "here/x", "sha": commit}).encode() if commit else b"{}"
        self.send_response(200 if commit else 404)
        if not commit:
            error = "RevisionNotFound" if "/revision/" in self.path else "RepoNotFound"
            self.send_header("X-Error-Code", error)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The paths that a stand-in for the Hub was asked for."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.asked = []
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()  # it ends within that
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    yield server.asked
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("written", "in_full"),
    [
        ("/data/rows.bin", "path:/data/rows.bin"),
        ("./rows.csv", "path:./rows.csv"),
        ("~/x", "path:~/x"),
        ("none.jsonl.gz", "path:none.jsonl.gz"),
        ("folder", "path:folder"),
        ("file:///data/x", "path:/data/x"),
        ("Qwen/Qwen2-0.5B", "hf:Qwen/Qwen2-0.5B"),
        ("here/model@main", "hf:here/model@main"),
        ("https://huggingface.co/here/model/tree/main", "hf:here/model"),
        ("https://huggingface.co/datasets/here/rows", "hf:here/rows"),
        ("https://huggingface.co/gpt2", "hf:gpt2"),
        ("https://huggingface.co/gpt2/tree/main", "hf:gpt2"),
        ("huggingface.co/datasets/squad/viewer", "hf:squad"),
        ("https://huggingface.co/datasets", None),
        ("https://elsewhere.org/x.csv", None),
        ("quickstart/sft:v0", None),
        ("sft", None),
        ("path:x", None),
        ("", None),
    ],
)
def test_what_a_reference_was_meant_to_be(written: str, in_full: str | None, here: Path) -> None:
    assert meant(written) == in_full


@pytest.mark.parametrize("suffix", [*SUFFIXES, ".gguf", ".safetensors"])
def test_every_kind_of_file_that_is_read_is_told_by_its_name(suffix: str, here: Path) -> None:
    for name in (f"none{suffix}", f"none{suffix.upper()}", *(f"none{suffix}{packed}" for packed in PACKED)):
        if not name.startswith(("none.gguf.", "none.safetensors.")):
            assert meant(name) == f"path:{name}"


def test_a_hint_is_quoted_for_a_shell(here: Path) -> None:
    (here / "my rows.csv").write_text("prompt\nhow?\n")
    assert hint("./my rows.csv") == "; did you mean 'path:./my rows.csv'?"
    assert hint("./none.csv").endswith("there is none at that place")
    assert hint("https://elsewhere.org/x") == "; download it, then write path:FILE"


def test_a_tilde_is_the_home_folder_where_nothing_has_that_very_name(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    home = here / "home"
    monkeypatch.setenv("HOME", str(home))
    home.mkdir()
    (home / "mine.csv").write_text("prompt\nat home?\n")
    assert expanded("~/mine.csv") == home / "mine.csv"
    assert expanded("~no such user/mine.csv") == Path("~no such user/mine.csv")
    command = ["data", "source=path:~/mine.csv", "record=prompts", "--show"]
    assert main(command) == 0
    assert "user: at home?" in capsys.readouterr().out
    (here / "~").mkdir()
    (here / "~/mine.csv").write_text("prompt\nhere?\n")
    assert expanded("~/mine.csv") == Path("~/mine.csv")
    assert main(command) == 0
    assert "user: here?" in capsys.readouterr().out


TOOK = {
    "inputs.model=/some/folder": "a file or folder is written path:/some/folder, and there is none at that place",
    "inputs.model=./folder": "did you mean path:./folder?",
    "inputs.model=folder": "did you mean path:folder?",
    "inputs.model=~/x": "is written 'path:~/x'",
    "inputs.model=Here/Model": "a repository of the Hub is written hf:Here/Model",
    "inputs.data=rows.csv": "did you mean path:rows.csv?",
    "inputs.data=path:row.csv": "no such file or folder (did you mean rows.csv?)",
}


@pytest.mark.parametrize("given", TOOK)
def test_an_input_says_what_to_write(given: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    others = {"inputs.model": "inputs.data=card:smallworld", "inputs.data": f"inputs.model=hf:here/model@{NEWEST}"}
    assert main(["sft", given, others[given.partition("=")[0]]]) in (2, 3)
    said = capsys.readouterr().err
    assert TOOK[given] in said
    assert said.startswith(f"error: {given.partition('=')[0]}: ")  # and not a knob of the step that reads it
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("stage", "inputs", "said"),
    [
        ("sft", "model: path:none, data: card:smallworld", ".model: 'path:none': expected hf:"),
        ("sft", f"model: hf:here/model@{NEWEST}, data: path:no.jsonl", ".data: path:no.jsonl: no such file"),
        ("pretrain", "data: card:smallworld", ": expected a tokenizer"),
    ],
)
def test_an_input_of_a_pipeline_is_named_where_its_file_has_it(
    stage: str, inputs: str, said: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The steps that read a model, rows, and documents for tokens are implied: nobody wrote their knobs."""
    Path("mine.yaml").write_text(
        f"defaults: [/stage@steps.a: {stage}, _self_]\nsteps:\n  a:\n    inputs: {{{inputs}}}\n"
    )
    assert main(["plan", "--config", "mine.yaml"]) == 2
    assert capsys.readouterr().err.startswith(f"error: mine.yaml:4: steps.a.inputs{said}")


@pytest.mark.parametrize("stage", ["data", "import_model", "tokenizer"])
@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("./folder", "did you mean path:./folder?"),
        ("Here/Model", "a repository of the Hub is written hf:Here/Model"),
        ("path:foldr", "no such file or folder (did you mean folder?)"),
    ],
)
def test_a_source_says_what_to_write(
    stage: str, source: str, told: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([stage, f"source={source}"]) == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    ("ref", "told"),
    [
        ("path:model", "align import_model source=path:model name=mine/NAME"),
        ("/some/model", "align import_model source=path:/some/model name=mine/NAME"),
        ("Here/Model", "align import_model source=hf:Here/Model name=mine/NAME"),
        ("hf:here/model@x", "align import_model source=hf:here/model@x name=mine/NAME"),
        ("rows.csv", "align data record=KIND source=path:rows.csv name=mine/NAME"),
    ],
)
@pytest.mark.parametrize("command", [["sample"], ["artifacts", "show"], ["report"]], ids=" ".join)
def test_commands_of_the_store_say_how_to_bring_something_in(
    command: list[str], ref: str, told: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "artifacts").mkdir()
    assert main([*command, ref]) == 3
    assert told in capsys.readouterr().err


def test_a_name_of_the_store_that_is_nearly_right_is_suggested(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    payload = tmp_path / "out"
    payload.mkdir()
    store.publish("quickstart/sft", store.commit("sft", "k" * 64, payload, {"kind": "model"}))
    with pytest.raises(StoreError, match=r"did you mean quickstart/sft\?"):
        store.find("quikstart/sft")


# -- the Hub -----------------------------------------------------------------------------------------------------


def test_a_repository_is_read_at_its_newest_commit(hub: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert pinned("hf:here/model", "model") == f"hf:here/model@{NEWEST}"
    assert pinned("hf:here/model", "model") == f"hf:here/model@{NEWEST}"
    assert len(hub) == 1  # asked once
    said = capsys.readouterr().err
    assert said == f"hf:here/model is at {NEWEST} today; write hf:here/model@{NEWEST} to keep it\n"
    assert pinned("hf:here/model@dev", "model") == f"hf:here/model@{OF_DEV}"
    for as_it_is in (f"hf:here/model@{OF_DEV}", "path:x", "card:smallworld"):
        assert pinned(as_it_is, "model") == as_it_is
    assert len(hub) == 2


def test_a_plan_holds_the_pinned_form(hub: list[str], here: Path) -> None:
    keys = []
    for source in ("hf:here/rows", f"hf:here/rows@{NEWEST}", f"hf:here/rows@{OF_DEV}"):
        node = OmegaConf.create({"stage": "data", "source": source})
        (step,) = plan(RunConfig(name="mine"), {"data": node}, ArtifactStore(here / "none"))
        assert step.config.source == f"hf:here/rows@{OF_DEV if source.endswith(OF_DEV) else NEWEST}"
        keys.append(step.key)
    assert keys[0] == keys[1] != keys[2]


def test_an_input_on_the_hub_is_pinned(hub: list[str], here: Path) -> None:
    node = OmegaConf.create({"stage": "sft", "inputs": {"model": "hf:here/model", "data": "hf:here/rows"}})
    steps = plan(RunConfig(name="mine"), {"sft": node}, ArtifactStore(here / "none"))
    sources = {step.stage: step.config.source for step in steps[:2]}
    assert sources == {"import_model": f"hf:here/model@{NEWEST}", "data": f"hf:here/rows@{NEWEST}"}


@pytest.mark.parametrize(
    ("source", "kind", "told"),
    [
        ("hf:here/none", "model", "the Hub shows no model of that name"),
        ("hf:here/model", "dataset", "the Hub shows no dataset of that name"),
        ("hf:here/model@none", "model", "the Hub's model here/model has no revision none"),
        ("hf:a/b/c", "model", "expected hf:ORG/NAME@COMMIT"),
    ],
)
def test_what_the_hub_does_not_have_is_said(source: str, kind: str, told: str, hub: list[str]) -> None:
    with pytest.raises(ConfigError, match=told):
        pinned(source, kind)


def test_without_a_network_a_commit_is_asked_for() -> None:
    with pytest.raises(ConfigError, match=r"at a full commit hash only, .*; write hf:off/line@COMMIT, or give") as told:
        pinned("hf:off/line", "model")
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("verb", [["artifacts", "lineage"], ["chat"]])
def test_a_step_of_a_pipeline_of_align_that_was_not_made_says_how(
    verb: list[str], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ArtifactStore(here / "store").root.mkdir()

    def said(ref: str) -> str:
        assert main([*verb, ref, "--store", "store"]) == 3
        return capsys.readouterr().err

    assert "; align run pipeline=quickstart makes it; --store FOLDER names another" in said("quickstart/sft")
    (here / "quickstart").mkdir()
    (here / "quickstart/sft").mkdir()  # a folder of the user's own is meant
    for ref in ("quickstart/sft", "quickstart/nonsense", "mine/sft", "t5/small", f"{'a' * 300}/x"):
        assert "makes it" not in said(ref)
