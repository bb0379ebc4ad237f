"""Estimate the memory for activations, and recompute layers in the backward pass to save it."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from align.errors import ConfigError
from align.models.load import context_length
from align.runtime.job import Job
from align.runtime.memory import give_back_freed_memory

_SAMPLE_TOKENS = 32, 64  # lengths of the two passes that are compared
# Bytes per trained weight that are allocated later: gradient and Adam's two moments, in float32.
_STATE = 12
_SHARE = 0.25  # of the free memory; activations that take more are recomputed


Again = Callable[[], AbstractContextManager[Any]]


class Sharing(NamedTuple):
    """Who shares memory: processes of one machine, and models of one size in each."""

    num_processes: int = 1
    num_models: int = 1


_ALONE = Sharing()


def fit_activations(
    job: Job,
    model: PreTrainedModel,
    precision: str,
    longest: int,
    again: Again | None = None,
    num_models: int = 1,
) -> None:
    """Turn activation checkpointing on as `hardware.activation_checkpointing` says.

    If the choice is automatic, log it.

    Args:
        longest: tokens of the longest sequence. A sequence longer than one pass is a pass of its
            own.
        again: see `limit_activations`; for models whose adapters are switched.
        num_models: models of this size that are trained in the same step.
    """
    compute = job.compute(precision)
    line = limit_activations(
        model,
        job.hardware.activation_checkpointing,
        max(compute.max_tokens, longest),
        compute.autocast(),
        again=again or nullcontext,
        sharing=Sharing(job.group.world_size, num_models),
    )
    if line:
        job.log.info(line)


def limit_activations(
    model: PreTrainedModel,
    asked: bool | None,
    max_tokens: int,
    autocast: AbstractContextManager[Any],
    *,
    again: Again = nullcontext,
    sharing: Sharing = _ALONE,
) -> str | None:
    """Turn activation checkpointing on if asked for, or if memory is too small without it.

    Args:
        model: changed in place. The parameters that are trained must require gradients.
        asked: on or off; None: on if the activations of one pass would take more than a quarter of
            the free memory.
        max_tokens: tokens of the largest forward and backward pass.
        autocast: the precision of the pass.
        again: called in a forward pass. The context that it returns is entered around the second
            computation of a layer in the backward pass, when another adapter may be on.
        sharing: who shares the memory of the machine.

    Returns:
        A line for the user if it was turned on automatically, or is needed but not supported.

    Raises:
        ConfigError: it is asked for, and the architecture has no layers that support it.
    """
    give_back_freed_memory()  # freed by loading
    if asked is False:
        return None
    kind, line, amount = model.config.model_type, None, ""
    if asked is None:
        needed = max_tokens * activation_bytes(model, autocast)
        trained = sum(
            parameter.numel() for parameter in model.parameters() if parameter.requires_grad
        )
        processes = sharing.num_processes if model.device.type == "cpu" else 1
        free = free_memory(model.device) / processes - _STATE * trained * sharing.num_models
        if needed <= _SHARE * free:
            return None
        amount = (
            f"the activations of {max_tokens:,} tokens would take {needed / 2**30:.1f} of "
            f"{max(free, 0) / 2**30:.1f} GiB free"
        )
        line = f"activation checkpointing is on: {amount}"
    if checkpoint_layers(model, again):
        return line
    if asked:
        raise ConfigError(
            f"hardware.activation_checkpointing: layers of {kind} cannot do that; leave it out"
        )
    return f"{amount}, and layers of {kind} have no activation checkpointing"


def activation_bytes(model: PreTrainedModel, autocast: AbstractContextManager[Any]) -> float:
    """Return the bytes per token that a forward pass keeps for the backward pass.

    They are measured by two short passes. What both keep alike, such as weights cast to bf16, is
    not an activation.
    """
    few, many = (min(tokens, context_length(model)) for tokens in _SAMPLE_TOKENS)
    if few == many:
        return _kept_bytes(model, many, autocast) / many
    return (_kept_bytes(model, many, autocast) - _kept_bytes(model, few, autocast)) / (many - few)


def _kept_bytes(
    model: PreTrainedModel, num_tokens: int, autocast: AbstractContextManager[Any]
) -> int:
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        # The output itself would hold its own graph, which would then never be freed.
        return tensor.detach()

    place = torch.arange(num_tokens, device=model.device)[None]
    ids = place % model.config.get_text_config(decoder=True).vocab_size
    given = (
        {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {"position_ids": place}
    )
    own = [model.device] if model.device.type == "cuda" else []
    hooks = torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor)
    with torch.random.fork_rng(devices=own), hooks, autocast:
        output = model.base_model(input_ids=ids, use_cache=False, **given)
    del output  # until here it kept each counted tensor at its own address
    return sum(kept.values())


def free_memory(device: torch.device) -> int:
    """Return the bytes that are still available.

    That is on the GPU, or on the machine within the limit of its container.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = psutil.virtual_memory().available
    group = Path("/sys/fs/cgroup")
    limit, used, parts = (group / f"memory.{name}" for name in ("max", "current", "stat"))
    if (
        limit.is_file()
        and used.is_file()
        and parts.is_file()
        and (text := limit.read_text().strip()).isdigit()
    ):
        cached = dict(line.split() for line in parts.read_text().splitlines()).get(
            "inactive_file", "0"
        )
        # The kernel can reclaim the cache of files.
        free = min(free, int(text) - int(used.read_text()) + int(cached))
    return free


def checkpoint_layers(model: PreTrainedModel, again: Again = nullcontext) -> bool:
    """Make each layer keep only its input and recompute its activations in the backward pass.

    The library's own switch works in training mode only. PPO and reward models train in eval mode,
    without dropout.

    Returns:
        False if the architecture has no layers that support it.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, GradientCheckpointingLayer)]
    for layer in layers:
        # A bound method, so that a deep copy of the model gets one bound to its own layer.
        layer.forward = functools.partial(types.MethodType(_forward_twice, layer), again)
    return bool(layers)


def _forward_twice(layer: torch.nn.Module, again: Again, *args: Any, **kwargs: Any) -> Any:
    forward = functools.partial(type(layer).forward, layer, **kwargs)
    if not torch.is_grad_enabled():
        return forward(*args)
    second = again()
    return checkpoint(
        forward, *args, use_reentrant=False, context_fn=lambda: (nullcontext(), second)
    )
