"""Layers that `torch.compile` makes one program of."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from align.errors import ConfigError
from align.models.packed import head_is_plain

# Share of a layer's activations that are kept for the backward pass; what is cheapest to compute again is not.
_KEPT = 0.6  # benchmarks/pretrain.py


def compile_layers(model: PreTrainedModel) -> None:
    """Have each kind of layer compiled when it is first run; the weights keep their names.

    Raises:
        ConfigError: the model is on a CPU, and there is no C++ compiler here.
    """
    import torch._functorch.config as partitioner  # here, for they take seconds
    from torch._inductor.cpp_builder import get_cpp_compiler

    if model.device.type == "cpu":
        try:
            get_cpp_compiler()
        except RuntimeError:
            raise ConfigError(
                "hardware.compile: expected a C++ compiler, g++ or what CXX says, got none; install one, or leave "
                "compile=false"
            ) from None
    head_is_plain(model)  # measured before, so that what is compiled first is a batch
    # torch 2.13 would draw the masks of dropout anew where it computes again, other ones (pytorch/pytorch#190758).
    partitioner.activation_memory_budget = 1.0 if _drops_out(model) else _KEPT
    for module in model.modules():
        if isinstance(module, torch.nn.ModuleList):
            for layer in module:
                layer.compile()


def _drops_out(model: PreTrainedModel) -> bool:
    """True where a layer has dropout, as a module or as a share."""
    return any(
        isinstance(share, float) and share > 0
        for module in model.modules()
        for name, share in vars(module).items()
        if "dropout" in name or (name == "p" and isinstance(module, torch.nn.Dropout))
    )
