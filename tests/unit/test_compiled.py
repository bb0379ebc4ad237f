"""Compiled layers: what they compute, and what is said where none can be made."""

from __future__ import annotations

import shutil

import pytest
import torch
from tiny_models import tiny_tokenizer
from transformers import PreTrainedModel

from align.configs import ModelConfig
from align.errors import ConfigError
from align.evals.text_loss import summed_loss
from align.models import compiled
from align.models.build import build_model
from align.models.compiled import compile_layers


def small(architecture: str, dropout: float) -> PreTrainedModel:
    torch.manual_seed(0)
    sizes = {"hidden_size": 128, "num_layers": 2, "num_heads": 4, "context_length": 256, "initializer_range": 0.1}
    return build_model(ModelConfig(architecture=architecture, dropout=dropout, **sizes), tiny_tokenizer()).train()


@pytest.mark.parametrize("architecture", ["gpt2", "gpt_neox", "llama", "openai-gpt"])
def test_dropout_is_seen_in_every_architecture(architecture):
    assert compiled._drops_out(small(architecture, 0.1))
    assert not compiled._drops_out(small(architecture, 0.0))


def test_dropout_of_attention_alone_is_seen():
    options = {"attn_pdrop": 0.1}
    sizes = {"hidden_size": 32, "num_layers": 1, "num_heads": 2, "context_length": 32, "dropout": 0.0}
    config = ModelConfig(architecture="openai-gpt", options=options, **sizes)
    assert compiled._drops_out(build_model(config, tiny_tokenizer()))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler here")
def test_the_gradient_is_of_the_very_masks_that_dropped_out(monkeypatch):
    """The slope of the loss along the gradient is the gradient's norm, with the random stream begun anew each time."""
    monkeypatch.setattr(compiled, "KEPT", 0.3)
    model = small("gpt2", 0.1)
    compile_layers(model)
    rows = torch.randint(5, 260, (4, 256))

    def loss() -> torch.Tensor:
        torch.manual_seed(7)
        return summed_loss(model, rows) / rows.numel()

    loss().backward()
    gradient = {p: p.grad.clone() for p in model.parameters()}
    norm = torch.stack([g.norm() for g in gradient.values()]).norm()
    ends = []
    for step in (0.01, -0.02):
        with torch.no_grad():
            for parameter, own in gradient.items():
                parameter.add_(own / norm, alpha=step)
        ends.append(float(loss().detach()))
    assert (ends[0] - ends[1]) / 0.02 == pytest.approx(float(norm), rel=1e-3)


def test_without_a_compiler_it_is_said_before_anything_is_trained(monkeypatch):
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", ("no-such-compiler",))
    with pytest.raises(ConfigError, match=r"hardware\.compile: expected a C\+\+ compiler"):
        compile_layers(small("gpt2", 0.0))
