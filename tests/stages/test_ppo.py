"""The PPO stage on the toy pipeline's own models: identities, exact resumes, and what its knobs do."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import json
import math
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import mostly_slow
from peft import PeftModel
from stage_jobs import Dead, dying_after, job_at, job_with, log_of, made_by, planned, result_of
from transformers import AutoModelForCausalLM

from align.configs import LoraConfig, Ppo, RunConfig
from align.data.records import read_rows
from align.errors import ConfigError, HealthStop, Preempted
from align.evals.text_loss import num_targets, summed_loss
from align.models.heads import load_scalar
from align.rl import models as actors_module
from align.rl import responses
from align.rl.rewards import RewardTerms
from align.rl.rollouts import choose_prompts
from align.rl.update import Learner, Plan
from align.runtime.job import Inputs, Job
from align.runtime.signals import Stop
from align.runtime.tracking import NoTracker
from align.sampling.local import LocalEngine
from align.stages import ppo
from align.store.checkpoints import load_checkpoint
from align.training.row_order import RowOrder

KNOBS: dict[str, Any] = {
    "num_iterations": 3,
    "rollout_batch_size": 8,
    "minibatch_size": 4,
    "num_epochs": 2,
    "learning_rate": 1e-3,
    "value_learning_rate": 1e-3,
    "warmup_iterations": 2,
    "max_new_tokens": 12,
    "kl_coef": 0.1,
    "seed": 5,
}
FULL: dict[str, Any] = {  # everything that has a state of its own
    **KNOBS,
    "num_iterations": 6,
    "schedule": "cosine",
    "kl_goal": 0.5,
    "kl_horizon": 40.0,
    "ptx_coef": 0.5,
    "ptx_examples_per_episode": 0.25,
    "samples_every": 2,
}


@pytest.fixture(scope="module")
def inputs(finished: Path) -> Inputs:
    return Inputs(
        policy=made_by(finished, "sft"),
        reward_model=made_by(finished, "reward"),
        prompts=made_by(finished, "prompts"),
        text=made_by(finished, "text"),
    )


def run(inputs: Inputs, folder: Path, hardware: dict[str, Any] | None = None, **knobs: Any) -> list[dict[str, float]]:
    """The metrics of each iteration."""
    ppo.run(planned(Ppo(**{**KNOBS, **knobs})), inputs, job_at(folder, **(hardware or {})))
    return log_of(folder)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The models and the learner of the runs that follow."""
    seen: dict[str, Any] = {}
    load, init = actors_module.load_actors, Learner.__init__

    def loading(*arguments: Any) -> Any:
        seen["actors"] = load(*arguments)
        return seen["actors"]

    def beginning(self: Learner, *arguments: Any) -> None:
        init(self, *arguments)
        seen["learner"] = self

    monkeypatch.setattr(ppo, "load_actors", loading)
    monkeypatch.setattr(Learner, "__init__", beginning)
    return seen


@pytest.fixture
def gradients(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, torch.Tensor]]:
    """The gradients of every step, which then is not made."""
    seen: list[dict[str, torch.Tensor]] = []

    def keep(self: Learner, name: str) -> None:
        if not seen or f"{name}.0" in seen[-1]:
            seen.append({})  # the other model's gradient of this minibatch goes in too
        seen[-1] |= {f"{name}.{i}": p.grad.clone() for i, p in enumerate(self._parameters[name])}
        self._optimizers[name].zero_grad()

    monkeypatch.setattr(Learner, "take_step", keep)
    return seen


@pytest.fixture
def plans(monkeypatch: pytest.MonkeyPatch) -> list[Plan]:
    """What each update was to do."""
    seen: list[Plan] = []
    update = Learner.update

    def noting(self: Learner, plan: Plan) -> Any:
        seen.append(plan)
        return update(self, plan)

    monkeypatch.setattr(Learner, "update", noting)
    return seen


def close(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor], rtol: float = 1e-4, atol: float = 1e-6) -> None:
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, two[name], rtol=rtol, atol=atol)


# -- identities --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("precision", "temperature"),
    mostly_slow([(p, t) for p in ("fp32", "bf16") for t in (1.0, 0.7)], [("fp32", 0.7), ("bf16", 1.0)]),
)
def test_the_first_minibatch_has_ratio_one_and_no_kl(inputs, tmp_path, precision, temperature):
    once = {"num_iterations": 2, "num_epochs": 1, "minibatch_size": 8, "max_grad_norm": 1e9}
    for row in run(inputs, tmp_path, {"micro_batch_tokens": 64}, precision=precision, temperature=temperature, **once):
        assert row["ppo/ratio"] == pytest.approx(1.0, abs=1e-6)
        assert row["ppo/approx_kl"] == 0.0
        assert row["ppo/clip_fraction"] == 0.0


def test_a_reward_model_that_is_held_in_bf16_scores_as_autocast_does(inputs, tmp_path, watched):
    """Its weights are rounded once instead of in every pass."""
    run(inputs, tmp_path, num_iterations=1, precision="bf16")
    held = watched["actors"].reward_model(inputs.one("reward_model").path)
    whole = load_scalar(inputs.one("reward_model").path)
    assert sum(p.nbytes for p in held.parameters()) < 0.8 * sum(p.nbytes for p in whole.parameters())
    given = (torch.arange(40)[None], torch.arange(40)[None], torch.tensor([9, 20, 39]))
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(held(*given), whole(*given))


def test_a_second_minibatch_moves_the_ratio(inputs, tmp_path):
    assert run(inputs, tmp_path, num_iterations=1)[0]["ppo/approx_kl"] > 0


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_first_policy_has_no_kl_to_the_reference(inputs, tmp_path, precision):
    first, second = run(inputs, tmp_path, num_iterations=2, precision=precision)
    assert first["objective/kl"] == 0.0
    assert second["objective/kl"] != 0.0


def test_gradients_do_not_hang_on_the_micro_batches(inputs, tmp_path, gradients):
    once = {"num_iterations": 1, "num_epochs": 1, "max_grad_norm": 1e9}
    text = {"ptx_coef": 0.5, "ptx_examples_per_episode": 1.0, "ptx_length": 16}
    for name, tokens in (("small", 24), ("large", 4096)):
        run(inputs, tmp_path / name, {"micro_batch_tokens": tokens}, **once, **text)
    close(gradients[0], gradients[2])
    close(gradients[1], gradients[3])


def test_padding_takes_no_part_in_a_gradient(inputs, tmp_path, gradients, monkeypatch):
    update = Learner.update

    def widened(self: Learner, plan: Any) -> Any:
        def wide(x: torch.Tensor) -> torch.Tensor:
            fill = False if x.dtype == torch.bool else math.nan
            return torch.cat([x, torch.full((len(x), 5), fill, dtype=x.dtype)], 1)

        samples = plan.rollouts.samples
        samples = samples._replace(sampled_logprobs=wide(samples.sampled_logprobs), mask=wide(samples.mask))
        rollouts = plan.rollouts._replace(
            samples=samples, **{n: wide(getattr(plan.rollouts, n)) for n in ("logprobs", "ref_logprobs", "values")}
        )
        targets = plan.targets._replace(advantages=wide(plan.targets.advantages), returns=wide(plan.targets.returns))
        return update(self, plan._replace(rollouts=rollouts, targets=targets))

    run(inputs, tmp_path / "narrow", num_iterations=1)
    monkeypatch.setattr(Learner, "update", widened)
    run(inputs, tmp_path / "wide", num_iterations=1)
    half = len(gradients) // 2
    for one, two in zip(gradients[:half], gradients[half:], strict=True):
        close(one, two, rtol=0, atol=0)


def test_a_minibatch_is_a_mean_over_tokens_and_not_over_responses(inputs, tmp_path, gradients, watched):
    """Two halves of a minibatch, weighed by their response tokens, are the whole."""
    knobs = {"num_iterations": 1, "num_epochs": 1, "max_grad_norm": 1e9, "max_new_tokens": 40}
    run(inputs, tmp_path / "halves", minibatch_size=4, **knobs)
    run(inputs, tmp_path / "whole", minibatch_size=8, **knobs)
    first, second, whole = gradients
    lengths = []
    original = ppo.lay_out
    samples_seen: list[Any] = []

    def layout(cfg: Ppo, samples: Any, *rest: Any) -> Any:
        samples_seen.append(samples)
        found = original(cfg, samples, *rest)
        lengths.append([sum(len(samples.responses[i]) for group in m for i in group) for m in found])
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ppo, "lay_out", layout)
        run(inputs, tmp_path / "again", minibatch_size=4, **knobs)
    ((one, two),) = lengths
    assert one != two
    close({n: (one * first[n] + two * second[n]) / (one + two) for n in first}, whole, rtol=1e-3, atol=1e-5)


def test_the_reference_and_the_reward_model_stay_and_get_no_gradient(inputs, tmp_path, watched, monkeypatch):
    models: list[Any] = []
    judges = ppo.load_judges
    monkeypatch.setattr(ppo, "load_judges", lambda *a: models.append(judges(*a)) or models[0])
    run(inputs, tmp_path)
    reference, reward = watched["actors"].reference, models[0].models[0].model
    fresh = AutoModelForCausalLM.from_pretrained(inputs.one("policy").path).state_dict()
    assert all(torch.equal(value, fresh[name]) for name, value in reference.state_dict().items())
    assert any(not torch.equal(value, fresh[name]) for name, value in watched["actors"].policy.state_dict().items())
    for parameter in (*reference.parameters(), *reward.parameters()):
        assert parameter.grad is None
        assert not parameter.requires_grad


def test_ptx_adds_its_gradient_times_its_coefficient(inputs, tmp_path, gradients, watched):
    once = {"num_iterations": 1, "num_epochs": 1, "minibatch_size": 8, "max_grad_norm": 1e9, "warmup_iterations": 0}
    text = {"ptx_coef": 0.7, "ptx_examples_per_episode": 0.5}
    run(inputs, tmp_path / "plain", **once)
    (row,) = run(inputs, tmp_path / "mixed", **once, **text)
    plain, mixed = gradients
    actors, learner = watched["actors"], watched["learner"]
    rows = learner._text[RowOrder(len(learner._text), KNOBS["seed"], "ppo", "text").take(0, 4)]
    loss = summed_loss(actors.policy, rows) / num_targets(rows)
    loss.backward()
    expected = {
        f"policy.{i}": plain[f"policy.{i}"] + 0.7 * p.grad for i, p in enumerate(actors.policy_parameters.values())
    }
    close(expected, {name: value for name, value in mixed.items() if name.startswith("policy")})
    own = torch.cat([plain[name].flatten() for name in expected])
    added = torch.cat([0.7 * p.grad.flatten() for p in actors.policy_parameters.values()])
    assert row["ptx/loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert row["policy/grad_norm"] == pytest.approx(own.norm().item(), rel=1e-4)
    assert row["ptx/text_grad_norm"] == pytest.approx(added.norm().item(), rel=1e-4)
    assert row["ptx/policy_share"] == pytest.approx((own.norm() / (own.norm() + added.norm())).item(), rel=1e-4)
    assert row["ptx/grad_cosine"] == pytest.approx((own @ added / own.norm() / added.norm()).item(), abs=1e-4)


def test_the_two_gradients_of_ptx_are_clipped_each_by_itself(inputs, tmp_path, gradients):
    once = {"num_iterations": 1, "num_epochs": 1, "minibatch_size": 8, "warmup_iterations": 0}
    text = {"ptx_coef": 0.7, "ptx_examples_per_episode": 0.5}
    run(inputs, tmp_path / "plain", max_grad_norm=1e9, **once)
    run(inputs, tmp_path / "mixed", max_grad_norm=1e9, **once, **text)
    (row,) = run(inputs, tmp_path / "clipped", max_grad_norm=1e-3, **once, **text)
    own, both, clipped = (
        torch.cat([value.flatten() for name, value in seen.items() if name.startswith("policy")]) for seen in gradients
    )
    added = both - own
    expected = 1e-3 * own / own.norm() + 1e-3 * added / added.norm()
    torch.testing.assert_close(clipped, expected, rtol=1e-3, atol=1e-8)
    assert row["policy/grad_norm"] == pytest.approx(own.norm().item(), rel=1e-4)  # before it was clipped
    assert row["ptx/policy_share"] == pytest.approx(0.5)


def test_the_ptx_gradient_is_the_slope_of_ppo_loss_plus_text_loss(inputs, tmp_path, watched, plans, monkeypatch):
    """Along the gradient, the sum of both losses changes as the gradient says, by finite differences."""
    knobs = {"num_iterations": 1, "num_epochs": 1, "minibatch_size": 8, "max_grad_norm": 1e9}
    slopes: list[tuple[float, float]] = []

    def measure(self: Learner, name: str) -> None:
        if name != "policy":
            return
        parameters = self._parameters["policy"]
        direction = [p.grad / math.sqrt(sum(float((q.grad**2).sum()) for q in parameters)) for p in parameters]
        slope = sum(float((p.grad * d).sum()) for p, d in zip(parameters, direction, strict=True))
        losses = []
        for sign in (1, -1):
            with torch.no_grad():
                for p, d in zip(parameters, direction, strict=True):
                    p.add_(d, alpha=sign * 1e-2)
            self._optimizers["policy"].zero_grad()
            totals = self._gradients(plans[0], "policy", plans[0].layouts[0][0], 0)
            losses.append(float(totals["policy/loss"]) + 0.7 * float(totals["ptx/loss"]))
            with torch.no_grad():
                for p, d in zip(parameters, direction, strict=True):
                    p.sub_(d, alpha=sign * 1e-2)
        slopes.append((slope, (losses[0] - losses[1]) / 2e-2))

    monkeypatch.setattr(Learner, "take_step", measure)
    run(inputs, tmp_path, ptx_coef=0.7, ptx_examples_per_episode=0.5, **knobs)
    ((analytic, numeric),) = slopes
    assert numeric == pytest.approx(analytic, rel=1e-2)


def test_the_average_is_of_every_optimizer_step(inputs, tmp_path, watched):
    begun = AutoModelForCausalLM.from_pretrained(inputs.one("policy").path).state_dict()
    run(inputs, tmp_path, num_iterations=1, num_epochs=1, minibatch_size=8, ema_decay=0.75, warmup_iterations=0)
    kept = AutoModelForCausalLM.from_pretrained(tmp_path / "out/ema").state_dict()
    moved = AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    for name, start in begun.items():
        torch.testing.assert_close(kept[name], 0.75 * start + 0.25 * moved[name], rtol=0, atol=3e-7)


def test_no_pass_has_more_tokens_than_asked_and_layers_compute_twice_where_asked(inputs, tmp_path, passes):
    """Of sampling, scoring, both models and the pretraining text."""
    hardware = {"micro_batch_tokens": 64, "activation_checkpointing": True, "generation_batch_size": 1}
    text = {"ptx_coef": 0.5, "ptx_examples_per_episode": 2.0, "ptx_length": 16}
    run(inputs, tmp_path, hardware, num_iterations=1, **text)
    assert max(passes.tokens) <= 64
    assert len(passes.twice) == 2  # the policy's layer and the value model's


@pytest.mark.parametrize(
    "lora",
    mostly_slow([{}, {"lora": LoraConfig(rank=2), "value_from": "policy"}], [{}]),
    ids=["full", "lora"],
)
def test_activation_checkpointing_changes_nothing(inputs, tmp_path, lora):
    """Under LoRA the layers of both models are computed again with the adapter of their forward pass on."""
    knobs = {
        "num_iterations": 2,
        "value_warmup_iterations": 0,
        "ptx_coef": 0.5,
        "ptx_examples_per_episode": 0.25,
        **lora,
    }
    plain = run(inputs, tmp_path / "plain", **knobs)
    again = run(inputs, tmp_path / "again", {"activation_checkpointing": True}, **knobs)
    for one, other in zip(plain, again, strict=True):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-6)


# -- exact resumes -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def unbroken(inputs, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("unbroken")
    ppo.run(planned(Ppo(**FULL)), inputs, job_at(folder, checkpoint_seconds=0))
    return folder


def broken(inputs: Inputs, folder: Path, after: int, **knobs: Any) -> None:
    job = job_at(folder, dying_after(after), checkpoint_seconds=0)
    with pytest.raises(Dead):
        ppo.run(planned(Ppo(**{**FULL, **knobs})), inputs, job)


@pytest.mark.parametrize("after", mostly_slow(range(1, 6), [3]))
def test_a_run_that_died_ends_as_if_it_had_not(inputs, unbroken, tmp_path, after):
    broken(inputs, tmp_path, after)
    ppo.run(planned(Ppo(**FULL)), inputs, job_at(tmp_path, checkpoint_seconds=0))
    assert result_of(tmp_path) == result_of(unbroken)
    one, two = (load_checkpoint(folder / "checkpoints") for folder in (tmp_path, unbroken))
    assert one is not None
    assert two is not None
    assert digest(without_log(one[1])) == digest(without_log(two[1]))


def test_a_run_that_died_after_its_last_iteration_keeps_its_metrics(inputs, tmp_path):
    whole = ppo.run(planned(Ppo(**KNOBS)), inputs, job_at(tmp_path / "whole", checkpoint_seconds=0))
    with pytest.raises(Dead):
        ppo.run(planned(Ppo(**KNOBS)), inputs, job_at(tmp_path / "died", dying_after(3), checkpoint_seconds=0))
    assert ppo.run(planned(Ppo(**KNOBS)), inputs, job_at(tmp_path / "died", checkpoint_seconds=0)) == whole


def without_log(whole: dict[str, Any]) -> Any:
    """A saved state without its times."""
    metrics = whole["state"]["metrics"]
    return whole["state"] | {"metrics": {n: v for n, v in metrics.items() if not n.startswith("time/")}}


def digest(state: Any) -> str:
    if isinstance(state, torch.Tensor):
        return hashlib.sha256(state.contiguous().numpy().tobytes()).hexdigest()
    if isinstance(state, dict):
        return str({str(key): digest(value) for key, value in state.items()})
    if isinstance(state, list | tuple):
        return str([digest(value) for value in state])
    return repr(state)


def forget(state: dict[str, Any], part: str, start: dict[str, Any]) -> None:
    """Put a part of the state back to where the run began."""
    if part == "kl_coef":
        state["kl_coef"] = FULL["kl_coef"]
    elif part in ("policy", "value", "average"):
        state["learner"][part] = start[part]
    else:
        name, _, which = part.partition(":")
        for entry in state["learner"]["optimizers"][name]["state"].values():
            entry[which] = torch.zeros_like(entry[which])


MOMENTS = [f"{model}:{what}" for model in ("policy", "value") for what in ("exp_avg", "exp_avg_sq", "step")]
PARTS = ["kl_coef", "policy", "value", "average", *MOMENTS]


@pytest.mark.parametrize("part", mostly_slow(PARTS, ["value:exp_avg"]))
def test_every_part_of_the_state_is_needed(inputs, unbroken, tmp_path, watched, part):
    broken(inputs, tmp_path, 3)
    policy = AutoModelForCausalLM.from_pretrained(inputs.one("policy").path)
    start = {"policy": dict(policy.named_parameters()), "average": [p.detach() for p in policy.parameters()]}
    value = actors_module.load_scalar(inputs.one("reward_model").path)
    start["value"] = dict(value.named_parameters())

    def forgetful(last: Callable[[], Any]) -> Any:
        found = last()
        assert found is not None
        forget(found[1], part, start)
        return found

    job = job_at(tmp_path, job_with({"resume.last": forgetful}), checkpoint_seconds=0)
    ppo.run(planned(Ppo(**FULL)), inputs, job)
    assert result_of(tmp_path) != result_of(unbroken)


@pytest.mark.parametrize(
    ("where", "late"),
    [
        pytest.param("rollout", False, id="in time for the rollout", marks=pytest.mark.slow),
        pytest.param("update", True, id="too late for the update"),
        pytest.param("rollout", True, id="too late for the rollout", marks=pytest.mark.slow),
        pytest.param("update", False, id="in time for the update", marks=pytest.mark.slow),
    ],
)
def test_a_stop_ends_the_iteration_within_its_grace_and_loses_nothing(
    inputs, unbroken, tmp_path, monkeypatch, where, late
):
    """An iteration that ends within 30 s of the signal is ended and saved; else the last checkpoint is what counts."""
    stop = Stop()
    calls = {"seen": 0}
    piece, name = (Learner, "backward") if where == "update" else (LocalEngine, "load")
    original = getattr(piece, name)

    def counting(self: Any, *arguments: Any) -> Any:
        calls["seen"] += where == "rollout" or arguments[1] == "value"
        # Four minibatches an iteration: the eleventh is in the middle of the third.
        if calls["seen"] == (11 if where == "update" else 3):
            stop.signal, stop.asked_at = signal.SIGTERM, time.monotonic() - (60 if late else 0)
        return original(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(piece, name, counting)
        with pytest.raises(Preempted) as error:
            ppo.run(planned(Ppo(**FULL)), inputs, job_at(tmp_path, stop=stop, checkpoint_seconds=0))
    assert error.value.exit_code == 143
    found = load_checkpoint(tmp_path / "checkpoints")
    assert found is not None
    assert found[0] == (2 if late else 3)
    ppo.run(planned(Ppo(**FULL)), inputs, job_at(tmp_path, checkpoint_seconds=0))
    assert result_of(tmp_path) == result_of(unbroken)


def test_checkpoints_are_twenty_times_as_far_apart_as_one_takes(tmp_path, monkeypatch):
    """A clock of the test's own; a save takes 3 s of it and a step 5 s."""
    clock = {"now": 0.0}
    monkeypatch.setattr(time, "monotonic", lambda: clock["now"])
    job = job_at(tmp_path, checkpoint_seconds=20)
    saved_at = []

    def state() -> dict[str, int]:
        clock["now"] += 3
        saved_at.append(clock["now"])
        return {}

    for step in job.steps(40):
        clock["now"] += 5
        job.resume.save_if_due(step + 1, state)
    assert saved_at == [23.0, 86.0, 149.0, 212.0]


@pytest.mark.parametrize(
    ("before", "since", "stops"), [(20, 5, False), (100, 5, True), (20, 29, False), (20, 31, True), (None, 5, False)]
)
def test_a_step_is_left_where_it_would_end_30_s_after_the_signal(tmp_path, monkeypatch, before, since, stops):
    """By a clock of the test's own: the step before took `before` s, and the signal came `since` s ago."""
    clock = {"now": 1000.0}
    monkeypatch.setattr(time, "monotonic", lambda: clock["now"])
    stop = Stop()
    job = job_at(tmp_path, stop=stop)
    for step in job.steps(2):
        if step == 0 and before is not None:
            clock["now"] += before
            continue
        stop.signal, stop.asked_at = signal.SIGTERM, clock["now"]
        clock["now"] += since
        with pytest.raises(Preempted) if stops else contextlib.nullcontext():
            job.resume.stop_if_asked()
        break


def test_the_tracker_gets_the_table_of_rows_as_long_as_it_is_so_far(tmp_path):
    seen: list[Any] = []

    class Noting(NoTracker):
        def table(self, name: str, columns: Any, rows: Any) -> None:
            seen.append((name, list(columns), list(rows)))

    (tmp_path / "out").mkdir()
    job = Job("test", tmp_path, RunConfig(), Noting())
    job.log.append("samples", 1, [{"response": "a", "score": 1.0}])
    job.log.append("samples", 2, [{"response": "b", "score": None, "extra": 3}])
    assert seen[0] == ("samples", ["step", "response", "score"], [[1, "a", 1.0]])
    assert seen[1] == ("samples", ["step", "response", "score", "extra"], [[1, "a", 1.0, None], [2, "b", None, 3]])


def test_a_run_that_died_before_it_saved_begins_its_log_again(inputs, tmp_path):
    job = job_at(tmp_path, dying_after(2))
    with pytest.raises(Dead):
        ppo.run(planned(Ppo(**KNOBS)), inputs, job)
    with (tmp_path / "out/metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "torn')
    assert [row["step"] for row in run(inputs, tmp_path)] == [1, 2, 3]


def test_killed_while_it_publishes_it_publishes_again(inputs, tmp_path, monkeypatch):
    knobs = {"lora": LoraConfig(rank=4), "value_from": "policy", "num_iterations": 1}
    original = actors_module.LoraActors.save

    def dying(self: Any, folder: Path, tokenizer: Any) -> None:
        original(self, folder, tokenizer)
        raise Dead

    with monkeypatch.context() as patch:
        patch.setattr(actors_module.LoraActors, "save", dying)
        with pytest.raises(Dead):
            ppo.run(planned(Ppo(**{**KNOBS, **knobs})), inputs, job_at(tmp_path))
    run(inputs, tmp_path, **knobs)
    assert (tmp_path / "out/ema/adapter_model.safetensors").is_file()


@pytest.mark.slow
def test_an_adapter_run_that_died_ends_as_if_it_had_not(inputs, tmp_path):
    lora = {"lora": LoraConfig(rank=4), "value_from": "policy"}
    ppo.run(planned(Ppo(**{**FULL, **lora})), inputs, job_at(tmp_path / "whole"))
    broken(inputs, tmp_path / "died", 5, **lora)
    ppo.run(planned(Ppo(**{**FULL, **lora})), inputs, job_at(tmp_path / "died"))
    assert result_of(tmp_path / "whole") == result_of(tmp_path / "died")


# -- what is not finite ------------------------------------------------------------------------------------------


def poison(monkeypatch: pytest.MonkeyPatch, at_call: int, factor: float = math.nan) -> None:
    """From its `at_call`-th backward pass on, for one pass, the second episode's log-probs are not numbers."""
    original, calls = Learner.backward, {"seen": 0}
    likelihoods = actors_module.FullActors.policy_likelihoods
    bad: dict[str, Any] = {"ids": None}

    def backward(self: Learner, plan: Any, name: str, minibatch: Any) -> Any:
        calls["seen"] += name == "policy"
        if calls["seen"] == at_call:
            first = minibatch[0][1]
            bad["ids"] = tuple(plan.rollouts.samples.responses[first])
            bad["prompt"] = plan.rollouts.samples.ids[first]
        elif calls["seen"] > at_call:
            bad["ids"] = None
        return original(self, plan, name, minibatch)

    def poisoned(self: Any, packed: Any, responses: Any, *rest: Any, **named: Any) -> Any:
        found = likelihoods(self, packed, responses, *rest, **named)
        at = 0
        logprobs = found.logprobs
        for response in responses:
            if tuple(response) == bad["ids"]:
                logprobs = torch.cat([logprobs[:at], logprobs[at : at + 1] * factor, logprobs[at + 1 :]])
            at += len(response)
        return found._replace(logprobs=logprobs)

    monkeypatch.setattr(Learner, "backward", backward)
    monkeypatch.setattr(actors_module.FullActors, "policy_likelihoods", poisoned)
    poison.bad = bad  # type: ignore[attr-defined]


def test_a_policy_that_is_infinitely_far_is_not_taken_for_one_that_has_moved_far_enough(inputs, tmp_path, monkeypatch):
    poison(monkeypatch, at_call=2, factor=math.inf)
    with pytest.raises(HealthStop, match=r"ppo/approx_kl.* is not finite"):
        run(inputs, tmp_path, stop_kl_per_token=1e9, warmup_iterations=0)


def test_a_loss_that_is_not_finite_stops_before_the_step_and_names_the_episode(inputs, tmp_path, monkeypatch, watched):
    poison(monkeypatch, at_call=3)
    with pytest.raises(HealthStop, match=r"policy/loss.* is not finite; episodes of prompts \[\d+\]; lower") as error:
        run(inputs, tmp_path)
    assert f"[{poison.bad['prompt']}]" in str(error.value)  # type: ignore[attr-defined]
    assert all(torch.isfinite(p).all() for p in watched["actors"].policy_parameters.values())


def test_a_minibatch_that_is_not_finite_is_skipped_where_asked(inputs, tmp_path, monkeypatch, watched):
    poison(monkeypatch, at_call=3)
    rows = run(inputs, tmp_path, on_nonfinite="skip")
    assert [row["ppo/steps"] for row in rows] == [3.0, 4.0, 4.0]
    (event,) = [json.loads(line) for line in (tmp_path / "out/events.jsonl").read_text().splitlines()]
    assert (event["step"], event["name"]) == (1, "nonfinite")
    assert str(poison.bad["prompt"]) in event["message"]  # type: ignore[attr-defined]
    assert all(math.isfinite(value) for row in rows for value in row.values())


def test_a_value_that_is_not_finite_costs_the_value_model_s_step_alone(inputs, tmp_path, monkeypatch, watched):
    """One minibatch of one pass: the policy's weights are those of a run whose value model is well."""
    once = {"num_iterations": 1, "num_epochs": 1, "minibatch_size": 8, "warmup_iterations": 0}
    run(inputs, tmp_path / "well", **once)
    well = {name: p.clone() for name, p in watched["actors"].policy_parameters.items()}
    values = actors_module.FullActors.values

    def poisoned(self: Any, packed: Any, responses: Any) -> Any:
        found = values(self, packed, responses)
        return found * math.nan if found.requires_grad else found

    monkeypatch.setattr(actors_module.FullActors, "values", poisoned)
    begun = dict(load_scalar(inputs.one("reward_model").path, torch.device("cpu")).named_parameters())
    (row,) = run(inputs, tmp_path / "ill", on_nonfinite="skip", **once)
    assert all(torch.equal(p, well[name]) for name, p in watched["actors"].policy_parameters.items())
    assert all(torch.equal(p, begun[name]) for name, p in watched["actors"].value_parameters.items())
    assert row["ppo/steps"] == 1
    assert "value/loss" not in row
    assert "value/loss, value/grad_norm is not finite" in (tmp_path / "ill/out/events.jsonl").read_text()


def test_one_gradient_is_in_memory_at_a_time(inputs, tmp_path, monkeypatch, watched):
    values, held = actors_module.FullActors.values, []

    def looking(self: Any, packed: Any, responses: Any) -> Any:
        held.extend(name for name, p in self.policy_parameters.items() if p.grad is not None)
        return values(self, packed, responses)

    monkeypatch.setattr(actors_module.FullActors, "values", looking)
    run(inputs, tmp_path)
    assert held == []


@pytest.mark.parametrize("answer", ["stop", "skip"])
def test_a_score_that_is_not_finite_is_caught_before_any_step(inputs, tmp_path, monkeypatch, answer):
    combine, calls = RewardTerms.combine, {"seen": 0}

    def poisoned(self: Any, scores: torch.Tensor, *rest: Any) -> Any:
        calls["seen"] += 1
        if calls["seen"] == 2:
            scores[0, 5] = math.inf
        return combine(self, scores, *rest)

    monkeypatch.setattr(RewardTerms, "combine", poisoned)
    chosen = choose_prompts(1, 8, 64, KNOBS["seed"])[5]
    if answer == "stop":
        with pytest.raises(HealthStop, match=rf"iteration 2: a score.* prompts \[{chosen}\]"):
            run(inputs, tmp_path)
        assert len(log_of(tmp_path)) == 1
    else:
        rows = run(inputs, tmp_path, on_nonfinite="skip")
        assert ["ppo/steps" in row for row in rows] == [True, False, True]
        assert f"prompts [{chosen}]" in (tmp_path / "out/events.jsonl").read_text()


# -- knobs -------------------------------------------------------------------------------------------------------


def test_an_iteration_ends_when_the_policy_has_moved_far_enough(inputs, tmp_path):
    free = run(inputs, tmp_path / "free", num_iterations=1, warmup_iterations=0)[0]
    held = run(inputs, tmp_path / "held", num_iterations=1, warmup_iterations=0, stop_kl_per_token=1e-9)[0]
    assert free["ppo/steps"] == 4
    assert held["ppo/steps"] == 1  # the first cannot have moved; the second has
    assert held["ppo/approx_kl"] == 0


def test_a_warm_up_trains_the_value_model_alone(inputs, tmp_path, watched, capsys):
    rows = run(inputs, tmp_path, value_warmup_iterations=2, warmup_iterations=0)
    assert [row["objective/kl"] for row in rows] == [0.0, 0.0, 0.0]  # of the rollout, before the third update
    assert ["policy/loss" in row for row in rows] == [False, False, True]
    assert all("value/loss" in row for row in rows)
    # The policy's steps: one iteration of two epochs over two minibatches.
    assert "only 4 optimizer steps: fewer than 50" in capsys.readouterr().err


def test_the_value_model_stays_where_only_the_policy_is_updated(inputs, tmp_path, watched):
    run(inputs, tmp_path, update="policy")
    kept = actors_module.load_scalar(inputs.one("reward_model").path).state_dict()
    assert all(torch.equal(value, kept[name]) for name, value in watched["actors"].value.state_dict().items())


def test_a_value_model_from_the_policy_begins_at_zero(inputs, tmp_path):
    (row,) = run(inputs, tmp_path, value_from="policy", num_iterations=1)
    assert row["value/explained_variance"] == pytest.approx(0.0, abs=1e-6)


def test_the_coefficient_follows_the_kl(inputs, tmp_path):
    rows = run(inputs, tmp_path, kl_goal=1e-6, kl_horizon=80.0, num_iterations=4)
    told = [row["objective/kl_coef"] for row in rows]
    for before, after, row in zip(told, told[1:], rows, strict=False):
        error = min(max(row["objective/kl"] / 1e-6 - 1, -0.2), 0.2)
        assert after == pytest.approx(before * (1 + error * 8 / 80), rel=1e-12)
    assert told[1] < told[0]  # the first policy has no KL
    assert any(row["objective/kl"] > 1e-6 for row in rows)  # a later one has
    assert any(after > before for before, after in itertools.pairwise(told))


def test_the_coefficient_waits_while_only_the_value_model_learns(inputs, tmp_path):
    rows = run(inputs, tmp_path, kl_goal=1.0, kl_horizon=80.0, value_warmup_iterations=2)
    assert [row["objective/kl_coef"] for row in rows] == [0.1, 0.1, 0.1]


@pytest.mark.parametrize("form", mostly_slow(["k2", "k3"], ["k3"]))
def test_a_kl_in_the_loss_is_not_in_the_reward_too(inputs, tmp_path, form):
    knobs = {"kl_form": form, "num_iterations": 8, "value_warmup_iterations": 0, "warmup_iterations": 0}
    rows = run(inputs, tmp_path / "paid", **knobs, kl_coef=50.0)
    free = run(inputs, tmp_path / "free", **knobs, kl_coef=0.0)
    assert sum(row["objective/kl"] for row in rows[4:]) < 0.5 * sum(row["objective/kl"] for row in free[4:])
    assert rows[0]["value/explained_variance"] == free[0]["value/explained_variance"]  # of the same returns


def test_an_entropy_bonus_raises_the_entropy(inputs, tmp_path):
    plain, paid = (
        run(inputs, tmp_path / str(coef), entropy_coef=coef, num_iterations=6)[-1]["policy/entropy"]
        for coef in (0.0, 0.5)
    )
    assert paid > plain + 0.005


def test_what_is_cut_off_is_paid_for_in_two_ways(inputs, tmp_path):
    taken = run(inputs, tmp_path / "less", num_iterations=1, max_new_tokens=40, missing_eos_penalty=3.0)[0]
    plain = run(inputs, tmp_path / "plain", num_iterations=1, max_new_tokens=40, missing_eos_penalty=0.0)[0]
    replaced = run(
        inputs,
        tmp_path / "instead",
        num_iterations=1,
        max_new_tokens=40,
        missing_eos_penalty=0.0,
        missing_eos_reward=-50.0,
    )[0]
    share = plain["reward/missing_eos"]
    assert 0 < share < 1
    assert taken["objective/reward"] == pytest.approx(plain["objective/reward"] - 3.0 * share, abs=1e-5)
    assert replaced["objective/reward"] < -50.0 * share + 5
    assert plain["reward/model"] == replaced["reward/model"] == taken["reward/model"] == plain["objective/score"]
    assert taken["objective/score"] == pytest.approx(plain["objective/score"] - 3.0 * share, abs=1e-5)


def brevity(prompts: Any, completions: Any, kind: list[str], **others: Any) -> list[float]:
    assert len(prompts) == len(completions) == len(kind)
    return [-float(len(completion[0]["content"])) for completion in completions]


def short(completion_ids: list[list[int]], **others: Any) -> list[float]:
    """The fewer tokens, the better; a policy learns it in a few iterations."""
    return [-float(len(ids)) for ids in completion_ids]


def now_and_then(completion_ids: Any, trainer_state: Any, log_metric: Any, log_extra: Any, **others: Any) -> list[Any]:
    """Applies to every second episode, in every second iteration."""
    log_metric("episodes", len(completion_ids))
    log_extra("first", [ids[0] for ids in completion_ids])
    applies = trainer_state.global_step % 2 == 0 and trainer_state.max_steps == 3
    return [1.0 if applies and i % 2 == 0 else None for i in range(len(completion_ids))]


def failing(completion_ids: Any, trainer_state: Any, **others: Any) -> list[float]:
    if trainer_state.global_step == 1:
        raise ValueError("not today")
    return [0.0] * len(completion_ids)


def samples_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "out/samples.jsonl").read_text().splitlines()]


def alone(inputs: Inputs, *more: str) -> Inputs:
    """Without a reward model."""
    return Inputs({slot: inputs[slot] for slot in ("policy", "prompts", *more)})


def test_a_function_of_the_users_own_is_a_part_of_the_reward(inputs, tmp_path):
    plain = run(inputs, tmp_path / "plain", num_iterations=1)[0]
    ruled = run(inputs, tmp_path / "ruled", num_iterations=1, reward_functions={f"{__name__}:brevity": 0.25})[0]
    assert ruled["reward/brevity"] < 0
    for name in ("objective/reward", "objective/score"):
        assert ruled[name] == pytest.approx(plain[name] + 0.25 * ruled["reward/brevity"], abs=1e-5)


def test_a_rule_alone_is_learned(inputs, tmp_path):
    knobs = {"num_iterations": 12, "learning_rate": 1e-2, "kl_coef": 0.01, "missing_eos_penalty": 0.0}
    rows = run(alone(inputs), tmp_path, reward_functions={f"{__name__}:short": 0.5}, **knobs)
    scores = [row["objective/score"] for row in rows]
    assert sum(scores[-4:]) / 4 > sum(scores[:4]) / 4 + 1.0
    assert "reward/model" not in rows[0]
    assert rows[0]["value/explained_variance"] == 0.0  # a new head of zeros says the same of every state
    assert scores[0] == pytest.approx(-0.5 * rows[0]["response_tokens"])


def test_a_value_model_of_one_s_own_is_where_the_value_model_starts(inputs, tmp_path):
    given = alone(inputs) | {"value_model": inputs["reward_model"]}
    rule = {f"{__name__}:short": 1.0}
    (own,) = run(Inputs(given), tmp_path / "own", reward_functions=rule, num_iterations=1)
    (beside,) = run(inputs, tmp_path / "beside", reward_functions=rule, num_iterations=1)
    assert own["value/explained_variance"] != 0.0
    assert "reward/model" not in own
    assert own["objective/score"] == pytest.approx(beside["objective/score"] - beside["reward/model"], abs=1e-5)


def test_an_episode_without_a_score_moves_nothing(inputs, tmp_path, gradients, plans):
    """As if a rollout had held the scored episodes alone, but that a mean over tokens counts all of them."""
    rule = {f"{__name__}:now_and_then": 1.0}
    knobs = {"num_epochs": 1, "minibatch_size": 8, "num_iterations": 3, "missing_eos_penalty": 0.0, "kl_coef": 0.0}
    rows = run(alone(inputs), tmp_path, reward_functions=rule, samples_every=1, **knobs)
    assert [row.get("unscored") for row in rows] == [0.5, 1.0, 0.5]
    assert [row.get("applies/now_and_then") for row in rows] == [0.5, 0.0, 0.5]
    assert rows[0]["objective/score"] == rows[0]["reward/now_and_then"] == 1.0
    assert "objective/score" not in rows[1]
    assert len(gradients) == 2  # none in the second iteration
    assert [row["functions/episodes"] for row in rows] == [8.0] * 3
    samples = samples_of(tmp_path)
    assert [row["step"] for row in samples] == [1] * 4 + [2] * 4 + [3] * 4
    assert [row["score"] for row in samples[:8]] == [1.0, None, 1.0, None] + [None] * 4
    assert all(isinstance(row["first"], int) for row in samples)
    for plan in plans:
        silent, mask = ~plan.rollouts.rewards.bool(), plan.rollouts.samples.mask
        assert silent.tolist() == [False, True] * 4
        assert plan.targets.advantages[silent].abs().max() == 0
        assert torch.equal(plan.targets.returns[silent], plan.rollouts.values[silent])
        assert all(plan.targets.advantages[~silent][mask[~silent]] != 0)


def test_what_a_function_raises_names_its_line_and_the_iteration(inputs, tmp_path):
    line = next(n for n, text in enumerate(Path(__file__).read_text().splitlines(), 1) if "not today" in text)
    said = rf"test_ppo.py:{line} \(in failing\): ValueError: not today; raised by .* at iteration 2$"
    with pytest.raises(ConfigError, match=said):
        run(alone(inputs), tmp_path, reward_functions={f"{__name__}:failing": 1.0})


def test_weights_of_reward_models_make_their_weighted_sum(inputs, tmp_path):
    twice = Inputs(inputs | {"reward_model": inputs["reward_model"] * 2})
    (row,) = run(twice, tmp_path, num_iterations=1, reward_model_weights=[2.0, -0.5], missing_eos_penalty=0.0)
    assert row["reward/model_1"] == row["reward/model_2"]
    assert row["objective/score"] == pytest.approx(1.5 * row["reward/model_1"], rel=1e-5)


def test_episodes_are_kept_at_the_first_every_so_many_and_the_last_iteration(inputs, tmp_path):
    rule = {f"{__name__}:short": 0.5}
    rows = run(inputs, tmp_path / "some", num_iterations=5, samples_every=3, reward_functions=rule)
    samples = samples_of(tmp_path / "some")
    assert [row["step"] for row in samples] == [1] * 4 + [3] * 4 + [5] * 4
    assert samples[0]["kl"] == 0.0
    assert rows[0]["reward/model"] != 0.0
    for row in samples:
        parts = row["reward/model"] + 0.5 * row["reward/short"] - row["reward/missing_eos"]
        assert row["score"] == pytest.approx(parts, abs=1e-5)
        assert row["reward/short"] == -row["reward/length"]
    run(inputs, tmp_path / "none", num_iterations=1, samples_every=None)
    assert not (tmp_path / "none/out/samples.jsonl").exists()


def test_the_manifest_keeps_every_part_of_the_reward(inputs, tmp_path):
    config = Ppo(**{**KNOBS, "num_iterations": 1, "reward_functions": {f"{__name__}:short": 0.5}})
    kept = ppo.run(planned(config), inputs, job_at(tmp_path))
    (row,) = log_of(tmp_path)
    names = ("objective/score", "reward/model", "reward/short", "reward/length", "reward/missing_eos")
    assert {name: kept[name] for name in names} == {name: row[name] for name in names}


def test_an_ensemble_is_its_mean_less_its_deviation(inputs, tmp_path):
    single = run(inputs, tmp_path / "one", num_iterations=1)[0]
    twice = Inputs(inputs | {"reward_model": inputs["reward_model"] * 2})
    same = run(twice, tmp_path / "two", num_iterations=1, ensemble_std_coef=2.0)[0]
    assert same["reward/disagreement"] == 0.0
    assert same["objective/reward"] == pytest.approx(single["objective/reward"], abs=1e-6)


def test_a_model_that_is_only_watched_changes_nothing(inputs, tmp_path):
    plain = run(inputs, tmp_path / "plain", num_iterations=2)
    watched = run(
        Inputs(inputs | {"heldout_reward_model": inputs["reward_model"]}), tmp_path / "watched", num_iterations=2
    )
    assert [row.pop("heldout/score") for row in watched] == [row["reward/model"] for row in plain]
    assert watched == plain


def test_a_reward_model_with_another_template_has_the_text_encoded_again(inputs, tmp_path):
    reward = inputs.one("reward_model")
    folder = Path(shutil.copytree(reward.path, tmp_path / "other"))
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text().replace("{{ '<|assistant|>' }}{% gen", "{{ ' A:' }}{% gen"))
    other = Inputs(inputs | {"reward_model": (dataclasses.replace(reward, path=folder),)})
    again, own = (run(i, tmp_path / n, num_iterations=1)[0] for n, i in (("again", other), ("own", inputs)))
    assert again["objective/score"] != own["objective/score"]
    assert again["response_tokens"] == own["response_tokens"]


def test_a_cut_distribution_is_corrected_for(inputs, tmp_path):
    rows = run(inputs, tmp_path, top_p=0.8, importance_cap=2.0)
    assert all(row["policy/sampling_gap"] > 0.01 for row in rows)  # the normaliser of what was kept


def test_a_sampler_in_bf16_is_near_and_told_of(inputs, tmp_path):
    (row,) = run(inputs, tmp_path, sampling_precision="bf16", num_iterations=1)
    assert 0 < row["policy/sampling_gap"] < 0.05


def test_adapters_leave_the_base_as_it_was_and_publish_what_was_trained(inputs, tmp_path, watched):
    base = AutoModelForCausalLM.from_pretrained(inputs.one("policy").path)
    lora = LoraConfig(rank=4)
    rows = run(inputs, tmp_path, lora=lora, value_from="policy", learning_rate=1e-2, warmup_iterations=0)
    assert rows[0]["objective/kl"] == 0.0
    assert rows[-1]["objective/kl"] != 0.0
    left = {n.replace(".base_layer", ""): p for n, p in watched["actors"]._adapters.base.named_parameters()}
    assert all(torch.equal(left[name], p) for name, p in base.named_parameters())
    assert not (tmp_path / "out/model.safetensors").exists()
    before = {name: p.clone() for name, p in base.state_dict().items()}
    published = PeftModel.from_pretrained(base, tmp_path / "out").merge_and_unload().state_dict()
    assert published.keys() == before.keys()
    assert any(not torch.equal(value, before[name]) for name, value in published.items())


def test_a_value_model_that_is_no_adapter_is_refused_with_adapters(inputs, tmp_path):
    with pytest.raises(ConfigError, match=r"a whole model; expected an adapter on sft/"):
        run(inputs, tmp_path, lora=LoraConfig(rank=4))


@pytest.mark.parametrize("schedule", mostly_slow(["constant", "linear", "cosine"], ["cosine"]))
def test_rates_warm_up_from_a_tenth_and_then_follow_their_schedule(inputs, tmp_path, watched, monkeypatch, schedule):
    rates: list[float] = []
    step = Learner.take_step

    def noting(self: Learner, name: str) -> None:
        if name == "policy":
            rates.append(self._optimizers[name].param_groups[0]["lr"])
        step(self, name)

    monkeypatch.setattr(Learner, "take_step", noting)
    once = {"num_epochs": 1, "minibatch_size": 8, "num_iterations": 6, "final_learning_rate_fraction": 0.2}
    rows = run(inputs, tmp_path, schedule=schedule, **once)
    after = {
        "constant": [1.0] * 4,
        "linear": [1.0, 0.8, 0.6, 0.4],
        "cosine": [0.2 + 0.4 * (1 + math.cos(math.pi * k / 4)) for k in range(4)],
    }[schedule]
    assert rates == pytest.approx([1e-3 * f for f in (0.1, 0.55, *after)])
    assert [row["policy/learning_rate"] for row in rows] == rates


def test_the_policy_warms_up_when_its_own_training_begins(inputs, tmp_path, plans):
    once = {"num_epochs": 1, "minibatch_size": 8, "num_iterations": 5}
    run(inputs, tmp_path, value_warmup_iterations=2, warmup_iterations=2, **once)
    rates = [(plan.policy_rate, plan.value_rate) for plan in plans]
    assert rates == [(0.0, 0.1), (0.0, 0.55), (0.1, 1.0), (0.55, 1.0), (1.0, 1.0)]


def test_a_sample_hangs_on_its_seed_its_iteration_and_its_prompt(inputs, tmp_path, monkeypatch):
    """Not on the batch it is drawn in, nor on what the process did before."""
    seen: list[Any] = []
    make = responses.make_samples

    def noting(*arguments: Any) -> Any:
        seen.append(make(*arguments))
        return seen[-1]

    monkeypatch.setattr(responses, "make_samples", noting)
    for name, size in (("one", 1), ("three", 3), ("all", 256)):
        run(inputs, tmp_path / name, {"generation_batch_size": size}, num_iterations=1)
        torch.manual_seed(len(name))
    assert seen[0].responses == seen[1].responses == seen[2].responses
    assert seen[0].ids == seen[2].ids


def test_a_response_that_ends_in_a_stop_string_has_ended_and_is_scored_without_it(inputs, tmp_path):
    """The policy's folder names them, and so does the folder that it is published in."""
    policy = inputs.one("policy")
    folder = Path(shutil.copytree(policy.path, tmp_path / "stopping"))
    file = folder / "generation_config.json"
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    file.write_text(json.dumps(json.loads(file.read_text()) | {"stop_strings": letters}))
    stopping = Inputs(inputs | {"policy": (dataclasses.replace(policy, path=folder),)})
    (plain,) = run(inputs, tmp_path / "plain", num_iterations=1)
    (got,) = run(stopping, tmp_path / "out", num_iterations=1)
    assert got["reward/missing_eos"] < plain["reward/missing_eos"]
    said = [json.loads(line)["response"] for line in (tmp_path / "out/out/samples.jsonl").open()]
    assert said
    assert not any(letter in text for text in said for letter in letters)
    assert json.loads((tmp_path / "out/out/generation_config.json").read_text())["stop_strings"] == letters


def test_a_reward_model_with_a_shorter_context_leaves_less_room(inputs, tmp_path, capsys):
    reward = inputs.one("reward_model")
    folder = Path(shutil.copytree(reward.path, tmp_path / "short"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 13}))
    short = Inputs(inputs | {"reward_model": (dataclasses.replace(reward, path=folder),)})
    with pytest.raises(ConfigError, match=r"inputs.prompts: \d+ prompts do not fill a rollout of 8"):
        run(short, tmp_path / "out")
    count = len(list(read_rows(inputs.folders("prompts"), "train")))
    assert f"{count} of {count} prompts left out: longer than 1 tokens" in capsys.readouterr().err


def test_prompts_too_long_for_a_reward_model_with_a_template_of_its_own_are_counted(inputs, tmp_path, capsys):
    reward = inputs.one("reward_model")
    folder = Path(shutil.copytree(reward.path, tmp_path / "short"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 13}))
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text().replace("{{ '<|assistant|>' }}{% gen", "{{ ' A:' }}{% gen"))
    short = Inputs(inputs | {"reward_model": (dataclasses.replace(reward, path=folder),)})
    with pytest.raises(ConfigError, match=r"inputs.prompts: 0 prompts do not fill a rollout of 8"):
        run(short, tmp_path / "out")
    count = len(list(read_rows(inputs.folders("prompts"), "train")))
    assert f"{count} of {count} prompts left out: too long for reward_model_0" in capsys.readouterr().err


def test_repetition_and_variety_are_those_of_the_responses(inputs: Inputs, tmp_path: Path) -> None:
    """Two tokens have no 3-gram to repeat, whatever the prompts say. At a low temperature responses are more alike."""
    short = run(inputs, tmp_path / "short", num_iterations=1, max_new_tokens=2)[0]
    usual, cold = (
        run(inputs, tmp_path / str(each), num_iterations=1, max_new_tokens=40, temperature=each)[0]
        for each in (1.0, 0.05)
    )
    assert short["response/repeated"] == 0
    assert 1 > usual["response/distinct"] > cold["response/distinct"] > 0
