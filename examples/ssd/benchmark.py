"""How long one image takes: the paper's Table 4, for every row, on this machine.

    python -m examples.ssd.benchmark                                    # every row, 1000 runs each
    python -m examples.ssd.benchmark --rows table4 --runs 50 --device cpu

The network alone, without reading, resizing or suppressing, one image at a time, as in the paper. The
rows take turns, so that a machine that slows down slows all of them; what is compared is the ratio
to the base, SSDMnetv1, which always runs. Ctrl-C ends the runs and prints what there is.
"""

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from examples.ssd.configurations import ROWS, find
from examples.ssd.model import Network, build
from examples.ssd.paper import TABLE_4
from examples.ssd.programs import as_table, positive, run, wanted_device

BASE = "SSDMnetv1"
WARMUP = 5  # runs that are not counted


def caller(net: nn.Module, images: torch.Tensor, compiled: bool = False) -> Callable[[], object]:
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
    """Return milliseconds of each call in turn; fewer runs where the person at the keyboard says."""
    rounds: list[list[float]] = []
    with suppress(KeyboardInterrupt):
        for _ in tqdm(range(WARMUP + runs), desc="rounds", leave=False):
            times = []
            for call in calls.values():
                started = time.perf_counter()
                call()
                times.append((time.perf_counter() - started) * 1e3)
            rounds.append(times)
    return dict(zip(calls, np.array(rounds[WARMUP:] or rounds).T.tolist(), strict=True))


def main(argv: Sequence[str] | None = None) -> None:
    """Time the rows that are asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--rows", nargs="+", default=["all"], help="names, table4, or all (default)")
    add("--runs", type=positive, default=1000, help="of each (1000)")
    add("--device", help="cpu, cuda, ... (default: the GPU if there is one)")
    add("--compile", action="store_true", help="torch.compile")
    add("--json", type=Path, help="write all times there too, milliseconds by row")
    arguments = parser.parse_args(argv)
    device, calls, several = wanted_device(arguments.device), {}, {"all": ROWS, "table4": TABLE_4}
    asked = [row for name in arguments.rows for row in several.get(name, (name,))]
    for name in dict.fromkeys([BASE, *asked]):
        row = find(name)
        image = torch.rand(1, 3, row.size, row.size, device=device)
        calls[name] = caller(Network(build(row)), image, arguments.compile)
    times, lines = measure(calls, arguments.runs), []
    for name, own in times.items():
        low, median, high = np.quantile(own, (0.25, 0.5, 0.75))
        ratio = median / np.median(times[BASE])
        ms = TABLE_4.get(name)
        paper = ("", "") if ms is None else (f"{ms:.1f}", f"{ms / TABLE_4[BASE]:.2f}")
        line = (name, f"{median:.2f}", f"{low:.2f} to {high:.2f}", f"{ratio:.2f}", *paper)
        lines.append(line)
    header = ("network", "ms", "half of the runs", "ratio", "paper ms", "paper ratio")
    print(f"{len(times[BASE])} runs on {device}\n{as_table(header, lines)}")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(times))


if __name__ == "__main__":
    run(main)
