"""Rebuild the paper's tables of compute, parameters and latency from the networks themselves.

    python -m examples.ssd.tables                                        # every row
    python -m examples.ssd.tables --rows SSDMnetv1-S1L0 SSD-VGG16
    python -m examples.ssd.tables --runs 1000 --rows SSDMnetv1-S1L0      # Table 4: latency

The network alone is timed, one image at a time, as in the paper; what is compared is the ratio to
the base, SSDMnetv1, which always runs.
"""

import argparse
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from time import perf_counter

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from examples.ssd import counting, model
from examples.ssd.configurations import ROWS, find
from examples.ssd.paper import PRINTED, TABLE_4
from examples.ssd.programs import as_table, natural, run, wanted_device

BASE = "SSDMnetv1"
WARMUP = 5  # runs that are not counted
HEADER = "row compute paper params paper agrees priors outside true maps".split()
FOOT = """
compute: in giga, by the paper's rule (see examples.ssd.counting); params: in millions.
agrees: docs/paper.md says why SSD-VGG16-S1L2 and PeleeNet do not; -: not in the paper's tables.
outside: priors centred outside the image at the paper's steps, before clipping; true: with the
steps and offsets of the geometry (--true-anchors in the other programs)."""


def counted(name: str) -> list[str]:
    """Build a row, count, and return a line of the table."""
    row = find(name)
    ssd = model.build(row)
    maps, outside = model.maps(ssd), []
    for kind in (row, replace(row, steps=None)):
        centres = model.DefaultBoxes(kind, maps).boxes[:, :2]
        outside.append(int(((centres < 0) | (centres > 1)).any(dim=1).sum()))
    compute = counting.compute(model.Network(ssd), row.size) / 1e9
    params = counting.parameters(ssd) / 1e6
    stated, agrees = PRINTED.get(name, ("", None)), "-"
    if name in PRINTED:
        found = (as_printed(params), as_printed(compute) if stated[1] else None)
        agrees = "yes" if found == stated else "no"
    own = [f"{compute:.2f}", str(stated[1] or ""), f"{params:.2f}", str(stated[0]), agrees]
    sides = " ".join(str(level.grid[0]) for level in maps)
    return [name, *own, str(len(centres)), *map(str, outside), sides]


def as_printed(value: float) -> float:
    """Round to two decimals as the paper's counter prints, then half up to one as a person does."""
    return math.floor(round(value, 2) * 10 + 0.5 + 1e-9) / 10


def as_text(rows: Iterable[str]) -> str:
    """Return the table of some rows."""
    return as_table(HEADER, map(counted, rows), left=(9,)) + "\n" + FOOT


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


def timed(rows: Iterable[str], runs: int, device: torch.device) -> str:
    """Return Table 4, of this device."""
    calls, lines = {}, []
    for row in map(find, dict.fromkeys([BASE, *rows])):
        image = torch.rand(1, 3, row.size, row.size, device=device)
        calls[row.name] = caller(model.Network(model.build(row)), image)
    times = measure(calls, runs)
    for name, own in times.items():
        low, median, high = np.quantile(own, (0.25, 0.5, 0.75))
        ratio, ms = median / np.median(times[BASE]), TABLE_4.get(name)
        paper = ("", "") if ms is None else (f"{ms:.1f}", f"{ms / TABLE_4[BASE]:.2f}")
        lines.append((name, f"{median:.2f}", f"{low:.2f} to {high:.2f}", f"{ratio:.2f}", *paper))
    return as_table(("row", "ms", "half of the runs", "ratio", "paper ms", "paper ratio"), lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Build the rows that are asked for and print them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--rows", nargs="+", default=list(ROWS), metavar="ROW", help="(all)")
    add("--runs", type=natural, default=0, help="time that many runs instead of counting")
    add("--device", help="to time on: cpu, cuda, ... (default: the GPU if there is one)")
    a = parser.parse_args(argv)
    print(timed(a.rows, a.runs, wanted_device(a.device)) if a.runs else as_text(a.rows))


if __name__ == "__main__":
    run(main)
