"""Numbers that are not finite, and spikes, put into models while stages train: caught before the optimizer's step."""

from __future__ import annotations

import contextlib
import copy
import json
import math
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import mostly_slow
from stage_jobs import Dead, dying_after, job_at, job_with, log_of, made_by, planned, result_of
from tiny_models import sentinel_tokenizer, tiny_model, tiny_tokenizer
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from align.configs import Finetune, ModelConfig, Ppo, Pretrain, Reward, Sft, StageConfig, TextToText
from align.data.records import write_info, write_rows
from align.errors import HealthStop
from align.models.load import save_model
from align.pipeline.worker import run_stage
from align.runtime.job import Inputs, Job
from align.store.artifacts import Artifact

STEPS = 4
TINY = {"hidden_size": 32, "num_layers": 1, "dropout": 0.0}
CONFIGS: dict[str, Callable[..., StageConfig]] = {
    "pretrain": Pretrain,
    "sft": Sft,
    "reward": Reward,
    "ppo": Ppo,
    "finetune": Finetune,
    "text_to_text": TextToText,
}
KNOBS: dict[str, dict[str, Any]] = {
    "pretrain": {
        "model": ModelConfig(**TINY, num_heads=2),
        "num_steps": STEPS,
        "batch_size": 4,
        "sequence_length": 32,
        "eval_every": 100,
    },
    "sft": {"num_epochs": 1, "batch_size": 24, "learning_rate": 1e-3},
    "reward": {"batch_size": 6, "learning_rate": 1e-3},
    "ppo": {"num_iterations": STEPS, "rollout_batch_size": 8, "minibatch_size": 8, "max_new_tokens": 8},
    "finetune": {"task": "classification", "batch_size": 8, "num_epochs": 1, "learning_rate": 1e-3},
    "text_to_text": {
        "model": ModelConfig(**TINY, architecture="t5", num_heads=2),
        "num_steps": STEPS,
        "batch_size": 4,
        "input_length": 16,
        "target_length": 8,
        "eval_every": 100,
    },
}
INPUTS = {  # of the toy pipeline
    "pretrain": {"data": "pretrain.tokens"},
    "sft": {"model": "pretrain", "data": "demonstrations"},
    "reward": {"model": "sft", "data": "compare"},
    "ppo": {"policy": "sft", "reward_model": "reward", "prompts": "prompts"},
}


@pytest.fixture(scope="module")
def inputs(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Inputs]:
    found = {
        stage: Inputs({slot: made_by(finished, step) for slot, step in given.items()})
        for stage, given in INPUTS.items()
    }
    folder = tmp_path_factory.mktemp("inputs")

    def artifact(name: str, kind: str) -> tuple[Artifact, ...]:
        (folder / name).mkdir(exist_ok=True)
        return (Artifact(name, "a" * 64, kind, folder / name),)

    def rows(name: str, kind: str, row: Callable[[str], dict[str, Any]]) -> tuple[Artifact, ...]:
        made = artifact(name, kind)
        animals = ["cat", "dog"] * 16
        write_rows(folder / name, "train", [row(animal) for animal in animals])
        write_info(folder / name, source=f"path:{name}.jsonl")
        return made

    save_model(tiny_model("gpt2"), tiny_tokenizer(), artifact("gpt2", "model")[0].path)
    sentinel_tokenizer(20).save_pretrained(artifact("sentinels", "tokenizer")[0].path)
    found["finetune"] = Inputs(
        model=artifact("gpt2", "model"),
        data=rows("labels", "labelled", lambda animal: {"texts": [f"the {animal} ran"], "label": animal}),
    )
    messages = [{"role": "user", "content": "the mat"}]
    found["text_to_text"] = Inputs(
        tokenizer=artifact("sentinels", "tokenizer"),
        tasks=rows(
            "tasks",
            "demonstrations",
            lambda animal: {"messages": [*messages, {"role": "assistant", "content": animal}]},
        ),
    )
    return found


class Watched(Job):
    """Keep what each step left behind.

    Attributes:
        done: steps.
        state: gives the weights and the optimizers as they are now.
        kept: the same as the last step left them.
    """

    done = 0
    state: Callable[[], Any]
    kept: Any

    def __init__(self, *arguments: Any, **given: Any):
        super().__init__(*arguments, **given)
        save = self.resume.save_if_due

        def keep_and_save(step: int, state: Callable[[], Any]) -> None:
            self.before_save(step, state)
            self.done, self.state, self.kept = step, state, copy.deepcopy(state())
            save(step, state)

        self.resume.save_if_due = keep_and_save

    def before_save(self, step: int, state: Callable[[], Any]) -> None:
        """Look at a step's state before it is kept."""


Change = Callable[[torch.Tensor], torch.Tensor]


def times(factor: float) -> Change:
    return lambda output: output * factor


def in_gradient(factor: float) -> Change:
    """The output stays as it is, and what comes back through it does not."""

    def change(output: torch.Tensor) -> torch.Tensor:
        output = output.clone()
        if output.requires_grad:
            output.register_hook(lambda gradient: gradient * factor)
        return output

    return change


@contextlib.contextmanager
def faulty(job: Watched, step: int, change: Change, is_hit: Callable[[torch.nn.Module], bool]) -> Iterator[None]:
    """Change, in the step after `step`, what layers of models give."""

    def hook(module: torch.nn.Module, given: Any, output: Any) -> Any:
        return change(output) if job.done == step and is_hit(module) else None

    handle = register_module_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def embeds_to_learn(module: torch.nn.Module) -> bool:
    return isinstance(module, torch.nn.Embedding) and torch.is_grad_enabled()


def embeds_to_sample_or_score(module: torch.nn.Module) -> bool:
    return isinstance(module, torch.nn.Embedding) and not torch.is_grad_enabled()


def values_to_learn(module: torch.nn.Module) -> bool:
    return isinstance(module, torch.nn.Linear) and module.out_features == 1 and torch.is_grad_enabled()


def scores(module: torch.nn.Module) -> bool:
    return isinstance(module, torch.nn.Linear) and module.out_features == 1 and not torch.is_grad_enabled()


def normalises_to_learn(module: torch.nn.Module) -> bool:
    return "Norm" in type(module).__name__ and torch.is_grad_enabled()


def tensors(state: Any) -> list[torch.Tensor]:
    if isinstance(state, torch.Tensor):
        return [state]
    if isinstance(state, dict):
        state = list(state.values())
    return [tensor for part in state for tensor in tensors(part)] if isinstance(state, list | tuple) else []


def same(one: Any, other: Any) -> bool:
    found, kept = tensors(one), tensors(other)
    assert found
    return len(found) == len(kept) and all(map(torch.equal, found, kept))


def config(stage: str, **knobs: Any) -> StageConfig:
    return planned(CONFIGS[stage](**{"seed": 5, **KNOBS[stage], **knobs}))


def events_of(folder: Path) -> list[tuple[int, str]]:
    file = folder / "out/events.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
    return [(row["step"], row["name"]) for row in rows if row["name"] in ("nonfinite", "step_left_out")]


FAULTS: dict[str, tuple[Change, Callable[[torch.nn.Module], bool]]] = {
    "loss nan": (times(math.nan), embeds_to_learn),
    "loss inf": (times(math.inf), embeds_to_learn),
    "gradient nan": (in_gradient(math.nan), embeds_to_learn),
    "gradient inf": (in_gradient(math.inf), embeds_to_learn),
}
OF_PPO = {
    "sampled log-prob nan": (times(math.nan), embeds_to_sample_or_score),
    "sampled log-prob inf": (times(math.inf), embeds_to_sample_or_score),
    "score nan": (times(math.nan), scores),
    "score inf": (times(math.inf), scores),
    "value nan": (times(math.nan), values_to_learn),
    "value inf": (times(math.inf), values_to_learn),
    "value's gradient nan": (in_gradient(math.nan), values_to_learn),
}
USUAL = ("loss nan", "gradient inf", "score inf", "value nan")  # the other half takes as long again
CASES = [
    pytest.param(stage, name, *fault, id=f"{stage}-{name}", marks=[] if name in USUAL else pytest.mark.slow)
    for stage in CONFIGS
    for name, fault in (FAULTS | (OF_PPO if stage == "ppo" else {})).items()
]


@pytest.mark.parametrize(("stage", "name", "change", "is_hit"), CASES)
def test_a_number_that_is_not_finite_ends_the_run_before_it_reaches_a_weight(
    inputs, tmp_path, stage, name, change, is_hit
):
    step = random.Random(f"{stage} {name}").randrange(1, STEPS)
    job = job_at(tmp_path, Watched)
    unit = "iteration" if stage == "ppo" else "step"
    with faulty(job, step, change, is_hit), pytest.raises(HealthStop) as stopped:
        run_stage(config(stage), inputs[stage], job)
    said = str(stopped.value)
    assert said.startswith(f"test: {unit} {step + 1}: ")
    assert "\n" not in said
    assert stopped.value.exit_code == 4
    assert job.done == step
    if name not in ("value nan", "value inf", "value's gradient nan"):  # the policy's step was made before the value's
        assert same(job.state(), job.kept)
    assert all(tensor.isfinite().all() for tensor in tensors(job.state()))


@pytest.mark.parametrize("stage", CONFIGS)
@pytest.mark.parametrize("name", ["loss nan", pytest.param("gradient inf", marks=pytest.mark.slow)])
def test_where_asked_the_step_is_left_out_and_the_run_ends_well(inputs, tmp_path, stage, name):
    class Comparing(Watched):
        unchanged: list[int] = []  # noqa: RUF012

        def before_save(self, step: int, state: Callable[[], Any]) -> None:
            if self.done and same(weights(state()), weights(self.kept)):
                self.unchanged = [*self.unchanged, step]

    def weights(state: Any) -> Any:
        if stage == "ppo":
            return [state["learner"]["policy"], state["learner"]["value"]]
        return state.get("model") or state["parameters"]

    step = random.Random(f"{stage} {name} skipped").randrange(1, STEPS - 1)
    job = job_at(tmp_path, Comparing)
    with faulty(job, step, *FAULTS[name]):
        run_stage(config(stage, on_nonfinite="skip"), inputs[stage], job)
    assert job.unchanged == [step + 1]
    assert events_of(tmp_path) == [(step + 1, "nonfinite" if stage == "ppo" else "step_left_out")]
    logged = [row["step"] for row in log_of(tmp_path) if row["step"]]
    assert logged == list(range(1, job.done + 1))
    assert len(logged) >= STEPS


@pytest.mark.parametrize("stage", mostly_slow(CONFIGS, ["ppo"]))
def test_every_knob_of_the_optimizer_reaches_it(inputs, tmp_path, stage):
    def trained(**knobs: float) -> Any:
        job = job_at(tmp_path / "".join(map(str, knobs.items())), Watched)
        adam = {"optimizer": "adamw"} if stage == "text_to_text" else {}
        run_stage(config(stage, **adam, **knobs), inputs[stage], job)
        return job.kept

    usual = trained()
    assert same(trained(), usual)
    others = {"beta1": 0.5, "beta2": 0.7, "adam_epsilon": 0.1, "weight_decay": 0.3, "max_grad_norm": 1e-4}
    for name, value in others.items():
        assert not same(trained(**{name: value}), usual), name


SUPERVISED = [stage for stage in CONFIGS if stage != "ppo"]
LONGER: dict[str, dict[str, Any]] = {  # at least 14 steps
    "pretrain": {"num_steps": 16},
    "sft": {"num_epochs": 4},
    "reward": {"num_epochs": 2},
    "finetune": {"num_epochs": 4},
    "text_to_text": {"num_steps": 16},
}


class Always(int):
    """Equal to every step."""

    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = int.__hash__


@pytest.mark.parametrize("stage", mostly_slow(SUPERVISED, ["sft"]))
def test_ten_steps_in_a_row_that_are_left_out_end_the_run_also_when_it_was_resumed(inputs, tmp_path, stage):
    broken = config(stage, on_nonfinite="skip", **LONGER[stage])

    def log_and_stop(log: Callable[..., None], metrics: Any, step: int) -> None:
        log(metrics, step)
        if step == 5:
            raise KeyboardInterrupt

    stopping = type("Stopping", (job_with({"log.metrics": log_and_stop}), Watched), {})
    job = job_at(tmp_path, stopping, checkpoint_seconds=0)
    with faulty(job, Always(), *FAULTS["loss nan"]), pytest.raises(KeyboardInterrupt):
        run_stage(broken, inputs[stage], job)
    job = job_at(tmp_path, Watched, checkpoint_seconds=0)
    with faulty(job, Always(), *FAULTS["loss nan"]), pytest.raises(HealthStop, match=r"step 10: .* tenth"):
        run_stage(broken, inputs[stage], job)


@pytest.mark.parametrize("stage", mostly_slow(["sft", "reward", "finetune"], ["sft"]))
def test_a_checkpoint_of_code_that_kept_no_losses_is_resumed(inputs, tmp_path, stage):
    def without(last: Callable[[], Any]) -> Any:
        step, state = last()
        del state["recent"]
        return step, state

    with pytest.raises(Dead):
        run_stage(config(stage), inputs[stage], job_at(tmp_path / "a", dying_after(2), checkpoint_seconds=0))
    run_stage(config(stage), inputs[stage], job_at(tmp_path / "a", job_with({"resume.last": without})))
    run_stage(config(stage), inputs[stage], job_at(tmp_path / "b"))
    assert result_of(tmp_path / "a") == result_of(tmp_path / "b")


@pytest.mark.parametrize("stage", mostly_slow(["pretrain", "sft", "reward"], ["sft"]))
def test_half_of_all_steps_is_a_warm_up_too(inputs, tmp_path, stage):
    def rates(name: str, warmup: float) -> list[float]:
        run_stage(config(stage, warmup_steps=warmup), inputs[stage], job_at(tmp_path / name))
        return [row["learning_rate"] for row in log_of(tmp_path / name) if row["step"]]

    half = rates("half", 0.5)
    assert half == rates("steps", len(half) // 2)
    assert half.index(max(half)) == len(half) // 2 - 1
    assert half[0] == pytest.approx(max(half) / (len(half) // 2))


def test_finetune_is_warm_after_as_many_steps_as_given(inputs, tmp_path):
    run_stage(config("finetune", warmup_steps=2), inputs["finetune"], job_at(tmp_path))
    rates = [row["learning_rate"] for row in log_of(tmp_path)]
    left = [1 - step / (len(rates) + 1) for step in range(1, len(rates) + 1)]
    assert rates == pytest.approx([1e-3 * warm * part for warm, part in zip([0.5, 1, 1, 1], left, strict=True)])


def test_ten_iterations_of_ppo_without_a_step_end_the_run_also_when_it_was_resumed(inputs, tmp_path):
    """The weights are lost, say: every later rollout is left out, and nothing would come of the rest of the run."""

    def log_and_stop(metrics: Any, step: int) -> None:
        log(metrics, step)
        if step == 5:
            raise KeyboardInterrupt

    broken = config("ppo", on_nonfinite="skip", num_iterations=30)
    job = job_at(tmp_path, Watched, checkpoint_seconds=0)
    log, job.log.metrics = job.log.metrics, log_and_stop
    with faulty(job, Always(), *OF_PPO["score nan"]), pytest.raises(KeyboardInterrupt):
        run_stage(broken, inputs["ppo"], job)
    job = job_at(tmp_path, Watched, checkpoint_seconds=0)
    with faulty(job, Always(), *OF_PPO["score nan"]), pytest.raises(HealthStop, match=r"iteration 10: .* tenth"):
        run_stage(broken, inputs["ppo"], job)
    assert len(log_of(tmp_path)) == 9


def test_a_spike_of_the_loss_to_ten_times_its_size_is_left_out_where_asked(inputs, tmp_path):
    step = 11
    job = job_at(tmp_path, Watched)
    with faulty(job, step, times(1000.0), normalises_to_learn):
        run_stage(config("pretrain", num_steps=13, max_loss_rise=1.0), inputs["pretrain"], job)
    losses = [row["loss"] for row in log_of(tmp_path)]
    assert losses[step] > 10 * losses[step - 1]
    assert events_of(tmp_path) == [(step + 1, "step_left_out")]


@pytest.mark.parametrize("stage", mostly_slow(CONFIGS, ["ppo"]))
def test_a_gradient_of_ten_times_its_size_makes_the_step_that_it_would_have_made(inputs, tmp_path, stage):
    """All gradients are clipped here, so of a larger one the direction alone is left."""

    def trained(name: str, *larger: int) -> tuple[list[dict[str, Any]], Any]:
        job = job_at(tmp_path / name, Watched)

        def hook(module: torch.nn.Module, given: Any) -> None:
            for parameter in module.parameters(recurse=False):
                if parameter.requires_grad and id(parameter) not in seen:
                    seen.add(id(parameter))
                    parameter.register_hook(lambda gradient: gradient * (10.0 if job.done in larger else 1.0))

        seen: set[int] = set()
        handle = register_module_forward_pre_hook(hook)
        try:
            run_stage(config(stage, max_grad_norm=1e-3), inputs[stage], job)
        finally:
            handle.remove()
        return log_of(tmp_path / name), job.kept

    (log, weights), (log_of_larger, weights_of_larger) = trained("usual"), trained("larger", 2)
    norm = "policy/grad_norm" if stage == "ppo" else "grad_norm"
    ratios = [row[norm] / usual[norm] for row, usual in zip(log_of_larger, log, strict=True) if norm in usual]
    assert ratios[:4] == pytest.approx([1.0, 1.0, 10.0, 1.0], rel=1e-3)
    assert events_of(tmp_path / "larger") == []
    for tensor, usual in zip(tensors(weights_of_larger), tensors(weights), strict=True):
        assert torch.allclose(tensor.double(), usual.double(), rtol=1e-3, atol=1e-5)
