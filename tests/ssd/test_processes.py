"""What several processes agree on, tried in two that share no folder, as on two machines."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F

from examples.ssd import checkpoint, train
from examples.ssd.arguments import parse_arguments
from examples.ssd.data import Epoch, Share
from examples.ssd.errors import RequestError, TrainingError
from examples.ssd.norms import SharedNorms
from examples.ssd.processes import Processes
from examples.ssd.stop import Stop
from tests.ssd.conftest import SMALL


def both(rank: int, folder: Path, shapes: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    everyone = Processes(Share(rank, 2), torch.device("cpu"))
    shared_norms_are_those_of_one_process(rank)
    they_agree(everyone)
    a_run_goes_on_from_the_first_ones_checkpoint(everyone, folder / str(rank), shapes)
    one_that_cannot_read_an_image_stops_all(everyone, folder / str(rank), shapes)
    dist.destroy_process_group()


def test_two_processes(tmp_path: Path, shapes: Path) -> None:
    torch.multiprocessing.spawn(both, (tmp_path, shapes), nprocs=2)


def shared_norms_are_those_of_one_process(rank: int) -> None:
    """Their outputs, gradients and running statistics; each process has half of the batch."""
    own, everything = slice(2 * rank, 2 * rank + 2), slice(0, 4)
    alone = normalised(everything)
    with SharedNorms():
        shared = normalised(own)
    for gradient in shared[2:4]:
        dist.all_reduce(gradient)  # of weight and bias: what DistributedDataParallel does
    torch.testing.assert_close((alone[0][own], alone[1][own], *alone[2:]), shared)


def normalised(part: slice) -> tuple[torch.Tensor, ...]:
    """Outputs and gradients of the input, the weight and the bias, running mean and variance."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((4, 3, 5, 2), (4, 3, 5, 2), (3,), (3,))
    x, wanted, weight, bias = (
        torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes
    )
    leaves = [v.requires_grad_() for v in (x[part].clone(), weight, bias)]
    mean, variance = torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    y = F.batch_norm(leaves[0], mean, variance, leaves[1], leaves[2], training=True)
    return y.detach(), *torch.autograd.grad((y * wanted[part]).sum(), leaves), mean, variance


def they_agree(everyone: Processes) -> None:
    assert everyone.any(everyone.first) and not everyone.any(False)
    assert everyone.from_first(lambda: everyone.share.rank) == 0

    def refuse() -> None:
        raise RequestError("the first one cannot")

    with pytest.raises(RequestError, match="the first one cannot"):
        everyone.from_first(refuse)


def training(everyone: Processes, out: Path, shapes: Path, *more: str) -> None:
    recipe = [
        "--epochs",
        "1",
        "--batch",
        "4",
        "--lr",
        "0.005",
        "--eval-every",
        "0",
        "--data",
        str(shapes),
    ]
    train.train(parse_arguments([*SMALL, *recipe, "--out", str(out), *more]), everyone, Stop())


def a_run_goes_on_from_the_first_ones_checkpoint(
    everyone: Processes, folder: Path, shapes: Path
) -> None:
    training(everyone, folder / "whole", shapes)
    training(everyone, folder / "part", shapes, "--max-steps", "2")
    with pytest.raises(RequestError, match="another run than the first: --seed 0"):
        training(everyone, folder / "other", shapes, "--seed", str(everyone.share.rank))
    with pytest.raises(RequestError, match="holds another run"):
        training(everyone, folder / "part", shapes)
    training(everyone, folder / "part", shapes, "--resume")
    if everyone.first:
        whole, part = (
            checkpoint.load(folder / name / "last.pt")["model"] for name in ("whole", "part")
        )
        assert all(torch.equal(whole[key], part[key]) for key in whole)
        tables = [(folder / name / "evaluation.csv").read_text() for name in ("whole", "part")]
        assert tables[0] == tables[1]
    else:
        assert not folder.exists()


def one_that_cannot_read_an_image_stops_all(
    everyone: Processes, folder: Path, shapes: Path
) -> None:
    """In the third step, and the second one's image."""
    tickets = list(Epoch(16, 4, seed=0, epoch=0, share=Share(1, 2)))[2]
    data = folder / "shapes"
    shutil.copytree(shapes, data)
    content = json.loads((data / "annotations/instances_train2017.json").read_text())
    victim = data / "train2017" / content["images"][tickets[0].position]["file_name"]
    victim.write_bytes(victim.read_bytes()[:1000])
    if everyone.first:
        training(everyone, folder / "stopped", data)
        assert checkpoint.load(folder / "stopped/last.pt")["step"] == 2
    else:
        with pytest.raises(TrainingError, match=f"{victim.name} does not decode"):
            training(everyone, folder / "stopped", data)
