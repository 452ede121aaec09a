"""How long one image takes: the paper's Table 4, for every row, on this machine.

    python -m examples.ssd.benchmark                                    # every row, 1000 runs each
    python -m examples.ssd.benchmark --rows SSDMnetv1-S1L0 --runs 50 --device cpu

The network alone, without reading, resizing or suppressing, one image at a time, as in the paper. The
rows take turns, so that a machine that slows down slows all of them; what is compared is the ratio
to the base, SSDMnetv1, which always runs.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from time import perf_counter

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from examples.ssd.configurations import ROWS, find
from examples.ssd.model import Network, build
from examples.ssd.paper import TABLE_4
from examples.ssd.programs import as_table, positive, run, wanted_device

BASE = "SSDMnetv1"
WARMUP = 5  # runs that are not counted


def caller(net: nn.Module, images: Tensor, compiled: bool = False) -> Callable[[], object]:
    """Return what runs a network on images, and waits for the device."""
    net = net.eval().to(images)
    if compiled:
        net.compile()

    @torch.inference_mode()
    def call() -> None:
        net(images)
        if images.is_cuda:
            torch.cuda.synchronize()

    return call


def measure(calls: Mapping[str, Callable[[], object]], runs: int) -> dict[str, list[float]]:
    """Return milliseconds of each call, made in turn."""
    rounds = []
    for _ in tqdm(range(WARMUP + runs), desc="rounds", leave=False):
        times = [perf_counter()]
        for call in calls.values():
            call()
            times.append(perf_counter())
        rounds.append(np.diff(times) * 1e3)
    return dict(zip(calls, np.array(rounds[WARMUP:]).T.tolist(), strict=True))


def main(argv: Sequence[str] | None = None) -> None:
    """Time the rows that are asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--rows", nargs="+", default=list(ROWS), metavar="ROW", help="(all)")
    add("--runs", type=positive, default=1000, help="of each (1000)")
    add("--device", help="cpu, cuda, ... (default: the GPU if there is one)")
    add("--compile", action="store_true", help="torch.compile")
    arguments = parser.parse_args(argv)
    device, calls = wanted_device(arguments.device), {}
    for row in map(find, dict.fromkeys([BASE, *arguments.rows])):
        image = torch.rand(1, 3, row.size, row.size, device=device)
        calls[row.name] = caller(Network(build(row)), image, arguments.compile)
    times, lines = measure(calls, arguments.runs), []
    for name, own in times.items():
        low, median, high = np.quantile(own, (0.25, 0.5, 0.75))
        ratio, ms = median / np.median(times[BASE]), TABLE_4.get(name)
        paper = ("", "") if ms is None else (f"{ms:.1f}", f"{ms / TABLE_4[BASE]:.2f}")
        lines.append((name, f"{median:.2f}", f"{low:.2f} to {high:.2f}", f"{ratio:.2f}", *paper))
    header = ("network", "ms", "half of the runs", "ratio", "paper ms", "paper ratio")
    print(f"{arguments.runs} runs on {device}\n{as_table(header, lines)}")


if __name__ == "__main__":
    run(main)
