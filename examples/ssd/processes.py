"""One process or many: `torchrun` starts them, and here they agree on sums and share results."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from examples.ssd.data import Share

Value = TypeVar("Value")


@dataclass(frozen=True)
class Processes:
    """All processes of a run, and which of them this is."""

    share: Share
    device: torch.device

    @property
    def first(self) -> bool:
        """The one that writes files and speaks."""
        return self.share.rank == 0

    @property
    def several(self) -> bool:
        return self.share.world > 1

    def summed(self, values: Tensor) -> Tensor:
        """The sum over all processes."""
        if self.several:
            values = values.clone()
            dist.all_reduce(values)
        return values

    def gathered(self, value: Value) -> list[Value]:
        """The value of every process, in every process."""
        if not self.several:
            return [value]
        values: list[Value | None] = [None] * self.share.world
        dist.all_gather_object(values, value)
        return values  # type: ignore[return-value]

    def agree(self, values: Iterable[Tensor]) -> None:
        """Give every process the first one's values."""
        if self.several:
            for value in values:
                dist.broadcast(value, 0)

    def wait(self) -> None:
        if self.several:
            dist.barrier()


@contextmanager
def processes(device: torch.device) -> Iterator[Processes]:
    """Join the run that `torchrun` started, if it did."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield Processes(Share(), device)
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Processes(Share(dist.get_rank(), dist.get_world_size()), device)
    finally:
        dist.destroy_process_group()
