"""What a search takes, beside building every surgery that fits and counting it with torch.

    python -m examples.benchmarks.search             # medians of 5 rounds, one thread

Both give the same figures; whether they do is checked.
"""

from collections.abc import Callable

import timm
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import stridesurgery as ss
from examples.benchmarks.timing import Rows, arguments, rounds, save, show, summary

MODELS = ("resnet50", "efficientnet_b0", "mobilenetv1_100")
BUDGET = 16.0  # times the compute: what two eliminated strides cost at most


def built_and_counted(net: nn.Module, surgeries: list[ss.Surgery]) -> list[int]:
    """Multiply-accumulates of every operated network, by torch's counter on weightless images."""
    counts = []
    for surgery in surgeries:
        fine = ss.eliminate(net, surgery).to("meta")
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            fine(torch.empty(1, 3, *surgery.input_size, device="meta"))  # type: ignore[misc]
        counts.append(counter.get_total_flops() // 2)
    return counts


def times(name: str, count: int) -> Rows:
    """One model: the search, and the same figures by hand."""
    net = timm.create_model(name).eval()
    found = ss.search(net, BUDGET).candidates
    surgeries = [candidate.surgery for candidate in found]
    assert [candidate.macs for candidate in found] == built_and_counted(net, surgeries)
    candidates: dict[str, Callable[[], object]] = {
        f"build and count all {len(found)}": lambda: built_and_counted(net, surgeries),
        "search": lambda: ss.search(net, BUDGET),
    }
    return summary(rounds(candidates, count, name), next(iter(candidates)))


def main() -> None:
    """Time every model and print the table."""
    asked = arguments(__doc__, 5)
    results = {name: times(name, asked.rounds) for name in MODELS}
    show("search", results)
    save(asked, results)


if __name__ == "__main__":
    main()
