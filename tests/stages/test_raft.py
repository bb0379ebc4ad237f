"""The stage `raft` on the toy pipeline's own models: what it keeps, what it learns, exact resumes."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import align, manifests, mostly_slow
from documents import ROOT
from safetensors.torch import load_file, save_file
from stage_jobs import Dead, dying_after, job_at, log_of, made_by, planned, result_of
from transformers import AutoModelForCausalLM

from align.configs import LoraConfig, Raft, learns_from_rewards
from align.errors import ConfigError, HealthStop
from align.models.load import load_model, load_tokenizer
from align.rl.rewards import Rewards
from align.rl.selection import best_responses
from align.runtime.job import Inputs
from align.runtime.tracking import metric_name
from align.stages import raft
from align.store.artifacts import Artifact
from align.text.chat import encode_prompts

sys.path.insert(0, str(ROOT / "pipelines"))
KNOBS: dict[str, Any] = {
    "num_iterations": 3,
    "rollout_batch_size": 12,
    "group_size": 3,
    "minibatch_size": 2,
    "learning_rate": 1e-3,
    "max_new_tokens": 8,
    "seed": 5,
}


def short(prompts: Any, completion_ids: list[list[int]], **others: Any) -> list[float]:
    """The fewer tokens, the better; a policy learns it in a few iterations."""
    return [-float(len(ids)) for ids in completion_ids]


def telling(prompts: Any, completion_ids: list[list[int]], log_extra: Any, **others: Any) -> list[float]:
    """The same, with what was asked and answered in the table of samples."""
    log_extra("asked", prompts)
    log_extra("ids", completion_ids)
    return short(prompts, completion_ids)


def constant(prompts: Any, completion_ids: list[list[int]], **others: Any) -> list[float]:
    return [1.0 for _ in completion_ids]


def partly(prompts: Any, completion_ids: list[list[int]], **others: Any) -> list[float | None]:
    """Nothing to say of some responses."""
    return [None if len(ids) % 3 == 0 else -float(len(ids)) for ids in completion_ids]


@pytest.fixture(scope="module")
def inputs(finished: Path) -> Inputs:
    return Inputs(
        policy=made_by(finished, "sft"),
        reward_model=made_by(finished, "reward"),
        prompts=made_by(finished, "prompts"),
    )


@pytest.fixture(scope="module")
def ruled(inputs: Inputs) -> Inputs:
    """Without a reward model, for functions."""
    return Inputs(policy=inputs["policy"], prompts=inputs["prompts"])


def run(inputs: Inputs, folder: Path, hardware: dict[str, Any] | None = None, **knobs: Any) -> list[dict[str, float]]:
    """The metrics of each iteration."""
    raft.run(planned(Raft(**{**KNOBS, **knobs})), inputs, job_at(folder, **(hardware or {})))
    return log_of(folder)


def samples_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "out/samples.jsonl").read_text().splitlines()]


# -- what is kept ----------------------------------------------------------------------------------


def kept(total: list[float], responses: list[int], size: int, most: int, least: float | None = None) -> list[int]:
    """With NaN for a response without a score."""
    given = torch.tensor(total)
    rewards = Rewards(given.nan_to_num(0.0), {}, ~given.isnan())
    return best_responses(rewards, [[each] for each in responses], size, most, least)


def test_the_best_of_each_group_are_kept() -> None:
    nan = float("nan")
    assert kept([1, 3, 2, -5, -4, -6], [*range(6)], 3, 1) == [1, 4]
    assert kept([1, 3, 2, -5, -4, -6], [*range(6)], 3, 2) == [1, 2, 4, 3]
    assert kept([1, 3, 2, -5, -4, -6], [*range(6)], 3, 2, least=2.0) == [1, 2]
    assert kept([7, 7, 7, 0, 1, 1], [*range(6)], 3, 1) == [0, 4]  # of equal rewards the first
    assert kept([7, 7, 7, 0, 1, 1], [8, 8, 9, 5, 6, 6], 3, 2) == [0, 2, 4, 3]  # equal responses count once
    assert kept([nan, -2, nan, nan, nan, nan], [*range(6)], 3, 1) == [1]  # -2 beats no score
    assert kept([nan, 0, -1], [*range(3)], 3, 3, least=0.0) == [1]


def test_what_is_shown_as_kept_has_the_highest_reward_of_its_prompt(inputs: Inputs, tmp_path: Path) -> None:
    from dashboard import named_metrics

    rows = run(inputs, tmp_path)
    logged = {metric_name("raft", name) for name in rows[0]}
    panels = {name for name in named_metrics() if name.startswith("raft/")}
    assert panels - logged == {"raft/iteration", "raft/time/seconds"}
    assert learns_from_rewards("raft")
    shown = [row for row in samples_of(tmp_path) if row["step"] == 1][:6]
    for group in (shown[:3], shown[3:]):
        assert len({row["prompt"] for row in group}) == 1
        (best,) = [row for row in group if row["kept"]]
        assert best["score"] == max(row["score"] for row in group)
    assert rows[0]["kept/responses"] == 4
    assert rows[0]["policy/steps"] == 2
    assert rows[0]["kept/score"] > rows[0]["objective/score"]
    assert rows[0]["objective/kl"] == 0
    assert rows[-1]["objective/kl"] > 0
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").config.model_type == "gpt_neox"


# -- what is learned -------------------------------------------------------------------------------


def test_the_loss_is_that_of_plain_forward_passes_on_the_kept_responses(ruled: Inputs, tmp_path: Path) -> None:
    """Of the first step, which the given policy takes: per token of the responses, not of the prompts."""
    knobs = {"num_iterations": 1, "rollout_batch_size": 6, "minibatch_size": 6}
    (row,) = run(ruled, tmp_path, reward_functions={f"{__name__}:telling": 1.0}, temperature=0.7, **knobs)
    policy = ruled.one("policy").path
    model, tokenizer = load_model(policy), load_tokenizer(policy)
    total, tokens = 0.0, 0
    for shown in samples_of(tmp_path):
        if not shown["kept"]:
            continue
        (prompt,), answer = encode_prompts(tokenizer, [shown["asked"]]), shown["ids"]
        with torch.no_grad():
            logprobs = model(torch.tensor([[*prompt, *answer]])).logits[0].log_softmax(-1)
        for place, token in enumerate(answer, len(prompt) - 1):
            total -= float(logprobs[place, token])
            tokens += 1
    assert tokens == row["kept/response_tokens"] * row["kept/responses"]
    assert row["policy/loss"] == pytest.approx(total / tokens, rel=1e-4)


def test_it_learns_what_ppo_learns(ruled: Inputs, tmp_path: Path) -> None:
    knobs = {"num_iterations": 12, "rollout_batch_size": 24, "minibatch_size": 4, "learning_rate": 3e-3}
    rows = run(ruled, tmp_path, reward_functions={f"{__name__}:short": 0.5}, **knobs)
    first, last = (sum(row["response_tokens"] for row in part) / 3 for part in (rows[:3], rows[-3:]))
    assert last < 0.8 * first


def test_what_bounds_memory_changes_nothing(inputs: Inputs, tmp_path: Path, passes: Any) -> None:
    run(inputs, tmp_path / "whole", minibatch_size=4)
    passes.tokens.clear()
    passes.learning.clear()
    run(inputs, tmp_path / "parts", {"micro_batch_tokens": 64}, minibatch_size=4)
    assert max(passes.learning) <= 64
    for one, two in zip(log_of(tmp_path / "whole"), log_of(tmp_path / "parts"), strict=True):
        assert one == pytest.approx(two, rel=2e-3, abs=1e-4)


def test_a_run_that_measures_no_kl_trains_the_same_policy(inputs: Inputs, tmp_path: Path) -> None:
    run(inputs, tmp_path / "with")
    rows = run(inputs, tmp_path / "without", measure_kl=False)
    assert "objective/kl" not in rows[0]
    one, two = (load_file(tmp_path / name / "out/model.safetensors") for name in ("with", "without"))
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("lora", [None, 4])
def test_it_goes_with_adapters_and_with_functions_that_score_some_responses(
    ruled: Inputs, tmp_path: Path, lora: int | None
) -> None:
    rule = {f"{__name__}:partly": 1.0}
    knobs = {"num_kept": 2, "num_epochs": 2, "learning_rate": 1e-2}
    rows = run(ruled, tmp_path, reward_functions=rule, lora=LoraConfig(rank=lora), **knobs)
    assert 0 < rows[0]["unscored"] < 1
    assert rows[0]["objective/kl"] == pytest.approx(0, abs=1e-5)
    assert rows[-1]["objective/kl"] > 0
    assert (tmp_path / "out/adapter_config.json").exists() == (lora is not None)


@pytest.mark.parametrize("after", mostly_slow(range(1, 13), [11]))
def test_a_run_that_died_ends_as_if_it_had_not(inputs: Inputs, tmp_path: Path, after: int) -> None:
    knobs = {**KNOBS, "num_iterations": 12, "samples_every": 2, "warmup_iterations": 2}
    raft.run(planned(Raft(**knobs)), inputs, job_at(tmp_path / "whole"))
    with pytest.raises(Dead):
        raft.run(planned(Raft(**knobs)), inputs, job_at(tmp_path / "died", dying_after(after), checkpoint_seconds=0))
    raft.run(planned(Raft(**knobs)), inputs, job_at(tmp_path / "died", checkpoint_seconds=0))
    assert len(log_of(tmp_path / "whole")) == 12
    assert result_of(tmp_path / "died") == result_of(tmp_path / "whole")


@pytest.mark.slow  # each process imports torch
def test_two_processes_do_what_one_does(finished: Path, tmp_path: Path) -> None:
    given = ["policy=toy/sft", "reward_model=toy/reward", "prompts=toy/prompts", "tracker=none", "name=toy/raft"]
    knobs = [f"{name}={value}" for name, value in KNOBS.items()]
    found = []
    for count in (1, 2):
        store = Path(shutil.copytree(finished, tmp_path / str(count)))
        align("raft", *given, *knobs, f"store={store}", f"hardware.num_processes={count}", "hardware.device=cpu")
        found.append(manifests(store)["raft"]["metrics"])
    assert found[1] == pytest.approx(found[0], rel=1e-3, abs=1e-5)


# -- what cannot work ------------------------------------------------------------------------------


def test_iterations_that_keep_nothing_move_nothing_and_end_the_run(ruled: Inputs, tmp_path: Path) -> None:
    rule = {f"{__name__}:constant": 1.0}
    knobs = {"reward_functions": rule, "min_reward": 1.5, "missing_eos_penalty": 0.0}
    rows = run(ruled, tmp_path / "few", **knobs)
    assert {row["policy/steps"] for row in rows} == {0.0}
    assert rows[0]["group/equal"] == 1
    policy, made = (load_file(f / "model.safetensors") for f in (ruled.one("policy").path, tmp_path / "few/out"))
    assert all(torch.equal(policy[name], made[name]) for name in policy)
    with pytest.raises(HealthStop, match=r"iteration 10: the tenth in a row .* no reward reached min_reward"):
        run(ruled, tmp_path / "many", num_iterations=11, **knobs)


def test_rewards_that_are_not_finite_move_nothing(inputs: Inputs, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(inputs.one("reward_model").path, tmp_path / "broken"))
    weights = load_file(broken / "model.safetensors")
    weights["score.weight"].fill_(float("nan"))
    save_file(weights, broken / "model.safetensors", {"format": "pt"})
    (model,) = inputs["reward_model"]
    given = Inputs(inputs, reward_model=(Artifact(model.stage, "0" * 64, model.kind, broken),))
    with pytest.raises(HealthStop, match="iteration 1: a reward is not finite; episodes of prompts"):
        run(given, tmp_path / "stop")
    rows = run(given, tmp_path / "skip", on_nonfinite="skip")
    assert {(row["policy/steps"], row["kept/responses"]) for row in rows} == {(0.0, 0.0)}
    assert "the rollout is skipped" in (tmp_path / "skip/out/events.jsonl").read_text()


@pytest.mark.parametrize(
    ("knobs", "said"),
    [
        ({"group_size": 1}, "group_size: expected at least 2, or min_reward too"),
        ({"group_size": 5}, "group_size: expected a divisor of rollout_batch_size, 12, which counts responses, got 5"),
        ({"num_kept": 0}, "num_kept: expected a number from 1 to group_size, 3, got 0"),
        ({"num_kept": 3}, "num_kept: expected less than group_size, 3, or min_reward too: all would be kept, got 3"),
        ({"warmup_iterations": 3}, "warmup_iterations: expected fewer than num_iterations (3), got 3"),
        ({"lora": LoraConfig(rank=4, dropout=0.1)}, "lora.dropout: expected 0: dropout is off"),
        ({"temperature": 0.0}, "temperature: expected a number above 0, got 0.0"),
        ({"sampling_precision": "fp16"}, "sampling_precision: expected fp32 or bf16, got 'fp16'"),
    ],
)
def test_knobs_that_contradict_each_other_are_refused(knobs: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Raft(**{**KNOBS, **knobs})
    assert said in str(caught.value)
