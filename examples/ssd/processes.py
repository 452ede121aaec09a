"""One process or many: `torchrun` starts them, and here they agree on sums and share results."""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from examples.ssd.data import Share
from examples.ssd.errors import DetectionError, RequestError

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

    def any(self, told: bool) -> bool:
        """Whether it is true in any process."""
        return self.summed(torch.tensor(float(told))).item() > 0

    def from_first(self, make: Callable[[], Value]) -> Value:
        """What the first process makes, in every process; what it cannot do stops all of them."""
        if not self.several:
            return make()
        made: list[Any] = [None]
        if self.first:
            try:
                made = [make()]
            except DetectionError as problem:
                made = [problem]
        dist.broadcast_object_list(made, 0)
        if isinstance(made[0], DetectionError):
            raise made[0]
        return made[0]

    def agree(self, values: Iterable[Tensor]) -> None:
        """Give every process the first one's values."""
        if self.several:
            for value in values:
                dist.broadcast(value, 0)


@contextmanager
def processes(device: torch.device) -> Iterator[Processes]:
    """Join the run that `torchrun` started, if it did."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield Processes(Share(), device)
        return
    if device.type == "cuda":
        place, there = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if place >= there:
            raise RequestError(
                f"torchrun starts more processes here than there are GPUs ({there}): --nproc-per-node."
            )
        device = torch.device("cuda", place)
        torch.cuda.set_device(device)
    # What is on the CPU is exchanged there: to agree on a stop, no process waits for its GPU.
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    try:
        yield Processes(Share(dist.get_rank(), dist.get_world_size()), device)
    finally:
        dist.destroy_process_group()
