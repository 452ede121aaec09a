"""One process or several, as `torchrun` starts them: what they agree on, and how they stop."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class Processes:
    """All processes of a run, and which of them this is; the first one writes files and speaks."""

    def __init__(self, device: torch.device, rank: int = 0, world: int = 1) -> None:
        self.device, self.rank, self.world, self.first = device, rank, world, rank == 0

    def sum(self, values: Tensor) -> list[float]:
        """Return the sum over all processes of a tensor on the CPU."""
        if self.world > 1:
            dist.all_reduce(values)
        return values.tolist()

    def gather(self, value: Any) -> list[Any]:
        """Return the value of every process, in every process."""
        values = [value] * self.world
        if self.world > 1:
            dist.all_gather_object(values, value)
        return values


@contextmanager
def processes(device: torch.device) -> Iterator[Processes]:
    """Join the run that `torchrun` started, if it did."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Processes(device)
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    try:
        yield Processes(device, dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()


class Stop:
    """Set by SIGTERM or Ctrl-C while entered, however often they come; Ctrl-\\ ends at once."""

    code = 0  # the exit code of who was told

    def __enter__(self) -> "Stop":
        numbers = (signal.SIGTERM, signal.SIGINT)
        self.before = {number: signal.signal(number, self._note) for number in numbers}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: Any) -> None:
        self.code = self.code or 128 + number
