"""Time that one image takes, beside the compute: the paper's Table 4 and the stock detector's views.

    python -m examples.study.latency                                # 1000 runs of each, as in the paper
    python -m examples.study.latency --device cuda --batch 16 --dtype bf16 --compile

The network alone, without reading, resizing or suppressing. The networks take turns, and each is
compared with the first of its group in the same round: a machine that slows down slows both.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from examples.ssd import counting
from examples.ssd.benchmark import caller, measure
from examples.ssd.configurations import find
from examples.ssd.model import Network, build
from examples.ssd.paper import TABLE_4
from examples.ssd.programs import positive, run, wanted_device
from examples.study import records
from examples.study.stock import INPUT_SIZE, load_stock
from examples.study.stock_networks import TwoPaths
from examples.study.training_free import AS_IS, DOUBLED, LARGE, SURGERIES, data_folder, views

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def paper_rows() -> dict[str, tuple[nn.Module, int]]:
    rows = [find(name) for name in (*TABLE_4, "SSDMnetv1-Size600")]
    return {row.name: (Network(build(row)), row.size) for row in rows}


def stock_rows() -> dict[str, tuple[nn.Module, int]]:
    net = load_stock(data_folder() / "weights")
    known = views(net)
    found: dict[str, tuple[nn.Module, int]] = {AS_IS: (net, INPUT_SIZE)}
    found |= {name: (known[name].net, INPUT_SIZE) for name in SURGERIES}
    found |= {f"{name} dual path": (TwoPaths(net, name), INPUT_SIZE) for name in SURGERIES}
    return {**found, LARGE: (net, DOUBLED)}


GROUPS = {"paper": paper_rows, "stock": stock_rows}


def quartiles(values: Any) -> list[float]:
    """Return the median, and the ends of the middle half."""
    return np.quantile(values, (0.5, 0.25, 0.75)).tolist()


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--groups", nargs="+", choices=tuple(GROUPS), default=list(GROUPS))
    add("--runs", type=positive, default=1000, help="of each network (1000)")
    add("--device", default="cpu", help="(cpu)")
    add("--dtype", choices=tuple(DTYPES), default="fp32", help="(fp32)")
    add("--batch", type=positive, default=1, help="images at once (1)")
    add("--compile", action="store_true", help="torch.compile")
    add("--note", default="", help="for the record: what else runs on the machine")
    add("--results", type=Path, default=records.RESULTS, help="(docs/results)")
    a = parser.parse_args(argv)
    device, dtype = wanted_device(a.device), DTYPES[a.dtype]
    settings = {"runs": a.runs, "threads": torch.get_num_threads(), "processor time": False}
    for group in a.groups:
        how = f"{device.type}-{a.dtype}-batch{a.batch}{'-compiled' * a.compile}"
        path = a.results / "latency" / f"{group}-{how}.json"
        if records.is_done(path, settings):
            continue
        networks, calls = GROUPS[group](), {}
        gmacs = {name: counting.compute(*pair) / 1e9 for name, pair in networks.items()}
        for name, (net, size) in networks.items():
            images = torch.rand(a.batch, 3, size, size, device=device, dtype=dtype)
            calls[name] = caller(net, images, a.compile)
        times, rows = measure(calls, a.runs), {}
        first = np.array(next(iter(times.values())))
        for name, ms in times.items():
            own = {"ms": quartiles(ms), "ratio": quartiles(np.array(ms) / first)}
            rows[name] = {"gmacs": gmacs[name], **own, "paper ms": TABLE_4.get(name)}
        about = {
            "note": f"{a.note}; torch {torch.__version__}",
            "hardware": records.hardware(device),
        }
        records.write(path, {"settings": settings, "rows": rows, **about})
        print(path)


if __name__ == "__main__":
    run(main)
