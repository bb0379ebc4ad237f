"""What composes, what is refused and how, and how little of it needs torch."""

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import CONF, align, mostly_slow

from align.cli.help import pipelines
from align.cli.main import main

ROOT = Path(__file__).parent.parent


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str], folder: Path) -> str:
    """The one line that a refused command prints; nothing may be written."""
    code = main(arguments)
    out, err = capsys.readouterr()
    lines = err.strip().splitlines()
    assert code in (2, 3), err
    assert len(lines) == 1, err
    assert lines[0].startswith("error: ")
    assert out == ""
    assert list(folder.iterdir()) == []
    return f"{code} {lines[0].removeprefix('error: ')}"


# -- what composes -----------------------------------------------------------------------------------------------


LOCAL = ("assistant", "gpt1", "gpt2", "t5")  # of cards whose sets are not pinned on the Hub


def test_the_quickstart_has_the_steps_that_its_users_name(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "pipeline=quickstart", "--json"]) == 0
    steps = [step["step"].removeprefix("quickstart/") for step in json.loads(capsys.readouterr().out)]
    after_data = "tokenizer pretrain sft compare reward ppo evaluate_base evaluate_sft evaluate_ppo".split()
    assert [step for step in steps if step in after_data] == after_data


@pytest.mark.parametrize("name", [name for name in pipelines() if name not in LOCAL])
def test_every_pipeline_plans_without_a_network(name: str, here: Path) -> None:
    assert main(["plan", f"pipeline={name}"]) == 0
    assert list(here.iterdir()) == []


@pytest.mark.skipif(not (ROOT.parent / "shared/data").is_dir(), reason="the local copies of the real data are not here")
@pytest.mark.parametrize("name", LOCAL)
def test_a_pipeline_of_real_data_plans_with_local_files(
    name: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", f"pipeline={name}", f"data_root={ROOT.parent}/shared/data", "--json"]) == 0
    assert {step["stage"] for step in json.loads(capsys.readouterr().out)} >= {"data", "tokenizer", "tokens"}


WITHOUT_TORCH = [
    ["--help"],
    ["run", "--help"],
    ["ppo", "--help"],
    ["model", "--help"],
    ["chat", "--help"],
    ["sample", "--help"],
    ["plan", "pipeline=instructgpt"],
    ["plan", "pipeline=quickstart"],
]


def test_help_and_plan_import_no_torch(here: Path) -> None:
    """Which would take seconds."""
    code = (
        "import sys\n"
        "from align.cli.main import main\n"
        f"for command in {WITHOUT_TORCH!r}:\n"
        "    assert main(command) == 0, command\n"  # a command that fails imports nothing, either
        "    assert 'torch' not in sys.modules, command\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_a_users_own_pipeline_comes_from_config_dir(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "pipeline=toy", "--config-dir", str(CONF), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 11


def test_hydras_own_cfg_shows_the_composed_config(here: Path) -> None:
    shown = align("run", "pipeline=quickstart", "--cfg", "job").stdout
    assert "kl_coef: 0.1" in shown


def test_a_knob_of_names_takes_the_users_own(here: Path) -> None:
    shown = align("run", "pipeline=quickstart", "steps.evaluate_ppo.checks={rude: 'words:x'}", "--cfg", "job").stdout
    assert "      rude: words:x" in shown


@pytest.mark.parametrize(
    ("typed", "wanted"),
    [
        ("align pre", "pretrain"),
        ("align run pipeline=qui", "quickstart"),
        ("align ppo kl_co", "kl_coef"),
        ("align model model=gpt3_1", "gpt3_13b"),
    ],
)
def test_tab_completion_knows_verbs_and_knobs(
    typed: str, wanted: str, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COMP_LINE", typed)
    monkeypatch.setenv("COMP_POINT", str(len(typed)))
    assert main(["-sc", "query=bash"]) == 0
    assert wanted in capsys.readouterr().out


def test_a_plan_decides_the_precision_by_the_machine_shows_it_and_has_it_in_the_key(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ["plan", "pipeline=quickstart", *(f"steps.{step}.precision=auto" for step in ("sft", "reward", "ppo"))]
    keys = []
    for fast, precision in ((False, "fp32"), (True, "bf16")):
        monkeypatch.setattr("align.pipeline.plan.bf16_is_fast", lambda device, fast=fast: fast)
        assert main([*given, "--json"]) == 0
        steps = {step["stage"]: step for step in json.loads(capsys.readouterr().out)}
        assert [steps[stage]["precision"] for stage in ("sft", "reward", "ppo")] == [precision] * 3
        keys.append(steps["sft"]["key"])
        assert main([*given, "steps.pretrain.precision=fp32"]) == 0
        (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith(f"precision {precision}")]
        assert "sft, " in line or not fast
        assert main([*given[:2], f"steps.sft.precision={precision}", "--json"]) == 0
        steps = {step["stage"]: step for step in json.loads(capsys.readouterr().out)}
        assert steps["sft"]["key"] == keys[-1]
    assert keys[0] != keys[1]


def test_a_plan_fits_a_terminal_of_80_columns(here: Path) -> None:
    """Each step on one line, the reasons below with the steps that have them, none of it cut."""
    terminal, far_end = pty.openpty()
    command = [sys.executable, "-m", "align", "plan", "pipeline=quickstart"]
    environment = {**os.environ, "COLUMNS": "80", "TERM": "dumb"}
    subprocess.run(command, stdout=far_end, env=environment, check=True)
    os.close(far_end)
    shown = os.read(terminal, 2**16).decode()
    os.close(terminal)
    table, _, reasons = shown.replace("\r", "").partition("\nwhy\n")
    assert all(len(line) <= 80 for line in shown.splitlines())
    assert [line.split()[0] for line in table.splitlines()[-4:-1]] == ["ppo", "evaluate_base", "evaluate_sft"]
    assert len(shown.splitlines()) <= 30
    assert "evaluate_ppo: not made yet" in " ".join(reasons.split())


# -- what is refused ---------------------------------------------------------------------------------------------

COMMIT = "0123456789" * 4

REFUSED = {
    "a typo'd knob of a step": (
        ["run", "pipeline=quickstart", "steps.ppo.kl_cof=0.1"],
        "2 steps.ppo.kl_cof: no such knob (did you mean steps.ppo.kl_coef?)",
    ),
    "a typo'd knob of a stage": (
        ["ppo", "learning_rat=1"],
        "2 learning_rat: no such knob (did you mean learning_rate?)",
    ),
    "a typo'd setting": (["run", "pipeline=quickstart", "sead=1"], "2 sead: no such knob (did you mean seed?)"),
    "a verb of artifacts": (["export", "mine/sft", "x"], "2 export: did you mean align artifacts export?"),
    "an unknown stage": (["pretrian"], "2 unknown stage 'pretrian' (did you mean pretrain?)"),
    "an unknown pipeline": (
        ["run", "pipeline=quikstart"],
        "2 pipeline=quikstart: no such pipeline (did you mean quickstart?)",
    ),
    "a pipeline without its word": (
        ["run", "quickstart"],
        "2 quickstart: expected name=value; did you mean pipeline=quickstart?",
    ),
    "a device that is none": (
        ["run", "pipeline=quickstart", "hardware.device=tpu"],
        "2 hardware.device: expected auto, cpu or cuda",
    ),
    "no pipeline": (["run"], "2 pipeline: say which"),
    "an unknown step": (["run", "pipeline=quickstart", "step=pppo"], "2 step=pppo: no such step (did you mean ppo?)"),
    "a value of another type": (
        ["run", "pipeline=quickstart", "steps.ppo.kl_coef=high"],
        "2 steps.ppo.kl_coef: expected a number, got 'high'",
    ),
    "a setting of another type": (["run", "pipeline=quickstart", "seed=one"], "2 seed: expected an integer, got 'one'"),
    "a value out of range": (
        ["run", "pipeline=quickstart", "steps.ppo.clip_range=2"],
        "2 steps.ppo.clip_range: expected a number between 0 and 1, got 2",
    ),
    "a setting out of range": (
        ["run", "pipeline=quickstart", "hardware.num_processes=0"],
        "2 hardware.num_processes: expected a num",
    ),
    "a tracker that is none": (
        ["run", "pipeline=quickstart", "tracker.backend=mlflow"],
        "2 tracker.backend: expected wandb or none",
    ),
    "a model of no width": (
        ["run", "pipeline=quickstart", "steps.pretrain.model.hidden_size=-4"],
        "2 steps.pretrain.model.hidden_size: expected",
    ),
    "a norm below 0": (
        ["run", "pipeline=quickstart", "steps.ppo.max_grad_norm=-1"],
        "2 steps.ppo.max_grad_norm: expected",
    ),
    "an unknown split": (
        ["run", "pipeline=quickstart", "steps.text.splits=[trian]"],
        "2 steps.text.splits: expected train",
    ),
    "pretraining from nothing": (
        ["pretrain", "inputs.data=card:smallworld"],
        "2 inputs: expected a tokenizer",
    ),
    "a share of no text": (
        ["run", "pipeline=quickstart", "steps.sft.text_share=0.1"],
        "2 steps.sft.text_share: expected 0, or a share below 1 and inputs.text too, got 0.1",
    ),
    "a minibatch that does not divide the rollout": (
        ["run", "pipeline=quickstart", "steps.ppo.minibatch_size=60"],
        "2 steps.ppo.minibatch_size: expected a divisor of rollout_batch_size, 128 (give both), got 60",
    ),
    "a wrong kind of input": (
        ["run", "pipeline=quickstart", "steps.ppo.inputs.reward_model=sft"],
        "2 steps.ppo.inputs.reward_model: expected reward_model, but quickstart/sft is model",
    ),
    "an input that is not there": (
        ["sft", "inputs.data=card:smallworld"],
        "2 inputs.model: sft needs a model here",
    ),
    "another stage's knob": (
        ["sft", "inputs.model=a/b", "num_steps=3"],
        "2 num_steps: no such knob; pretrain, text_to_text have it",
    ),
    "an unknown input": (
        ["sft", "inputs.modl=a/b"],
        "2 inputs.modl: sft has no such input (did you mean model?); inputs: model, data, text",
    ),
    "an artifact that is not there": (["sft", "inputs.model=quickstart/sft", "inputs.data=card:smallworld"], "3 "),
    "an unknown card": (["data", "source=card:smalworld"], "2 source: card:smalworld: no such data card"),
    "a missing file": (
        ["data", "source=path:none.jsonl"],
        "2 source: path:none.jsonl: no such file or folder",
    ),
    "an unpinned Hub set": (["data", "source=hf:a/b"], "2 source: hf:a/b: the Hub is read at a full commit"),
    "a source of no kind": (
        ["data", "source=data.jsonl"],
        "2 source: 'data.jsonl': expected card:NAME",
    ),
    "a card's split where a whole card is asked for": (
        ["data", "source=card:smallworld/train"],
        "2 source: card:smallworld/train: here a whole card is named: card:smallworld; splits='[train]' keeps one",
    ),
    "forms by own prompts and no reward model": (
        ["prompt", f"model=hf:a/b@{COMMIT}", f"prompts=hf:a/c@{COMMIT}"],
        "2 inputs.reward_model: these prompts have no gold scorer, so a reward model must choose the form",
    ),
    "answers to own prompts and nothing that judges": (
        ["evaluate", f"model=hf:a/b@{COMMIT}", f"prompts=hf:a/c@{COMMIT}"],
        "2 inputs.reward_model: these prompts have no gold scorer, so a reward model, reward_functions, checks",
    ),
    "simulated labelers of own prompts": (
        ["compare", f"model=hf:a/b@{COMMIT}", f"prompts=hf:a/c@{COMMIT}"],
        "2 inputs.prompts: simulated labelers need prompts with a gold scorer",
    ),
    "an unknown verb of artifacts": (["artifacts", "lst"], "2 align artifacts: argument verb: invalid choice"),
    "an empty store": (["artifacts", "ls"], "3 "),
    "an unknown option": (["run", "pipeline=quickstart", "--quiet"], "2 --quiet: no such option"),
    "a knob with dashes": (
        ["sft", "--model", "mine/sft"],
        "2 --model: no such option; a knob or an input is given as NAME=VALUE, without dashes (align sft --help)",
    ),
    "an option of no verb": (["model", "--quiet"], "2 --quiet: no such option; a knob or an input is given as NAME="),
    "Hydra's help of a stage": (["sft", "--hydra-help"], "2 --hydra-help: give it to align run; see align sft --help"),
    "Hydra's help of models": (["model", "--hydra-help"], "2 --hydra-help: give it to align run; see align model -"),
    "a config folder that is not there": (
        ["run", "pipeline=a", "--config-dir", "none"],
        "2 --config-dir none: no such",
    ),
    "a store's name that is no name": (
        ["data", "source=card:smallworld", "name=a/b/c"],
        "2 name: expected PIPELINE/STEP",
    ),
}


TOGETHER = {
    "top_p": ("steps.ppo.top_p=0.9", "1, or importance_cap too: what is cut off would bend the ratio, got 0.9"),
    "kl_horizon": ("steps.ppo.kl_goal=2 steps.ppo.kl_horizon=20", "above a fifth of rollout_batch_size (128)"),
    "ptx_length": ("steps.ppo.ptx_length=1", "at least 2"),
    "kl_goal": (
        "steps.ppo.kl_goal=2 steps.ppo.kl_form=k2",
        "a number above 0, with kl_form=reward and kl_coef above 0",
    ),
    "missing_eos_reward": ("steps.ppo.missing_eos_reward=-1", "missing_eos_penalty=0 beside it"),
    "value_warmup_iterations": (
        "steps.ppo.value_warmup_iterations=9 steps.ppo.num_iterations=9",
        "fewer than num_iterations (9)",
    ),
    "ema_decay": ("steps.ppo.ema_decay=1", "between 0 and 1, or null"),
    "lora.dropout": ("steps.ppo.lora.rank=4 steps.ppo.lora.dropout=0.1", "0: the first ratio would not be 1"),
    "lora.merged": ("steps.ppo.lora.merged=true", "lora.rank beside it: without one all weights are trained, got true"),
    "lora.alpha": ("steps.ppo.lora.rank=4 steps.ppo.lora.alpha=0", "a number above 0, got 0"),
    "reward_functions.trl.rewards:think_format_reward": (
        "steps.ppo.reward_functions={trl.rewards:think_format_reward:inf}",
        "a finite number, got inf",
    ),
    "ptx_examples_per_episode": (
        "steps.ppo.ptx_coef=1 steps.ppo.inputs.text=text steps.ppo.ptx_examples_per_episode=0.001",
        "at least a row for a minibatch of 64",
    ),
    "ptx_coef": ("steps.ppo.ptx_coef=1", "0, or inputs.text too"),
    "ensemble_std_coef": ("steps.ppo.ensemble_std_coef=1", "0, or several in inputs.reward_model"),
    "reward_model_weights": ("steps.ppo.reward_model_weights=[1,2]", "none, or 1: one for each of inputs.reward_model"),
    "inputs.reward_model, reward_functions": (
        "~steps.ppo.inputs.reward_model",
        "at least one of them, got none: a reward model or a function of yours must say what a response is worth",
    ),
    "value_from": (
        "steps.ppo.inputs.value_model=reward steps.ppo.value_from=policy",
        "null beside inputs.value_model, which the value model starts from, got 'policy'",
    ),
    "samples_every": ("steps.ppo.samples_every=0", "a number above 0, got 0"),
    "kl_form": ("steps.ppo.kl_form=k1", "reward or k2 or k3, got 'k1'"),
    "schedule": ("steps.ppo.schedule=step", "constant or linear or cosine, got 'step'"),
    "on_nonfinite": ("steps.ppo.on_nonfinite=ignore", "stop or skip, got 'ignore'"),
    "update": ("steps.ppo.update=both", "joint or policy, got 'both'"),
    "sampling_precision": ("steps.ppo.sampling_precision=fp16", "fp32 or bf16, got 'fp16'"),
    "importance_cap": ("steps.ppo.importance_cap=0", "a number above 0, got 0"),
    "weights": ("steps.evaluate_ppo.weights=mean", "raw or ema, got 'mean'"),
}


@pytest.mark.parametrize("knob", mostly_slow(TOGETHER, [*TOGETHER][::4]))
def test_knobs_that_are_wrong_together_are_refused(knob: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given, allowed = TOGETHER[knob]
    step = "evaluate_ppo" if knob == "weights" else "ppo"
    assert main(["plan", "pipeline=quickstart", *given.split()]) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith(f"error: steps.{step}.{knob}: expected ")
    assert allowed in said
    assert "\n" not in said
    assert not list(here.iterdir())


@pytest.mark.parametrize("weight", ["inf", "nan"])
def test_weights_of_reward_models_are_finite(weight: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "pipeline=quickstart", f"steps.ppo.reward_model_weights=[{weight}]"]) == 2
    said = capsys.readouterr().err
    assert said == f"error: steps.ppo.reward_model_weights[0]: expected a finite number, got {weight}\n"


def test_a_function_of_the_users_own_is_in_the_key(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pipeline = here / "pipeline/mine.yaml"
    pipeline.parent.mkdir()
    pipeline.write_text(
        "# @package _global_\ndefaults: [quickstart, _self_]\nname: mine\n"
        "steps: {ppo: {reward_functions: {'rules:brevity': 0.5}}}\n"
    )
    arguments = ["plan", "pipeline=mine", "--config-dir", str(here), "--json"]
    assert main(arguments) == 2
    assert "steps.ppo.reward_functions: no module 'rules'" in capsys.readouterr().err
    keys = []
    for body in ("return [0.0 for text in completions]", "return [-len(text) for text in completions]"):
        (here / "rules.py").write_text(f"def brevity(completions, **others):\n    {body}\n")
        assert main(arguments) == 0
        steps = {step["step"]: step["key"] for step in json.loads(capsys.readouterr().out)}
        keys.append((steps["mine/ppo"], steps["mine/reward"]))
    assert keys[0][0] != keys[1][0]
    assert keys[0][1] == keys[1][1]


@pytest.mark.parametrize("case", mostly_slow(REFUSED, [*REFUSED][::3]))
def test_what_is_wrong_is_said_in_one_line(case: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, expected = REFUSED[case]
    assert refused(
        [*arguments, *([] if "artifacts" in arguments or "tracker.backend=mlflow" in arguments else ["tracker=none"])],
        capsys,
        here,
    ).startswith(expected)


def test_an_artifact_given_for_the_shape_of_a_model_is_told_where_it_belongs(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refused(["pretrain", "model=gpt2/pretrain", "data=path:corpus"], capsys, here)
    assert said.startswith("2 model=gpt2/pretrain: no such model")
    assert said.rstrip().endswith("; one that was trained is given as inputs.model=gpt2/pretrain")


def test_a_corrupt_input_stops_the_run_before_it_is_used(store: Path) -> None:
    (path,) = (store / "objects/sft").glob("*/model.safetensors")
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    done = align(
        *("run", "pipeline=toy", "--config-dir", CONF, f"store={store}", "tracker=none"),
        *("step=ppo", "steps.ppo.seed=9"),
        check=3,
    )
    assert "model.safetensors has sha256" in done.stderr.splitlines()[-1]
    assert len(list((store / "objects/ppo").iterdir())) == 1
    assert align("artifacts", "--store", store, "verify", check=3).stderr.startswith("error: ")


def test_a_run_ends_with_every_part_of_the_reward(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    toy = ["run", "pipeline=toy", "--config-dir", str(CONF), f"store={store}", "tracker=none"]
    assert main([*toy, "step=ppo"]) == 0
    shown = {line.split()[0] for line in capsys.readouterr().out.splitlines() if line.strip()}
    assert {"objective/score", "reward/model", "reward/length", "reward/missing_eos"} <= shown


def test_a_model_writes_at_each_temperature(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def written(*arguments: str) -> str:
        assert main(["sample", "toy/pretrain", "--store", str(finished), "--tokens", "8", *arguments]) == 0
        return capsys.readouterr().out

    both = written("Ada lives", "--temperature", "0,1")
    assert both.index("temperature 0") < both.index("temperature 1")
    assert both.count("Ada lives") == 2
    assert both == written("Ada lives", "--temperature", "0,1")
    assert written("Ada lives", "--temperature", "1", "--seed", "1") not in both
    for arguments, told in (
        (("toy/reward",), "toy/reward: expected a model, got a reward_model"),
        (
            ("toy/pretrain", "--temperature", "warm"),
            "align sample: argument --temperature: expected numbers, as in 0.7,1, got warm",
        ),
        (("toy/pretrain", "--top-p", "2"), "--top-p: expected a number above 0 and at most 1, got 2"),
    ):
        assert main(["sample", *arguments, "--store", str(finished)]) == 2
        assert told in capsys.readouterr().err


def test_a_tokenizer_beside_tokens_is_refused(finished: Path) -> None:
    data = ("data=toy/pretrain.tokens", "num_steps=1", f"store={finished}")
    done = align("plan", "pipeline=toy", "--config-dir", CONF, f"store={finished}", "--json")
    assert "toy/pretrain.tokens" in done.stdout
    told = align("pretrain", *data, "tokenizer=toy/tokenizer", check=2).stderr
    assert told == "error: inputs.tokenizer: the tokens have theirs; leave it out\n"
    assert (
        "no step 'tokns'"
        in align("pretrain", "data=tokns", "tokenizer=toy/tokenizer", f"store={finished}", check=2).stderr
    )


def test_reward_functions_are_named_on_the_command_line_as_in_yaml(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With Hydra's quoting: a backslash before each of : ( ) = and , that is not of the dictionary."""
    (here / "pipeline").mkdir()
    factory = "trl.rewards:get_soft_overlong_punishment(max_completion_len=48, soft_punish_cache=16)"
    (here / "pipeline/mine.yaml").write_text(
        "# @package _global_\ndefaults: [quickstart, _self_]\nname: mine\n"
        f"steps: {{ppo: {{reward_functions: {{'rules:brevity': 0.5, '{factory}': 2.0}}}}}}\n"
    )
    (here / "rules.py").write_text("def brevity(completions, **others): pass\n")
    quoted = factory.replace(":", r"\:").replace("(", r"\(").replace(")", r"\)").replace("=", r"\=")
    quoted = quoted.replace(",", r"\,")
    plans = []
    for given in (
        ["pipeline=mine", "--config-dir", str(here)],
        ["pipeline=quickstart", rf"steps.ppo.reward_functions={{rules\:brevity:0.5,{quoted}:2.0}}"],
    ):
        assert main(["plan", *given, "--json"]) == 0
        plans.append([step["key"] for step in json.loads(capsys.readouterr().out) if step["stage"] == "ppo"])
    assert plans[0] == plans[1]


def test_a_helper_of_a_reward_function_is_in_the_key_of_the_steps_that_call_it(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "rules.py").write_text("import helper\ndef f(**given): pass\n")
    options = [r"steps.ppo.reward_functions={rules\:f:1}", r"steps.evaluate_base.checks={mine:'rules:f'}"]
    options.append(r"steps.evaluate_sft.reward_functions={rules\:f:1}")
    keys = []
    for text in ("x = 1", "x = 2"):
        (here / "helper.py").write_text(text)
        assert main(["plan", "pipeline=quickstart", *options, "--json"]) == 0
        keys.append({step["step"]: step["key"] for step in json.loads(capsys.readouterr().out)})
    changed = {name.partition("/")[2] for name, key in keys[0].items() if keys[1][name] != key}
    assert changed == {"ppo", "evaluate_base", "evaluate_ppo", "evaluate_sft"}


def test_ppo_by_functions_alone_is_planned_with_a_value_model_from_the_policy(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "rules.py").write_text("def f(**given): pass\n")
    rule = r"steps.ppo.reward_functions={rules\:f:1}"
    assert main(["plan", "pipeline=quickstart", "~steps.ppo.inputs.reward_model", rule, "--json"]) == 0
    steps = {step["step"]: step for step in json.loads(capsys.readouterr().out)}
    ppo = steps["quickstart/ppo"]
    assert ppo["inputs"].keys() == {"policy", "prompts"}
    # The policy, and a copy of it with a scalar in place of its head.
    assert steps["quickstart/sft"]["parameters"] < ppo["parameters"] < 2 * steps["quickstart/sft"]["parameters"] + 1000
    of_weight_0 = r"steps.ppo.reward_functions={rules\:f:0}"
    assert main(["plan", "pipeline=quickstart", "~steps.ppo.inputs.reward_model", of_weight_0]) == 2
    assert "expected at least one of them, got none, all of weight 0: " in capsys.readouterr().err
    impossible = ["~steps.ppo.inputs.reward_model", rule, "steps.ppo.value_from=reward_model"]
    assert main(["plan", "pipeline=quickstart", *impossible]) == 2
    said = capsys.readouterr().err
    assert said == "error: steps.ppo.value_from: expected policy or null, because no inputs.reward_model is given\n"
    never_trained = ["~steps.ppo.inputs.reward_model", rule, "steps.ppo.update=policy", "steps.ppo.num_iterations=9"]
    assert main(["plan", "pipeline=quickstart", *never_trained]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: steps.ppo.update: expected joint, or a value_warmup_iterations above 0: ")


@pytest.mark.parametrize("knob", ["reward_functions", "lora"])
def test_a_list_where_names_have_values_is_refused_with_the_form(
    here: Path, capsys: pytest.CaptureFixture[str], knob: str
) -> None:
    assert main(["plan", "pipeline=quickstart", f"steps.ppo.{knob}=[a]"]) == 2
    key = f"steps.ppo.{knob}"
    assert (
        capsys.readouterr().err == f"error: {key}: expected names with values, as '{key}={{NAME: VALUE}}', got a list\n"
    )


@pytest.mark.parametrize(
    ("step", "said"),
    [
        ("sft: {num_train_epochs: 3}", "steps.sft.num_train_epochs: no such knob (did you mean steps.sft.num_epochs?)"),
        ("sft: {lora: 8}", "steps.sft.lora: expected its knobs, as in lora.rank=..., got 8"),
        ("ppo: {reward_functions: [a]}", "reward_functions: expected names with values, as"),
    ],
)
def test_a_pipeline_of_the_users_own_is_answered_as_the_command_line_is(
    here: Path, capsys: pytest.CaptureFixture[str], step: str, said: str
) -> None:
    (here / "pipeline").mkdir()
    head = "# @package _global_\ndefaults: [quickstart, _self_]\nname: mine\n"
    (here / "pipeline/mine.yaml").write_text(f"{head}steps: {{{step}}}\n")
    assert main(["plan", "pipeline=mine", "--config-dir", str(here)]) == 2
    line = capsys.readouterr().err.strip()
    assert said in line
    assert "\n" not in line
