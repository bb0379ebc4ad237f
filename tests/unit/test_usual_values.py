"""Defaults that depend on the model, the adapter or the machine: rates, lengths, passes, checkpoints."""

from __future__ import annotations

import math

import pytest
import torch
from stage_jobs import job_at
from tiny_models import tiny_model

from align.configs import HardwareConfig, LoraConfig, Ppo, Reward, Sft
from align.errors import ConfigError
from align.models.load import answer_length, sequence_length


@pytest.mark.parametrize(
    ("stage", "knob", "full", "adapters"),
    [
        (Sft, "learning_rate", 2e-5, 2e-4),
        (Reward, "learning_rate", 1e-5, 1e-4),
        (Ppo, "learning_rate", 5e-6, 1e-4),
        (Ppo, "value_learning_rate", 9e-6, 1e-4),
    ],
)
def test_a_rate_is_that_of_full_training_or_of_adapters(stage, knob, full, adapters):
    for lora, usual in ((LoraConfig(), full), (LoraConfig(rank=8), adapters)):
        config = stage(lora=lora)
        config.fill_in(bf16_is_fast=False)
        assert getattr(config, knob) == usual
        asked = stage(lora=lora, **{knob: 3e-3})
        asked.fill_in(bf16_is_fast=False)
        assert getattr(asked, knob) == 3e-3


@pytest.mark.parametrize(
    ("iterations", "asked", "warmup"), [(500, None, 10), (60, None, 6), (9, None, 0), (60, 0, 0), (60, 20, 20)]
)
def test_a_tenth_of_ppo_s_iterations_warm_the_value_model_up(iterations, asked, warmup):
    config = Ppo(num_iterations=iterations, value_warmup_iterations=asked)
    config.fill_in(bf16_is_fast=False)
    assert config.value_warmup_iterations == warmup
    assert config.value_clip_range is None


@pytest.mark.parametrize(("context", "asked", "length"), [(64, None, 64), (4096, None, 2048), (4096, 3000, 3000)])
def test_a_sequence_is_as_long_as_the_context_but_at_most_2048_unless_asked(context, asked, length):
    assert sequence_length(asked, tiny_model("llama", context=context)) == length


@pytest.mark.parametrize(("context", "asked", "length"), [(4096, None, 256), (300, None, 150), (4096, 700, 700)])
def test_a_response_has_256_tokens_or_half_the_context_unless_asked(context, asked, length):
    assert answer_length(asked, context) == length


def test_a_pass_has_1024_tokens_on_a_cpu_and_4096_on_a_gpu(tmp_path):
    job = job_at(tmp_path)
    assert job.max_tokens == 1024
    job.group.device = torch.device("cuda")
    assert job.max_tokens == 4096
    assert job_at(tmp_path, micro_batch_tokens=77).max_tokens == 77


def test_checkpoints_are_at_least_20_s_apart():
    assert HardwareConfig().checkpoint_seconds == 20


@pytest.mark.parametrize(("stage", "knob"), [(Ppo, "kl_coef"), (Ppo, "missing_eos_reward"), (Sft, "learning_rate")])
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_a_knob_that_is_no_finite_number_is_refused(stage, knob, value):
    with pytest.raises(ConfigError, match=f"{knob}: expected a finite number, got"):
        stage(**{knob: value})
