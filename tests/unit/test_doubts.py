"""What is said before a training that can hardly change its model."""

from __future__ import annotations

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from align.training.preflight import doubts, typical_spacing


def model(dtype: torch.dtype) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    made = GPT2LMHeadModel(GPT2Config(vocab_size=500, n_embd=64, n_layer=1, n_head=2, n_positions=16))
    made.stored_dtype = dtype
    return made


def test_fewer_than_fifty_steps_are_said():
    (line,) = doubts([1e-4] * 49, model(torch.float32), trains_all=True)
    assert line.startswith("only 49 optimizer steps")
    assert not list(doubts([1e-4] * 50, model(torch.float32), trains_all=True))


def test_the_spacing_is_the_distance_to_the_next_number():
    made = model(torch.bfloat16)
    largest = made.transformer.wte.weight.detach().flatten()
    median = largest.abs().median().to(torch.bfloat16)
    after = torch.nextafter(median, torch.tensor(torch.inf, dtype=torch.bfloat16))
    assert typical_spacing(made, torch.bfloat16) == float(after) - float(median)


def test_a_rate_that_is_lost_in_storage_is_said():
    made = model(torch.bfloat16)
    edge = typical_spacing(made, torch.bfloat16) / 2
    (line,) = doubts([0.99 * edge / 60] * 60, made, trains_all=True)
    assert "bfloat16" in line
    assert "raise learning_rate" in line
    assert not list(doubts([1.01 * edge / 60] * 60, made, trains_all=True))
    assert not list(doubts([0.99 * edge / 60] * 60, made, trains_all=False))  # adapters are stored in float32
    assert not list(doubts([0.99 * edge / 60] * 60, model(torch.float32), trains_all=True))
