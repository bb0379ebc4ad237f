"""Names that a stage does not have: each points at a knob of that stage, or at none."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
from conftest import mostly_slow

from align.cli.main import main
from align.configs import STAGES, RunConfig
from align.configs.other_names import OURS, meant_knob

ASKED_FOR = (
    "max_steps max_seq_length max_length num_train_epochs per_device_train_batch_size gradient_accumulation_steps beta "
    "lr kl_penalty bf16 fp16 warmup_ratio output_dir report_to lora_r lora_alpha model_name_or_path dataset_name"
).split()


def paths(config: Any, prefix: str = "") -> Iterator[str]:
    """The knobs of an object, as a user writes them."""
    for knob in fields(config):
        value = getattr(config, knob.name)
        if is_dataclass(value):
            yield from paths(value, f"{prefix}{knob.name}.")
        elif knob.name != "inputs":
            yield prefix + knob.name


def known(stage: str) -> set[str]:
    cls = STAGES[stage]
    return {*paths(cls()), *paths(RunConfig()), *(f"inputs.{slot}" for slot in (*cls.INPUTS, *cls.OPTIONAL))}


@pytest.mark.parametrize("stage", STAGES)
def test_what_is_offered_exists_in_that_stage(stage: str) -> None:
    names = known(stage)
    others = {name.rpartition(".")[2] for other in STAGES for name in known(other)}
    for name in (*OURS, *others, *(f"{name}s" for name in names), "lora.rnak", "hardware.gpus"):
        assert meant_knob(STAGES[stage], name) in {*names, None}


def test_every_name_of_the_table_leads_somewhere_and_is_none_of_ours() -> None:
    everywhere = {name for stage in STAGES for name in known(stage)}
    for name, ours in OURS.items():
        assert set(ours) <= everywhere, name
        assert name not in everywhere
    assert OURS.keys() >= {*ASKED_FOR}


@pytest.mark.parametrize(
    ("stage", "name", "ours"),
    [
        ("sft", "max_steps", None),  # it counts epochs
        ("sft", "num_train_epochs", "num_epochs"),
        ("ppo", "num_train_epochs", None),  # its num_epochs are passes over one rollout
        ("ppo", "num_ppo_epochs", "num_epochs"),
        ("ppo", "num_generations", "group_size"),
        ("sft", "eval_steps", None),
        ("pretrain", "eval_steps", "eval_every"),
        ("sft", "lora.target_modules", None),
        ("sft", "save_steps", None),  # seconds here
        ("sft", "micro_batch_size", None),  # tokens here
        ("data", "max_length", None),  # characters here
        ("data", "data", "source"),
        ("import_model", "model", "source"),
        ("ppo", "model", "inputs.policy"),
        ("pretrain", "max_steps", "num_steps"),
        ("sft", "max_seq_length", "sequence_length"),
        ("ppo", "max_length", None),  # of the response alone here
        ("ppo", "beta", "kl_coef"),
        ("sft", "beta", None),
        ("sft", "warmup_ratio", "warmup_steps"),
        ("sft", "num_warmup_steps", "warmup_steps"),
        ("finetune", "warmup_ratio", "warmup_steps"),
        ("ppo", "warmup_ratio", None),  # in iterations here
        ("ppo", "per_device_train_batch_size", "rollout_batch_size"),
        ("ppo", "model_name_or_path", "inputs.policy"),
        ("import_model", "model_name_or_path", "source"),
        ("data", "dataset_name", "source"),
        ("sft", "rank", "lora.rank"),
        ("sft", "num_processes", "hardware.num_processes"),
        ("pretrain", "num_layers", "model.num_layers"),
        ("ppo", "policy", "inputs.policy"),
        ("sft", "clip_rang", None),  # PPO's
        ("sft", "learning_rat", "learning_rate"),
    ],
)
def test_the_knob_that_was_meant(stage: str, name: str, ours: str | None) -> None:
    assert meant_knob(STAGES[stage], name) == ours


TOLD = {
    "sft lora_r=8": "lora_r: no such knob (did you mean lora.rank?)",
    "ppo kl_penalty=1": "kl_penalty: no such knob (did you mean kl_coef?)",
    "sft max_steps=3": "max_steps: no such knob; sft counts epochs: num_epochs; align sft --help",
    "sft warmup_ratio=3": "warmup_ratio: no such knob (did you mean warmup_steps?)",
    "ppo target_kl=0.1": "target_kl: no such knob; kl_goal is the KL that kl_coef adapts to (nats per response), stop_",
    "sft save_steps=3": "sft counts seconds between checkpoints: hardware.checkpoint_seconds; align",
    "data max_length=3": "data counts characters: max_chars; align",
    "ppo max_steps=3": "ppo counts iterations (a rollout and the steps on it): num_iterations",
    "ppo num_train_epochs=3": "ppo counts iterations (a rollout and the steps on it): num_iterations",
    "grpo num_generations=3": "num_generations: no such knob (did you mean group_size?)",
    "data data=path:x": "data: no such knob (did you mean source?)",
    "import_model model=path:x": "model: no such knob (did you mean source?)",
    "run pipeline=quickstart max_steps=3": "knob is steps.STEP.KNOB: steps.pretrain.num_steps, steps.sft.num_epo",
    "run pipeline=quickstart save_steps=3": "there is: hardware.checkpoint_seconds (counts seconds between checkp",
    "run pipeline=quickstart lr=3": "steps.STEP.KNOB: steps.pretrain.learning_rate, steps.sft.learning_rate",
    "sft output_dir=x": "output_dir: no such knob (did you mean store?)",
    "sft clip_range=1": "clip_range: no such knob; ppo, grpo, rloo have it",
    "sft zzz=1": "zzz: no such knob; inputs: model, data, text; align sft --help",
    "run pipeline=quickstart steps.ppo.beta=1": "steps.ppo.beta: no such knob (did you mean steps.ppo.kl_coef?)",
    "run pipeline=quickstart steps.ppo.num_gpus=1": "(did you mean hardware.num_processes?)",
    "run pipeline=quickstart steps.sft.model=x": "steps.sft.model: no such knob (did you mean steps.sft.inputs.",
    "run pipeline=quickstart steps.sft.inputs.modl=x": "steps.sft.inputs.modl: sft has no such input (did you",
    "run pipeline=quickstart steps.pppo.kl_coef=1": "steps.pppo: no such step (did you mean ppo?); steps: text, ",
    "run pipeline=quickstart kl_coef=1": "kl_coef: no such setting; a step's knob is steps.STEP.kl_coef, of ppo",
    "run pipeline=quickstart output_dir=x": "output_dir: no such knob (did you mean store?)",
    "model model=gpt2 hiden_size=1": "(did you mean hidden_size?)",
    "run pipeline=quickstart steps.ppo.beta=1,2 -m": "steps.ppo.beta: no such knob (did you mean steps.ppo.kl_c",
}


@pytest.mark.parametrize("command", mostly_slow(TOLD, [*TOLD][::4]))
def test_the_command_line_says_it(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(command.split()) == 2
    err = capsys.readouterr().err
    assert TOLD[command] in err
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())
