"""Packed rows for models that align's attention does not fit.

Callers pass a packed row and get a packed row. Inside, each sequence is one row of a right-padded
batch, and the model uses its own attention. Padding comes last, where causal attention does not
look.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from align.models.attention import PackedLayout, packed_layout


def read_padded(model: PreTrainedModel) -> None:
    """Make the model's trunk read packed rows as right-padded batches.

    A second call changes nothing.
    """
    trunk = _trunk(model)
    if isinstance(trunk.forward, PaddedForward):
        return
    trunk.forward = PaddedForward(trunk.forward, _takes_positions(trunk))
    if not _takes_positions(model):
        model.register_forward_pre_hook(_hand_on_positions, with_kwargs=True)


def is_padded(model: PreTrainedModel) -> bool:
    return isinstance(_trunk(model).forward, PaddedForward)


def _trunk(model: PreTrainedModel) -> torch.nn.Module:
    """Return the module that every path through the model calls.

    OPT's head calls the only child of its trunk, not the trunk itself.
    """
    parts = list(model.base_model.children())
    return (
        parts[0] if len(parts) == 1 and isinstance(parts[0], PreTrainedModel) else model.base_model
    )


def _takes_positions(module: torch.nn.Module) -> bool:
    return "position_ids" in inspect.signature(module.forward).parameters


def _hand_on_positions(
    model: PreTrainedModel, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Any, Any]:
    """Pass `position_ids` to the trunk's `PaddedForward` (a forward pre-hook).

    Bloom and MPT drop positions before their trunk. Without them, a packed row would be one
    sequence.
    """
    reader = _trunk(model).forward
    assert isinstance(reader, PaddedForward)
    reader.handed_on = kwargs.pop("position_ids", None)
    return args, kwargs


@dataclass
class PaddedForward:
    """The forward of a trunk, extended to packed rows.

    This is a class and not a closure, so that a deep copy of the model gets its own copy.

    Attributes:
        forward: the trunk's original forward.
        takes_positions: False if the trunk computes positions itself, or has none.
        handed_on: positions that the model does not pass to its trunk; used once.
    """

    forward: Callable[..., Any]
    takes_positions: bool
    handed_on: torch.Tensor | None = None

    def __call__(
        self,
        input_ids: torch.Tensor | None = None,
        *args: Any,
        position_ids: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        if position_ids is None:
            position_ids, self.handed_on = self.handed_on, None
        if position_ids is not None and input_ids is not None and not args:
            whole = kwargs.get("attention_mask") is None and kwargs.get("past_key_values") is None
            starts = _starts(position_ids.expand_as(input_ids)) if whole else None
            if starts is not None and bool(starts[:, 1:].any()):
                return self._packed(input_ids, position_ids.expand_as(input_ids), starts, kwargs)
        if position_ids is not None and self.takes_positions:
            kwargs["position_ids"] = position_ids
        return self.forward(input_ids, *args, **kwargs)

    def _packed(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        starts: torch.Tensor,
        kwargs: dict[str, Any],
    ) -> Any:
        """Run one pass per group of sequences of similar length.

        Returns:
            The trunk's output, in the order of the packed tokens.
        """
        # Do not round lengths up: some models have only as many positions as their context.
        layout = packed_layout(starts.flatten(), rounding=1)
        real = torch.ones(
            sum(rows * width for rows, width in layout.shapes),
            dtype=torch.long,
            device=input_ids.device,
        )
        real[layout.padding] = 0
        flat_ids, flat_positions = input_ids.flatten(), position_ids.flatten()
        if layout.tokens is not None:
            flat_ids, flat_positions = flat_ids[layout.tokens], flat_positions[layout.tokens]
        given = {
            name: value
            for name, value in kwargs.items()
            if name not in ("attention_mask", "use_cache")
        }
        found, begin = [], 0
        for shape in layout.shapes:
            at = slice(begin, begin + shape[0] * shape[1])
            begin = at.stop
            # Padding repeats the last position of its sequence, so no position exceeds the context.
            places = (
                {"position_ids": flat_positions[at].view(shape)} if self.takes_positions else {}
            )
            mask = real[at].view(shape)
            found.append(
                self.forward(
                    input_ids=flat_ids[at].view(shape),
                    attention_mask=mask,
                    use_cache=False,
                    **places,
                    **given,
                )
            )
        return _together(found, layout, input_ids.shape)


def _starts(position_ids: torch.Tensor) -> torch.Tensor:
    """Return [R, N] bool: True where a sequence begins."""
    starts = torch.ones_like(position_ids, dtype=torch.bool)
    starts[:, 1:] = position_ids[:, 1:] != position_ids[:, :-1] + 1
    return starts


def _together(found: Sequence[Any], layout: PackedLayout, shape: torch.Size) -> Any:
    """Combine the outputs of all groups into one output.

    Tensors [S, L, ...] of the groups become one tensor [R, N, ...], for R packed rows of N tokens.
    Flat tensors [S * L, ...] become [R * N, ...].
    """
    first = found[0]
    if isinstance(first, torch.Tensor) and first.dim() > 0:
        flat = [
            part.flatten(0, 1) if part.shape[:2] == size else part
            for part, size in zip(found, layout.shapes, strict=True)
        ]
        joined = torch.cat(flat).index_select(0, layout.places)
        return (
            joined.view(*shape, *joined.shape[1:])
            if first.shape[:2] == layout.shapes[0]
            else joined
        )
    if isinstance(first, dict):  # outputs of `transformers` are dicts
        return type(first)(
            **{name: _together([part[name] for part in found], layout, shape) for name in first}
        )
    if isinstance(first, tuple):
        return tuple(_together(parts, layout, shape) for parts in zip(*found, strict=True))
    return first
