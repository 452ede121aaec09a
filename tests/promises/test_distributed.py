"""A rewritten graph trains under DistributedDataParallel: two processes, gloo."""

from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

import stridesurgery as ss
from tests.models import create, image


def train_one_step(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    graph = ss.eliminate(create("regnetx_002"), S=1, form="graph", input_size=64).train()
    wrapped = nn.parallel.DistributedDataParallel(graph)
    wrapped(image(64, batch=2, seed=rank)).square().mean().backward()
    torch.save([p.grad for p in graph.parameters()], f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_agree_on_the_gradients(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(train_one_step, (str(tmp_path),), nprocs=2)
    mine, other = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    for a, b in zip(mine, other, strict=True):
        assert a.abs().max() > 0
        torch.testing.assert_close(a, b)
