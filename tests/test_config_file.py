"""A stage or a pipeline from a YAML file of the user's, and what is wrong with such a file, by file and line."""

import json
from pathlib import Path

import pytest
import torch
from conftest import CONF, mostly_slow
from safetensors.torch import save_file

from align.cli.main import main

PIPELINE = """\
# @package _global_
defaults:
  - /stage@steps.text: data
  - /stage@steps.words: tokenizer
  - _self_
name: mine
steps:
  text: {source: card:smallworld, splits: [train, validation], train_rows: 50, validation_rows: 5}
  words: {inputs: {data: text}, vocab_size: 300}
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ALIGN_STORE", raising=False)
    return tmp_path


def composed(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> list[dict]:
    """The steps that a plan shows."""
    code = main([*arguments, "--json"])
    out, err = capsys.readouterr()
    assert code == 0, err
    return json.loads(out)


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a refused command prints; it writes nothing."""
    before = sorted(Path.cwd().rglob("*"))
    code = main(arguments)
    out, err = capsys.readouterr()
    assert (code, out) == (2, ""), err
    (line,) = err.splitlines()
    assert sorted(Path.cwd().rglob("*")) == before
    return line


# -- what a file may say -----------------------------------------------------------------------------------------


def test_a_file_of_knobs_is_what_the_command_line_says(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Short names of inputs, nested and dotted knobs, settings, the user's own names, and a chosen config."""
    Path("mine.yaml").write_text(
        "model: path:some\ndata: card:smallworld\nlora: {rank: 8}\nlora.alpha: 4\nlearning_rate: 1e-3\nseed: 3\n"
        "name: a/b\ntracker: none\nhardware: two_processes\nstore: elsewhere\n"
    )
    Path("some").mkdir()
    Path("some/config.json").write_text('{"model_type": "gpt2"}')
    save_file({"weight": torch.ones(2)}, "some/model.safetensors")
    words = "model=path:some data=card:smallworld lora.rank=8 lora.alpha=4 learning_rate=1e-3 seed=3 name=a/b"
    choices = "tracker=none hardware=two_processes store=elsewhere"
    by_words = composed(["plan", "sft", *words.split(), *choices.split()], capsys)
    assert composed(["plan", "sft", "--config", "mine.yaml"], capsys) == by_words
    assert [step["step"] for step in by_words] == ["a/b.data", "a/b.model", "a/b"]
    other = composed(["plan", "sft", "--config", "mine.yaml", "learning_rate=1e-2", "lora.rank=2"], capsys)
    both = [word for word in words.split() if not word.startswith(("learning_rate", "lora.rank"))]
    assert other == composed(["plan", "sft", *both, "learning_rate=1e-2", "lora.rank=2"], capsys)
    assert other[-1]["key"] != by_words[-1]["key"]


def test_names_and_texts_of_a_file_are_whatever_yaml_can_say(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No character of Hydra's grammar means anything in them; an interpolation does."""
    Path("my (1), data's.jsonl").write_text('{"frage": "a", "antwort": "b"}\n')
    Path("d.yaml").write_text(
        "source: path:./my (1), data's.jsonl\nrecord: demonstrations\ncolumns: {prompt: frage, completion: antwort}\n"
    )
    (step,) = composed(["plan", "data", "--config", "d.yaml"], capsys)
    words = [
        "source=path:./my (1), data's.jsonl",
        "record=demonstrations",
        "columns={prompt: frage, completion: antwort}",
    ]
    assert [step] == composed(["plan", "data", *words], capsys)
    assert main(["data", "--config", "d.yaml", "--show", "1"]) == 0
    assert 'frage: "a"' in capsys.readouterr().out
    Path("seeds.yaml").write_text("source: card:smallworld\nseed: 7\ntrain_rows: ${seed}\n")
    (step,) = composed(["plan", "data", "--config", "seeds.yaml"], capsys)
    assert [step] == composed(["plan", "data", "source=card:smallworld", "train_rows=7"], capsys)


def test_a_file_with_defaults_is_a_pipeline(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("whole.yaml").write_text(PIPELINE)
    (here / "conf/pipeline").mkdir(parents=True)
    (here / "conf/pipeline/mine.yaml").write_text(PIPELINE)
    by_folder = composed(["plan", "pipeline=mine", "--config-dir", "conf"], capsys)
    assert composed(["plan", "--config", "whole.yaml"], capsys) == by_folder
    assert composed(["plan", "run", "--config", "whole.yaml"], capsys) == by_folder
    (text, words) = composed(["plan", "--config", "whole.yaml", "steps.words.vocab_size=400"], capsys)
    assert text == by_folder[0]
    assert words["key"] != by_folder[1]["key"]
    Path("whole.yaml").write_text(PIPELINE.replace("name: mine\n", ""))  # the file's name is the pipeline's
    assert composed(["plan", "--config", "whole.yaml"], capsys)[0]["step"] == "whole/text"


@pytest.mark.parametrize("in_folder", [False, True], ids=["file", "folder"])
def test_a_pipeline_may_choose_its_launcher_and_is_planned_with_a_sweep_and_without(
    in_folder: bool, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = here / ("conf/pipeline/mine.yaml" if in_folder else "mine.yaml")
    file.parent.mkdir(parents=True, exist_ok=True)
    launcher = "  - override /launcher: joblib\n  - override /hardware: two_processes\n  - _self_\n"
    file.write_text(PIPELINE.replace("  - _self_\n", launcher) + "hydra: {launcher: {n_jobs: 3}}\n")
    given = ["pipeline=mine", "--config-dir", "conf"] if in_folder else ["--config", "mine.yaml"]
    assert len(composed(["plan", *given], capsys)) == 2
    assert main(["plan", *given, "--cfg", "hydra", "--package", "hydra.launcher"]) == 0
    assert "n_jobs: 3" in capsys.readouterr().out


@pytest.mark.parametrize("read", ["${rows}", "${oc.select:rows}", "${oc.select:nope,${rows}}", "${oc.select: rows, 3}"])
def test_a_name_of_a_pipeline_s_own_is_taken_where_an_interpolation_reads_it(
    read: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("mine.yaml").write_text(PIPELINE.replace("train_rows: 50", f"train_rows: '{read}'") + "rows: 50\n")
    (text, _) = composed(["plan", "--config", "mine.yaml"], capsys)
    Path("mine.yaml").write_text(PIPELINE)
    assert text == composed(["plan", "--config", "mine.yaml"], capsys)[0]


def test_a_file_without_defaults_is_on_top_of_a_pipeline(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("on.yaml").write_text("pipeline: toy\nsteps: {ppo: {kl_coef: 0.25}}\nsteps.sft.learning_rate: 0.5\n")
    toy = ["--config-dir", str(CONF)]
    words = ["steps.ppo.kl_coef=0.25", "steps.sft.learning_rate=0.5"]
    assert composed(["plan", "--config", "on.yaml", *toy], capsys) == composed(
        ["plan", "pipeline=toy", *words, *toy], capsys
    )
    over = composed(["plan", "--config", "on.yaml", "pipeline=quickstart", "steps.ppo.kl_coef=0.3"], capsys)
    words[0] = "steps.ppo.kl_coef=0.3"
    assert over == composed(["plan", "pipeline=quickstart", *words], capsys)


def test_a_sweep_over_a_file_checks_each_member(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("whole.yaml").write_text(PIPELINE)
    line = refused(["run", "--config", "whole.yaml", "steps.words.vocab_size=300,-1", "-m"], capsys)
    assert line.startswith("error: member 1 (steps.words.vocab_size=-1): steps.words.vocab_size: expected")
    Path("whole.yaml").write_text(PIPELINE.replace("vocab_size: 300", "vocab_size: -1"))
    line = refused(["run", "--config", "whole.yaml", "steps.text.train_rows=50,60", "-m"], capsys)
    assert line.startswith("error: member 0 (steps.text.train_rows=50): whole.yaml:9: steps.words.vocab_size: expected")


def test_a_run_from_a_file_is_the_run(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("text.yaml").write_text(
        "source: card:smallworld\nsplits: [train]\ntrain_rows: 9\ntracker: none\nname: my/text\nstore: kept\n"
    )
    assert main(["data", "--config", "text.yaml"]) == 0
    assert "kept" in capsys.readouterr().out
    assert [path.name for path in (here / "kept/names/my").iterdir()] == ["text"]


# -- what is wrong with it ---------------------------------------------------------------------------------------

# The text of a stage's file, and the error line behind its name.
WRONG = {
    "a key without a colon": ("batch_size 8\nseed: 1\n", ":2: the line before it is no name: value"),
    "a line too deep": (
        "batch_size: 8\n  seed: 1\n",
        ":2: indented further than the line above it, which has its value already",
    ),
    "an open bracket": ("seed: 1\nlora: {rank: 8\nbatch_size: 3\n", ":3: not YAML: "),
    "a tab": ("lora:\n\trank: 8\n", ":2: a tab; indent with spaces"),
    "two colons": ("name: a: b\n", ':1: a second ": " in one line'),
    "a key twice": ("seed: 1\nbatch_size: 2\nseed: 3\n", ":3: seed is given twice"),
    "a nested key twice": ("lora:\n  rank: 1\n  rank: 2\n", ":3: rank is given twice"),
    "a key twice by its dots": ("lora: {rank: 1}\nlora.rank: 2\n", ":2: lora.rank: given twice"),
    "an input twice": (
        "data: card:smallworld\ninputs: {data: card:smallworld}\n",
        ":1: data: given twice, as inputs.data",
    ),
    "a list": ("- a\n- b\n", ":1: expected names with values"),
    "a word": ("\nhello\n", ":2: expected names with values"),
    "two documents": ("seed: 1\n---\nseed: 2\n", ":2: a second document"),
    "a tag": ("seed: !python/name:os.system x\n", ":1: the tag"),
    "an alias of nothing": ("seed: *that\n", ":1: not YAML: found undefined alias"),
    "a value in itself": ("lora: &a\n  rank: *a\n", ":1: a value that contains itself"),
    "a name that is a number": ("1: 2\n", ":1: expected a name, got 1"),
    "a name that is a truth": ("on: 2\n", ":1: expected a name, got on"),
    "an unknown knob": ("seed: 1\nlearning_rat: 1\n", ":2: learning_rat: no such knob (did you mean learning_rate?)"),
    "another library's knob": ("lr: 1\n", ":1: lr: no such knob (did you mean learning_rate?)"),
    "an unknown nested knob": ("lora:\n  rang: 1\n", ":2: lora.rang: no such knob (did you mean lora.rank?)"),
    "an unknown input": ("inputs:\n  modl: a/b\n", ":2: inputs.modl: unknown input (did you mean model?)"),
    "a knob of another stage": ("num_steps: 3\n", ":1: num_steps: no such knob; pretrain"),
    "a setting that is none": ("hardware:\n  thread: 3\n", ":2: hardware.thread: no such knob (did you mean"),
    "a list for a number": ("batch_size: [1]\n", ":1: batch_size: "),
    "a word for a number": ("seed: 1\n\nbatch_size: many\n", ":3: batch_size: expected an integer, got 'many'"),
    "a number out of range": ("batch_size: 0\n", ":1: batch_size: expected a number above 0"),
    "a number for knobs": ("lora: 8\n", ":1: lora: expected its knobs, as in lora.rank=..., got 8"),
    "a list for knobs": ("lora: [8]\n", ":1: lora: expected names with values"),
    "a list for inputs": ("inputs: [a]\n", ":1: inputs: expected names with values"),
    "a number for an input": ("model: 3\n", ":1: inputs.model: expected a reference"),
    "a setting of another type": ("seed: one\n", ":1: seed: expected an integer, got 'one'"),
    "a device that is none": ("hardware: {device: tpu}\n", ":1: hardware.device: expected auto, cpu or cuda"),
    "a list for settings": ("hardware: [1]\n", ":1: hardware: expected names with values"),
    "null for a knob": ("seed: 1\nbatch_size: null\n", ":2: batch_size: expected a value, got null"),
    "null for knobs": ("lora:\n", ":1: lora: expected a value, got null"),
    "null for inputs": ("inputs:\n", ":1: inputs: expected a value, got null"),
    "null for a setting": ("store:\n", ":1: store: expected a value, got null"),
    "null for hardware": ("hardware:\n", ":1: hardware: expected a name, got null; there are: auto, two_processes"),
    "an unknown config": ("hardware: autto\n", ":1: hardware=autto: no such hardware (did you mean auto?)"),
    "an interpolation of nothing": ("batch_size: ${nope}\n", ":1: batch_size: ${nope}: there is no nope"),
    "an interpolation that does not end": ("batch_size: ${seed\n", ":1: ${seed: no interpolation"),
    "an interpolation of itself": ("batch_size: ${batch_size}\n", ":1: batch_size: "),
    "an environment variable that is not set": ("batch_size: ${oc.env:NOT_SET_AT_ALL}\n", ":1: batch_size: "),
    "the mode of a sweep": ("seed: 1\nhydra: {mode: MULTIRUN}\n", ":2: hydra.mode: not supported here; give -m"),
    "another stage": ("stage: ppo\n", ":1: stage: expected sft"),
    "a pipeline's file": ("defaults: [_self_]\n", ":1: defaults: a whole pipeline; run it with align run --config"),
    "steps": ("steps: {sft: {seed: 1}}\n", ":1: steps: only of a pipeline"),
}


@pytest.mark.parametrize("case", mostly_slow(WRONG, [*WRONG][::2]))
def test_what_is_wrong_with_a_stage_s_file_is_one_line(
    case: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, said = WRONG[case]
    Path("my_sft.yaml").write_text(text)
    inputs = [word for word in ("model=card:a", "data=card:smallworld") if f"{word[:5]}" not in text]
    line = refused(["sft", "--config", "my_sft.yaml", *(inputs if "inputs" not in text else [])], capsys)
    assert line.startswith(f"error: my_sft.yaml{said}"), line


BYTES = {
    "another encoding": (b"seed: 1\nname: caf\xe9/x\n", ":2: not UTF-8 text (byte 0xe9); save the file as UTF-8"),
    "UTF-16": ("seed: 1\n".encode("utf-16"), ":1: not UTF-8 text (byte 0xff)"),
    "zeros": (b"seed: \x00\x00\n", ": not a text file"),
}


@pytest.mark.parametrize(("content", "said"), BYTES.values(), ids=BYTES)
@pytest.mark.parametrize("in_folder", [False, True], ids=["file", "folder"])
def test_a_file_is_text(
    content: bytes, said: str, in_folder: bool, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = Path("conf/pipeline/mine.yaml" if in_folder else "my.yaml")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    given = ["pipeline=mine", "--config-dir", "conf"] if in_folder else ["--config", "my.yaml"]
    assert refused(["run", *given], capsys).startswith(f"error: {file}{said}")


# A change of `PIPELINE`, and the error line behind the file's name.
WRONG_PIPELINE = {
    "no YAML": ("name: mine", "name: mine: yours", ':6: a second ": "'),
    "a tab": ("  text:", "\ttext:", ":8: a tab"),
    "a key twice": ("name: mine", "name: mine\nname: yours", ":7: name is given twice"),
    "an unknown knob": (
        "vocab_size",
        "vocab_sise",
        ":9: steps.words.vocab_sise: no such knob (did you mean steps.words.v",
    ),
    "an unknown setting": ("name: mine", "name: mine\nsead: 1", ":7: sead: no such knob (did you mean seed?)"),
    "an unknown nested setting": (
        "name: mine",
        "name: mine\nhardware: {thread: 1}",
        ":7: hardware.thread: no such knob",
    ),
    "an unknown step": ("  words:", "  wordz:", ":9: steps.wordz: no such step (did you mean words?)"),
    "an unknown stage": (
        "words: tokenizer",
        "words: tokeniser",
        ":4: stage=tokeniser: no such stage (did you mean tokenizer?)",
    ),
    "a word for a number": ("300", "many", ":9: steps.words.vocab_size: expected an integer, got 'many'"),
    "a number out of range": ("300", "-3", ":9: steps.words.vocab_size: expected"),
    "a list of steps": (
        PIPELINE[PIPELINE.index("steps:\n") :],
        "steps: [1]\n",
        ":7: steps: expected names with values",
    ),
    "a list for a step": ("{inputs: {data: text}, vocab_size: 300}", "[1]", ":9: steps.words: "),
    "a word for a step": (
        "{inputs: {data: text}, vocab_size: 300}",
        "some",
        ":9: steps.words: expected a step's knobs",
    ),
    "no steps": (PIPELINE[PIPELINE.index("steps:\n") :], "steps:\n", ":7: steps: expected the pipeline's steps"),
    "null for a step": ("{inputs: {data: text}, vocab_size: 300}", "null", ":9: steps.words: expected a step's knobs"),
    "null for a setting": ("name: mine", "name: mine\nseed:", ":7: seed: expected a value, got null"),
    "null for settings": ("name: mine", "name: mine\nhardware:", ":7: hardware: expected a value, got null"),
    "a missing input": ("inputs: {data: text}, ", "", ":9: steps.words.inputs: expected data"),
    "an unknown input": ("{data: text}", "{date: text}", ":9: steps.words.inputs.date: unknown input"),
    "a step that is not there": ("{data: text}", "{data: txet}", ":9: steps.words.inputs.data: no step 'txet'"),
    "a missing card": ("card:smallworld", "card:smalworld", ":8: steps.text.source: card:smalworld: no such data card"),
    "an interpolation without quotes": ("300", "${seed}", ":9: a { in { }; write a value with ${...} in quotes"),
    "an interpolation of nothing": ("300", "'${nope}'", ":9: steps.words.vocab_size: ${nope}: there is no nope"),
    "a setting's interpolation": ("name: mine", "name: mine\nseed: ${nope}", ":7: seed: ${nope}: there is no nope"),
    "the mode of a sweep": ("name: mine", "name: mine\nhydra: {mode: MULTIRUN}", ":7: hydra.mode: not supported here"),
    "a setting of Hydra's own": (
        "name: mine",
        "name: mine\nhydra: {job: {name: x}}",
        ":7: hydra.job.name: not supported here",
    ),
    "defaults without a list": (PIPELINE, "name: mine\ndefaults: {}\n", ":2: defaults: expected a list"),
    "a number among defaults": (PIPELINE, "defaults: [1]\n", ":1: defaults: expected a list"),
    "two choices in one": (PIPELINE, "defaults: [{a: b, c: d}]\n", ":1: defaults: expected a list"),
    "a config that is not there": ("/stage@steps.words", "/stag@steps.words", ":2: defaults: stag/tokenizer: no such"),
    "a name alone": ("  - _self_\n", "  - nope\n  - _self_\n", ":2: defaults: pipeline/nope: no such config"),
    "an override of nothing": (
        "  - _self_\n",
        "  - override /launchr: joblib\n  - _self_\n",
        ":2: defaults: override /launchr: no config before it chooses that (did you mean launcher?)",
    ),
    "a sweep among defaults": (
        "  - _self_\n",
        "  - override /sweep: beta\n  - _self_\n",
        ":2: defaults: override /sweep: a sweep changes the steps of a pipeline, so it is chosen by sweep=NAME alone",
    ),
    "null for defaults": (PIPELINE, "name: mine\ndefaults:\n", ":2: defaults: expected a list"),
}


@pytest.mark.parametrize("case", mostly_slow(WRONG_PIPELINE, [*WRONG_PIPELINE][::2]))
@pytest.mark.parametrize("in_folder", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["file", "folder"])
def test_what_is_wrong_with_a_pipeline_s_file_is_one_line(
    case: str, in_folder: bool, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, after, said = WRONG_PIPELINE[case]
    assert before in PIPELINE
    file = Path("conf/pipeline/mine.yaml" if in_folder else "my.yaml")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(PIPELINE.replace(before, after))
    given = ["pipeline=mine", "--config-dir", "conf"] if in_folder else ["--config", "my.yaml"]
    line = refused(["plan", *given], capsys)
    assert line.startswith(f"error: {file}{said}"), line


WORDS = {
    "null for a pipeline": (["pipeline=null"], "pipeline: expected a name, got null; there are: algorithms, assistant"),
    "null for hardware": (
        ["pipeline=quickstart", "hardware=null"],
        "hardware: expected a name, got null; there are: auto",
    ),
    "null for a step": (["pipeline=quickstart", "steps.ppo=null"], "steps.ppo: expected a step's knobs"),
    "a text for a step": (["pipeline=quickstart", "steps.ppo=some"], "steps.ppo: expected a step's knobs"),
    "null for steps": (["pipeline=quickstart", "steps=null"], "steps: expected the pipeline's steps"),
    "no steps": (["pipeline=quickstart", "~steps"], "steps: expected the pipeline's steps"),
    "a list of steps": (["pipeline=quickstart", "steps=[1]"], "steps: expected names with values"),
    "null for a stage": (["pipeline=quickstart", "steps.ppo.stage=null"], "steps.ppo.stage: no such stage"),
    "null for a device": (
        ["pipeline=quickstart", "hardware.device=null"],
        "hardware.device: expected a value, got null",
    ),
    "an interpolation of nothing": (["pipeline=quickstart", "seed=${nope}"], "seed: ${nope}: there is no nope"),
    "a store of nothing": (["pipeline=quickstart", "store=${nope}"], "store: ${nope}: there is no nope"),
    "a setting of nothing": (["pipeline=quickstart", "debug=${nope}"], "debug: ${nope}: there is no nope"),
    "a sweep in a store of nothing": (
        ["pipeline=quickstart", "store=${oc.env:NO_SUCH}", "seed=1,2", "-m"],
        "store: ${oc.env:NO_SUCH}: the environment has no such variable",
    ),
    "members with a setting of nothing": (
        ["pipeline=quickstart", "hardware.threads=${nope}", "seed=1,2", "-m"],
        "member 0 (seed=1): hardware.threads: ${nope}: there is no nope",
    ),
    "the mode of a sweep": (["pipeline=quickstart", "hydra.mode=MULTIRUN"], "hydra.mode: not supported here; give -m"),
    "the mode added": (["pipeline=quickstart", "++hydra.mode=RUN"], "hydra.mode: not supported here"),
    "Hydra's config name": (
        ["--config-name", "x"],
        "--config-name: not supported here; give a config file with --config",
    ),
    "the same in short": (["-cn", "x"], "--config-name: not supported here"),
    "Hydra's config path": (["--config-path", "x"], "--config-path: not supported here; add a folder of configs with"),
    "Hydra's rerun": (["--experimental-rerun", "x"], "--experimental-rerun: not supported here"),
    "the version of Hydra": (["pipeline=quickstart", "--version"], "--version: give it alone"),
    "a package of no config": (["pipeline=quickstart", "--package", "x"], "--package: only with --cfg job"),
    "a sweep to look at": (["pipeline=quickstart", "--cfg", "job", "-m"], "--multirun, --cfg: give one of them"),
    "nothing to resolve": (["pipeline=quickstart", "--resolve"], "--resolve: only with --cfg job"),
    "an option cut short": (["pipeline=quickstart", "--conf", "x"], "--conf: no such option"),
    "an option without its value": (["pipeline=quickstart", "--config"], "align run: argument --config: expected one"),
    "a file that is not there": (["--config", "none.yaml"], "none.yaml: no such file"),
    "a folder for a file": (["--config", "."], ".: no such file"),
    "a stage behind": (
        ["pipeline=quickstart", "sft"],
        "sft: expected name=value; a stage comes first, as in align sft",
    ),
    "two stores": (["pipeline=quickstart", "--store", "a", "store=b"], "--store: store=FOLDER is given too; keep one"),
}


@pytest.mark.parametrize("case", mostly_slow(WORDS, [*WORDS][::2]))
def test_what_is_wrong_on_the_command_line_is_one_line(
    case: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words, said = WORDS[case]
    assert refused(["run", *words], capsys).startswith(f"error: {said}")


def test_what_the_command_line_says_is_in_no_file(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("my.yaml").write_text(PIPELINE)
    line = refused(["plan", "--config", "my.yaml", "steps.words.vocab_size=-1"], capsys)
    assert line.startswith("error: steps.words.vocab_size: expected")


# -- a stage's plan ----------------------------------------------------------------------------------------------


def test_a_stage_is_planned_by_itself(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert [step["step"] for step in composed(["plan", "data", "source=card:smallworld"], capsys)] == ["own/data"]
    steps = composed(["plan", "tokenizer", "data=card:smallworld", "name=a/b"], capsys)
    assert [step["step"] for step in steps] == ["a/b.data", "a/b"]
    assert list(here.iterdir()) == []


def test_a_plan_of_a_stage_reads_the_rows_where_asked(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("rows.jsonl").write_text('{"text": 3}\n')
    given = ["plan", "data", "source=path:rows.jsonl"]
    assert len(composed(given, capsys)) == 1
    assert "rows.jsonl:1: " in refused([*given, "check_data=true"], capsys)


@pytest.mark.parametrize("word", ["tokens=${nope}", "hidden_size=${nope}"])
def test_an_interpolation_of_nothing_in_a_model_is_one_line(
    word: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key = word.partition("=")[0].replace("hidden_size", "model.hidden_size")
    assert refused(["model", "model=gpt2", word], capsys).startswith(f"error: {key}: ${{nope}}: there is no nope")
