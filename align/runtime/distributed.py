"""The processes that run one step together (`hardware.num_processes`)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from align.errors import ConfigError

if TYPE_CHECKING:
    import torch

T = TypeVar("T")


class Rank(NamedTuple):
    """The place of a process among those that run a step together."""

    number: int  # from 0
    world_size: int


ALONE = Rank(0, 1)


class ProcessGroup:
    """The group of processes that run a step, seen from this process.

    With one process, no method communicates.

    Attributes:
        rank: the rank of this process. Only rank 0 writes files.
        world_size: the number of processes.
        device: the device on which this process computes.
    """

    def __init__(self, device: torch.device, rank: int = 0, world_size: int = 1):
        self.device, self.rank, self.world_size = device, rank, world_size

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def share(self, items: Sequence[T]) -> list[T]:
        """Return this process's part of the work: every `world_size`-th item."""
        return list(items[self.rank :: self.world_size])

    def gather(self, items: list[T], even: bool = True) -> list[T]:
        """Return the items of all processes.

        Args:
            items: the items of this process.
            even: if true, restore the order that the items had before `share`; else return the
                items of rank 0, then those of rank 1, and so on.
        """
        if self.world_size == 1:
            return items
        import torch.distributed as dist

        parts: list[Any] = [None] * self.world_size
        dist.all_gather_object(parts, items)
        if not even:
            return [item for part in parts for item in part]
        whole: list[Any] = [None] * sum(map(len, parts))
        for rank, part in enumerate(parts):
            whole[rank :: self.world_size] = part
        return whole

    def all_reduce(self, tensor: torch.Tensor) -> None:
        """Sum a tensor over processes, in place."""
        if self.world_size > 1:
            import torch.distributed as dist

            dist.all_reduce(tensor)

    def any(self, flag: bool) -> bool:
        """Return whether the flag is true in any process."""
        if self.world_size == 1:
            return flag
        import torch

        total = torch.tensor(float(flag), device=self.device)
        self.all_reduce(total)
        return bool(total)

    def sum_gradients(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        """Sum gradients over processes.

        Each process has the gradient of its part of the loss, divided by the size of the whole
        batch. So the sum is the gradient of the mean loss.
        """
        if self.world_size == 1:
            return
        import torch

        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
        flat = torch.cat([g.flatten() for g in gradients])
        self.all_reduce(flat)
        for parameter, gradient in zip(
            parameters, flat.split([g.numel() for g in gradients]), strict=True
        ):
            parameter.grad = gradient.view_as(parameter)

    def barrier(self) -> None:
        """Wait until every process has called this method."""
        if self.world_size > 1:
            import torch.distributed as dist

            dist.barrier()


def choose_device(name: str) -> torch.device:
    """Return the device for `hardware.device`. With several processes, each gets its own GPU.

    Args:
        name: auto, cpu or cuda.

    Raises:
        ConfigError: `name` is cuda and torch finds no GPU, or there are more processes than GPUs.
    """
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "hardware.device: cuda was asked for and torch finds none; use auto or cpu"
        )
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    local = int(os.environ.get("LOCAL_RANK", "0"))  # set by `run_ranks`: one GPU per process
    count = torch.cuda.device_count()
    if local >= count:
        raise ConfigError(
            "hardware.num_processes: expected at most one process per GPU, and torch finds"
            f" {count} GPUs"
        )
    device = torch.device("cuda", local)
    torch.cuda.set_device(device)
    return device
