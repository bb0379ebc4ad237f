"""Where the store is: the flag or an override, else ALIGN_STORE, else `artifacts`; for every command."""

from pathlib import Path

import pytest
from conftest import mostly_slow

import align
from align.cli.main import main

TEXT = ["source=card:smallworld", "splits=[train]", "train_rows=9", "tracker=none"]
READING = {
    "artifacts": ["artifacts", "ls"],
    "artifacts show": ["artifacts", "show", "my/text"],
    "report": ["report", "my/text"],
    "sample": ["sample", "my/text"],
    "sweep": ["sweep", "ls"],
    "plan of a stage": ["plan", "data", *TEXT, "name=my/text"],
    "plan of a pipeline": ["plan", "pipeline=quickstart"],
    "run": ["data", *TEXT, "name=my/text"],
    "show": ["data", *TEXT, "--show", "1"],
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """With a store `kept` that has data under the name my/text, and a sweep."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ALIGN_STORE", raising=False)
    align.stage(
        "data", source="card:smallworld", splits=["train"], train_rows=9, tracker="none", name="my/text", store="kept"
    )
    return tmp_path


HOW = ["flag", "joined flag", "override", "environment", "flag over environment"]


@pytest.mark.parametrize(
    ("command", "how"),
    mostly_slow(
        [(command, how) for command in READING for how in HOW],
        [(command, HOW[place % len(HOW)]) for place, command in enumerate(READING)],
    ),
)
def test_every_command_finds_the_store(
    command: str, how: str, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = {"flag": ["--store", "kept"], "joined flag": ["--store=kept"], "override": ["store=kept"]}
    given = words.get(how.partition(" over")[0], [])
    if "environment" in how:
        monkeypatch.setenv("ALIGN_STORE", "kept" if how == "environment" else "elsewhere")
    code = main([*READING[command], *given])
    out, err = capsys.readouterr()
    said = out + err
    if command == "sample":  # it is there, and no model
        assert "expected a model, got a documents" in said
    elif command == "report":
        assert "kept" in said or "my/text" in said
    elif command == "sweep":
        assert f"{here}/kept: no sweeps here yet" in said
    else:
        assert code == 0, said
    if command in ("plan of a stage", "run"):
        assert "cached" in said
        assert "1 to run" not in said
    assert not (here / "artifacts").exists()
    assert not (here / "elsewhere").exists()


@pytest.mark.parametrize("launcher", ["basic", pytest.param("joblib", marks=pytest.mark.slow)])
def test_a_sweep_keeps_the_store(
    launcher: str, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ALIGN_STORE", "my store, kept")
    assert main(["data", *TEXT[:2], "tracker=none", "train_rows=3,4", "-m", f"launcher={launcher}", "name=a/b"]) == 0
    assert main(["artifacts", "ls"]) == 0
    assert "a/b" in capsys.readouterr().out
    assert len(list((here / "my store, kept").glob("sweeps/*/members/*.json"))) == 2
    assert {path.name for path in here.iterdir()} == {"kept", "my store, kept"}


def test_python_s_argument_wins_over_the_environment(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = align.artifact("my/text", store="kept")
    monkeypatch.setenv("ALIGN_STORE", "kept")
    assert align.artifact("my/text") == made
    assert align.stage("data", source="card:smallworld", splits=["train"], train_rows=9, name="my/text") == made
    other = align.stage(
        "data", source="card:smallworld", splits=["train"], train_rows=9, store=here / "new", tracker="none"
    )
    assert other.path == here / "new/objects/data" / made.key
    monkeypatch.setenv("ALIGN_STORE", "")
    assert not align.plan_stage("data", source="card:smallworld", splits=["train"], train_rows=9)[0].cached


def test_a_file_s_store_wins_over_the_environment(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ALIGN_STORE", "elsewhere")
    Path("text.yaml").write_text("source: card:smallworld\nsplits: [train]\ntrain_rows: 9\nstore: kept\n")
    assert main(["plan", "data", "--config", "text.yaml"]) == 0
    assert "0 to run, 1 cached" in capsys.readouterr().out
    assert main(["plan", "data", "--config", "text.yaml", "--store", "new"]) == 0
    assert "1 to run, 0 cached" in capsys.readouterr().out


def test_an_empty_store_is_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["artifacts", "ls"], ["plan", "pipeline=quickstart"]):
        assert main([*command, "--store="]) == 3
        assert capsys.readouterr().err == "error: store: expected a folder, got an empty name\n"
