"""The stages `grpo` and `rloo` on the toy pipeline's own models, and the knobs that they bring to `ppo`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import mostly_slow
from documents import ROOT
from safetensors.torch import load_file
from stage_jobs import Dead, dying_after, job_at, log_of, made_by, planned, result_of

from align.configs import Grpo, LoraConfig, Ppo, Rloo
from align.errors import ConfigError
from align.losses.ppo import response_weights
from align.rl.advantages import Targets
from align.rl.update import Learner, Plan
from align.runtime.job import Inputs
from align.runtime.tracking import metric_name
from align.stages import ppo

KNOBS: dict[str, Any] = {
    "num_iterations": 3,
    "rollout_batch_size": 12,
    "minibatch_size": 6,
    "group_size": 3,
    "learning_rate": 1e-3,
    "warmup_iterations": 0,
    "max_new_tokens": 8,
    "seed": 5,
}
sys.path.insert(0, str(ROOT / "pipelines"))
STAGES = {"grpo": Grpo, "rloo": Rloo}


def short(prompts: Any, completion_ids: list[list[int]], **others: Any) -> list[float]:
    """The fewer tokens, the better; a policy learns it in a few iterations."""
    return [-float(len(ids)) for ids in completion_ids]


def constant(prompts: Any, completion_ids: list[list[int]], **others: Any) -> list[float]:
    return [1.0 for _ in completion_ids]


@pytest.fixture(scope="module")
def inputs(finished: Path) -> Inputs:
    return Inputs(
        policy=made_by(finished, "sft"),
        reward_model=made_by(finished, "reward"),
        prompts=made_by(finished, "prompts"),
    )


@pytest.fixture
def plans(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Learner, Plan]]:
    """What each update was to do, with its learner."""
    seen: list[tuple[Learner, Plan]] = []
    update = Learner.update

    def noting(self: Learner, plan: Plan) -> Any:
        seen.append((self, plan))
        return update(self, plan)

    monkeypatch.setattr(Learner, "update", noting)
    return seen


def run(kind: type[Ppo], inputs: Inputs, folder: Path, **knobs: Any) -> list[dict[str, float]]:
    """The metrics of each iteration."""
    ppo.run(planned(kind(**{**KNOBS, **knobs})), inputs, job_at(folder))
    return log_of(folder)


@pytest.mark.parametrize("stage", STAGES)
def test_each_prompt_is_answered_by_a_group_and_no_value_model_is_there(
    inputs: Inputs, tmp_path: Path, plans: list[tuple[Learner, Plan]], stage: str
) -> None:
    from dashboard import named_metrics

    rows = run(STAGES[stage], inputs, tmp_path)
    logged = {metric_name(stage, name) for name in rows[0]}
    panels = {name for name in named_metrics() if name.startswith(f"{stage}/")}
    assert panels - logged == {f"{stage}/iteration", f"{stage}/time/seconds"}
    ((learner, first), *_) = plans
    samples = first.rollouts.samples
    groups = torch.tensor(samples.ids).view(-1, 3)
    assert len(groups.unique()) == 4
    assert (groups == groups[:, :1]).all()
    assert len({tuple(response) for response in samples.responses}) > 6  # each draws for itself
    assert learner.state()["value"] == {}
    assert not [name for row in rows for name in row if name.startswith("value/")]
    assert rows[0]["objective/kl"] == 0
    assert rows[0]["ppo/steps"] == 2
    first_only = run(STAGES[stage], inputs, tmp_path / "one", minibatch_size=12, num_iterations=1)[0]
    assert first_only["ppo/ratio"] == pytest.approx(1, abs=1e-6)
    assert first_only["ppo/clip_fraction"] == 0


@pytest.mark.parametrize("advantage", ["group", "leave_one_out", "batch"])
def test_all_tokens_of_a_response_share_its_advantage(
    inputs: Inputs, tmp_path: Path, plans: list[tuple[Learner, Plan]], advantage: str
) -> None:
    """Which is, summed over the group (over the rollout), 0."""
    run(Ppo, inputs, tmp_path, advantage=advantage, normalize_advantages=False, kl_coef=0.0, num_iterations=1)
    ((_, plan),) = plans
    advantages, mask = plan.targets.advantages, plan.rollouts.samples.mask
    whole = advantages[:, 0]
    torch.testing.assert_close(advantages, torch.where(mask, whole[:, None], 0.0))
    compared = whole.view(1, -1) if advantage == "batch" else whole.view(-1, 3)
    torch.testing.assert_close(compared.sum(1), torch.zeros(len(compared)), rtol=0, atol=1e-5)
    rewards = plan.rollouts.rewards.view(compared.shape)
    factor = 1.5 if advantage == "leave_one_out" else 1.0
    torch.testing.assert_close(compared, factor * (rewards - rewards.mean(1, keepdim=True)), rtol=1e-4, atol=1e-5)


def test_grpo_divides_by_the_deviation_of_the_group(
    inputs: Inputs, tmp_path: Path, plans: list[tuple[Learner, Plan]]
) -> None:
    run(Grpo, inputs, tmp_path)
    for _, plan in plans:
        rewards = plan.rollouts.rewards.view(-1, 3)
        scaled = (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-4)
        torch.testing.assert_close(plan.targets.advantages[:, 0], scaled.flatten(), rtol=1e-4, atol=1e-5)


def test_rloo_s_reward_has_the_kl(inputs: Inputs, tmp_path: Path, plans: list[tuple[Learner, Plan]]) -> None:
    run(Rloo, inputs, tmp_path, kl_coef=0.5)
    _, plan = plans[-1]
    kl = torch.where(plan.rollouts.samples.mask, plan.rollouts.logprobs - plan.rollouts.ref_logprobs, 0.0).sum(1)
    assert kl.abs().min() > 0.01
    rewards = (plan.rollouts.rewards - 0.5 * kl).view(-1, 3)
    others = (rewards.sum(1, keepdim=True) - rewards) / 2
    torch.testing.assert_close(plan.targets.advantages[:, 0], (rewards - others).flatten(), rtol=1e-4, atol=1e-5)


def test_the_upper_limit_of_the_ratio_is_its_own(inputs: Inputs, tmp_path: Path) -> None:
    knobs = {"num_epochs": 3, "learning_rate": 1e-2, "num_iterations": 1, "clip_range": 0.05}
    (one,) = run(Grpo, inputs, tmp_path / "one", **knobs)
    (two,) = run(Grpo, inputs, tmp_path / "two", **knobs, clip_range_high=20.0)
    assert two["ppo/clip_fraction"] < 0.8 * one["ppo/clip_fraction"]


def partly(prompts: Any, completion_ids: list[list[int]], **others: Any) -> list[float | None]:
    """Nothing to say of some responses."""
    return [None if len(ids) % 3 == 0 else -float(len(ids)) for ids in completion_ids]


@pytest.mark.parametrize("lora", [None, 4])
def test_it_goes_with_what_ppo_goes_with(inputs: Inputs, finished: Path, tmp_path: Path, lora: int | None) -> None:
    """Adapters, pretraining text, an adaptive KL, and a function that scores some responses only."""
    given = Inputs(policy=inputs["policy"], prompts=inputs["prompts"], text=made_by(finished, "text"))
    knobs = {"kl_goal": 0.5, "kl_horizon": 40.0, "ptx_coef": 0.5, "ptx_examples_per_episode": 0.25}
    rule = {f"{__name__}:partly": 1.0}
    rows = run(Rloo, given, tmp_path, reward_functions=rule, lora=LoraConfig(rank=lora), **knobs)
    assert rows[-1]["objective/kl_coef"] != rows[0]["objective/kl_coef"]
    assert rows[-1]["ptx/loss"] > 0
    assert rows[-1]["objective/kl"] > 0
    assert (tmp_path / "out/adapter_config.json").exists() == (lora is not None)


@pytest.mark.parametrize("stage", STAGES)
def test_it_learns_what_ppo_learns(inputs: Inputs, tmp_path: Path, stage: str) -> None:
    rule = {f"{__name__}:short": 0.5}
    own = Inputs(policy=inputs["policy"], prompts=inputs["prompts"])
    knobs = {"num_iterations": 12, "rollout_batch_size": 24, "minibatch_size": 12, "learning_rate": 3e-3}
    rows = run(STAGES[stage], own, tmp_path, reward_functions=rule, kl_coef=0.0, **knobs)
    first, last = (sum(row["response_tokens"] for row in part) / 3 for part in (rows[:3], rows[-3:]))
    assert last < 0.8 * first


@pytest.mark.parametrize(
    ("stage", "after"), mostly_slow([(s, a) for s in STAGES for a in range(1, 13)], [("grpo", 2), ("rloo", 11)])
)
def test_a_run_that_died_ends_as_if_it_had_not(inputs: Inputs, tmp_path: Path, stage: str, after: int) -> None:
    knobs = {**KNOBS, "num_iterations": 12, "minibatch_size": 12, "samples_every": 2, "ema_decay": 0.9}
    ppo.run(planned(STAGES[stage](**knobs)), inputs, job_at(tmp_path / "whole"))
    with pytest.raises(Dead):
        ppo.run(
            planned(STAGES[stage](**knobs)), inputs, job_at(tmp_path / "died", dying_after(after), checkpoint_seconds=0)
        )
    ppo.run(planned(STAGES[stage](**knobs)), inputs, job_at(tmp_path / "died", checkpoint_seconds=0))
    assert result_of(tmp_path / "died") == result_of(tmp_path / "whole")


def parity(prompts: Any, completion_ids: list[list[int]], **others: Any) -> list[float]:
    """One of two rewards, so that some groups are equal and others are not."""
    return [float(ids[0] % 2) for ids in completion_ids]


@pytest.mark.parametrize("loss_mean", ["tokens", "responses", "constant"])
def test_equal_groups_that_are_dropped_take_no_part_in_the_loss(
    inputs: Inputs, tmp_path: Path, plans: list[tuple[Learner, Plan]], loss_mean: str
) -> None:
    """The gradient is that of the other responses alone, with a KL in the loss, too."""
    own = Inputs(policy=inputs["policy"], prompts=inputs["prompts"])
    knobs = {"reward_functions": {f"{__name__}:parity": 1.0}, "minibatch_size": 12, "num_iterations": 2}
    (_, row) = run(Grpo, own, tmp_path, drop_equal_groups=True, loss_mean=loss_mean, **knobs)
    learner, plan = plans[-1]
    equal = plan.rollouts.rewards.view(-1, 3).std(1) == 0
    assert 0 < equal.sum() < len(equal)
    assert row["group/equal"] == pytest.approx(equal.float().mean().item())
    kept = [i for i in range(12) if not equal[i // 3]]

    def gradient(minibatch: list[list[int]], targets: Targets) -> list[torch.Tensor]:
        learner.backward(plan._replace(targets=targets), "policy", minibatch)
        parameters = learner.state()["policy"].values()
        found = [parameter.grad.clone() for parameter in parameters]
        for parameter in parameters:
            parameter.grad = None
        return found

    # Without the dropped ones there is nothing to drop: each remaining response counts as it does without the knob.
    units = [len(plan.rollouts.samples.responses[i]) if loss_mean == "tokens" else 1 for i in range(12)]
    weights = None if loss_mean == "tokens" else response_weights(plan.rollouts.samples.mask, loss_mean, 8)
    alone = gradient([kept], plan.targets._replace(weights=weights, units=units))
    whole = gradient([list(range(12))], plan.targets)
    for one, two in zip(whole, alone, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-7)


def test_a_rollout_whose_groups_are_all_dropped_moves_nothing(inputs: Inputs, tmp_path: Path) -> None:
    own = Inputs(policy=inputs["policy"], prompts=inputs["prompts"])
    rule = {f"{__name__}:constant": 1.0}
    for row in run(Grpo, own, tmp_path, reward_functions=rule, drop_equal_groups=True):
        assert row["ppo/steps"] == 0
        assert row["group/equal"] == 1
    policy, made = (load_file(folder / "model.safetensors") for folder in (own.one("policy").path, tmp_path / "out"))
    assert all(torch.equal(policy[name], made[name]) for name in policy)


@pytest.mark.parametrize(
    ("kind", "knobs", "said"),
    [
        (Grpo, {"group_size": 1}, "group_size: expected at least 2 with advantage=group, got 1"),
        (Grpo, {"group_size": 5}, "group_size: expected a divisor of rollout_batch_size, 12, which counts responses"),
        (
            Rloo,
            {"divide_by_group_std": True},
            "divide_by_group_std: expected false: only advantage=group, as in grpo",
        ),
        (Grpo, {"gae_lambda": 1.0}, "gae_lambda: expected no value with advantage=group, which has no value model"),
        (Grpo, {"value_warmup_iterations": 1}, "value_warmup_iterations: expected no value with advantage=group"),
        (Grpo, {"clip_range_high": 0.1}, "clip_range_high: expected at least clip_range (0.2), or null, got 0.1"),
        (Ppo, {"drop_equal_groups": True}, "drop_equal_groups: expected false, or advantage=group or leave_one_out"),
        (
            Grpo,
            {"advantage": "gae"},
            "advantage: grpo always has group, got 'gae'; leave it out, or run align ppo, which takes others",
        ),
        (Ppo, {"advantage": "mean"}, "advantage: expected gae or group or leave_one_out or batch, got 'mean'"),
    ],
)
def test_knobs_that_contradict_each_other_are_refused(kind: type[Ppo], knobs: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        kind(**{**KNOBS, **knobs})
    assert said in str(caught.value)
