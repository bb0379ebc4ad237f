"""Paths and references on the command line reach a config as they were written, whatever characters they hold."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import mostly_slow
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from align.cli.main import main
from align.cli.overrides import quoted
from align.configs import Data
from align.configs.typed import typed

CHARACTERS = " =~é(#@%,'\"[{&$:;\\})*+!|<>?`^-😀"


def parsed(word: str, is_sweep: bool = False) -> object:
    """What Hydra makes of the value of one word of the command line; of a sweep, in each member."""
    parser = OverridesParser.create()
    (override,) = parser.parse_overrides(quoted([word], is_sweep))
    if not override.is_sweep_override():
        return as_config(override.value())
    values = override.sweep_string_iterator()
    return [as_config(parser.parse_override(f"source={value}").value()) for value in values]


def as_config(value: object) -> object:
    """A value as a config gives it, where an interpolation would be resolved."""
    return OmegaConf.to_container(OmegaConf.create({"source": value}), resolve=True)["source"]


@pytest.mark.parametrize("start", ["path:/my/", "path:", "/my/", "./", "~/", "hf:a/", "path:${", "path:${x}"])
def test_every_character_of_a_path_is_kept(start: str) -> None:
    for character in CHARACTERS:
        for value in (f"{start}a{character}b.csv", f"{start}{character}b.csv", f"{start}a{character}"):
            assert parsed(f"source={value}") == value


def test_a_file_of_every_character_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "my data (1)"
    folder.mkdir()
    file = folder / f"{CHARACTERS}.jsonl"
    file.write_text('{"prompt": "how?"}\n')
    assert main(["data", f"source=path:{file}", "record=prompts", "--show"]) == 0
    assert "how?" in capsys.readouterr().out
    store = f"store={tmp_path}/my store (2)"
    assert main(["plan", "pipeline=quickstart", store, "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) > 5


@pytest.mark.parametrize(
    "name",
    mostly_slow(
        ["~x.jsonl", "./~x.jsonl", "d${x}.jsonl", "c,d.jsonl", "$HOME ${oc.env:HOME}.jsonl"],
        ["~x.jsonl", "$HOME ${oc.env:HOME}.jsonl"],
    ),
)
def test_a_name_with_a_mark_of_a_shell_or_of_hydra_is_a_name(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_text('{"prompt": "how?"}\n')
    assert main(["data", f"source=path:{name}", "record=prompts", "--show"]) == 0
    assert main(["data", f"source=path:{name}", "record=prompts", "store=./st${x}ore", "tracker=none"]) == 0
    assert (tmp_path / "st${x}ore").is_dir()
    assert main(["data", f"source=path:none{name}", "record=prompts", "--show"]) == 2
    assert "no such file or folder" in capsys.readouterr().err


def test_a_config_keeps_text_that_looks_like_an_interpolation() -> None:
    """What a process of a step's reads out of JSON is no config any more."""
    for name in ("path:a${x}", r"path:a\${x}", r"path:a\\${x}\b"):
        made = typed(Data, {"source": name, "columns": {"prompt": "${seed}"}, "splits": ["train"]})
        assert made == Data(source=name, columns={"prompt": "${seed}"}, splits=["train"])
        assert parsed(f"source={name}") == name


@pytest.mark.parametrize(
    ("word", "told"),
    [
        (
            "source=c,d.jsonl",
            "source: a path with a comma in it is taken for several values; did you mean path:c",
        ),
        ("source=~x.jsonl", "source: Hydra cannot read '~x.jsonl'; did you mean 'path:~x.jsonl'?"),
        ("source=path:c,path:d", "source: several are a list: 'source=[path:c,path:d]'"),
        ("max_chars=1,2", "max_chars=1,2: several values are a list, max_chars=[1,2], or a sweep over them, with"),
    ],
)
def test_a_path_without_its_word_is_named_in_full(
    word: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("c,d.jsonl", "~x.jsonl"):
        (tmp_path / name).touch()
    assert main(["data", word, "record=prompts"]) == 2
    assert told in capsys.readouterr().err


def test_a_comma_parts_references_but_not_the_name_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a,b.csv").touch()
    sweep = {
        "source=card:a,card:b": ["card:a", "card:b"],
        "source=path:a b,quickstart/x,path:c": ["path:a b", "quickstart/x", "path:c"],
        "source=path:a,b.csv,path:c (1)": ["path:a,b.csv", "path:c (1)"],
    }
    for word, values in sweep.items():
        assert parsed(word, is_sweep=True) == values
    assert parsed("source=path:a,b.csv", is_sweep=True) == "path:a,b.csv"
    assert parsed("source=path:no,such.csv") == "path:no,such.csv"
    assert parsed("inputs.data=[path:a b,card:c/train, path:a,b.csv]") == ["path:a b", "card:c/train", "path:a,b.csv"]
    assert parsed("inputs.data=[path:bob's.jsonl,path:c]") == ["path:bob's.jsonl", "path:c"]


@pytest.mark.parametrize(
    ("written", "weights"),
    [
        ("{my_rewards:brevity:1.0}", {"my_rewards:brevity": 1.0}),
        (r"{my_rewards\:brevity:1.0}", {"my_rewards:brevity": 1.0}),
        ("{a.b:f(x=1, y=[2,3]):-0.5, c:g:2}", {"a.b:f(x=1, y=[2,3])": -0.5, "c:g": 2}),
        ("{a:f(-1.5,True):1e-3,c:g:inf}", {"a:f(-1.5,True)": 1e-3, "c:g": float("inf")}),
        ("{numeric: 1.0, within_length(max_words=5): -1}", {"numeric": 1.0, "within_length(max_words=5)": -1}),
        ("{}", {}),
    ],
)
def test_reward_functions_are_written_without_hydras_backslashes(written: str, weights: dict[str, float]) -> None:
    assert parsed(f"reward_functions={written}") == weights
    assert parsed(f"steps.ppo.reward_functions={written}") == weights


def test_a_sweep_over_reward_functions_has_each_of_them() -> None:
    assert parsed("reward_functions={a:f:1},{a:f(x=2):1}", is_sweep=True) == [{"a:f": 1}, {"a:f(x=2)": 1}]


@pytest.mark.parametrize("word", ["reward_functions={a:f('x'):1}", "reward_functions.a:f=1"])
def test_reward_functions_that_hydra_cannot_read_are_shown_as_they_are_given(
    word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ppo", word]) == 2
    assert "give 'reward_functions={MODULE:FUNCTION:WEIGHT}'" in capsys.readouterr().err


def test_what_hydra_reads_by_itself_is_left_alone() -> None:
    words = [
        *("source='path:a b'", 'source="path:a,b"', "source=card:a", "source=hf:a/b@main", "kl_coef=1,2", "~steps.ppo"),
        *("seed=range(1,4)", "inputs.data=[a,b]", "inputs.data=['path:a b',card:c]", "prefixes={kind: Be kind.}"),
    ]
    assert quoted(words, True) == words


def test_a_value_that_hydra_cannot_read_comes_back_quoted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["data", "source=card:smallworld", "tracker.project=a/b (1", "--show"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: tracker.project: Hydra cannot read 'a/b (1'; ")
    again = said.partition("quotes inside: ")[2].strip()
    assert again == """'tracker.project='"'"'a/b (1'"'"''"""
    assert main(["data", "source=card:smallworld", "tracker.project='a/b (1'", "--show"]) == 0
