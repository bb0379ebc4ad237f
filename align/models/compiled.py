"""Compile the layers of a model with `torch.compile`."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from align.errors import ConfigError
from align.models.packed import head_is_plain

# Fraction of a layer's activations kept for the backward pass. The cheapest ones are recomputed.
KEPT = 0.6  # measured with benchmarks/pretrain.py


def compile_layers(model: PreTrainedModel) -> None:
    """Compile each layer of the model lazily, on its first call; weights keep their names.

    Raises:
        ConfigError: the model is on a CPU and there is no C++ compiler.
    """
    import torch._functorch.config as partitioner  # import here: it takes seconds
    from torch._inductor.cpp_builder import get_cpp_compiler

    if model.device.type == "cpu":
        try:
            get_cpp_compiler()
        except RuntimeError:
            raise ConfigError(
                "hardware.compile: expected a C++ compiler, g++ or what CXX says, got none; install"
                " one, or leave compile=false"
            ) from None
    # Test the head before compiling, so that the first compiled input is a real batch.
    head_is_plain(model)
    # When torch 2.13 recomputes, it draws new, different dropout masks (pytorch/pytorch#190758).
    # So with dropout, recompute nothing.
    partitioner.activation_memory_budget = 1.0 if _drops_out(model) else KEPT
    for module in model.modules():
        if isinstance(module, torch.nn.ModuleList):
            for layer in module:
                layer.compile()


def _drops_out(model: PreTrainedModel) -> bool:
    """Return True if a layer has dropout, as a module or as a rate."""
    return any(
        isinstance(share, float) and share > 0
        for module in model.modules()
        for name, share in vars(module).items()
        if "dropout" in name or (name == "p" and isinstance(module, torch.nn.Dropout))
    )
