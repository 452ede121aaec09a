"""Cost of the second path: beside two separate networks, and beside the least it could cost.

    python -m examples.benchmarks.dual_path
    python -m examples.benchmarks.dual_path --size 300 --rounds 30 --json results.json

All four give the same maps (checked). "fine + tail" is the ideal: the fine network, and only the
layers of the original that come after the eliminated one, on a map that is sampled beforehand; it
shares what can be shared and leaves out the sampling.
"""

import timm
import torch
from torch import Tensor, fx, nn

import stridesurgery as ss
from examples.benchmarks.timing import Rows, arguments, rounds, save, show, summary

MODELS = ("mobilenetv1_100", "resnet18", "resnet50", "efficientnet_b0")


class Both(nn.Module):
    """Two networks, one after the other, on one image."""

    def __init__(self, small: nn.Module, large: nn.Module) -> None:
        super().__init__()
        self.small, self.large = small, large

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """x: (N, 3, H, W). Returns the maps of both, by path."""
        small, large = self.small(x), self.large(x)
        return {f"small.{k}": v for k, v in small.items()} | {
            f"large.{k}": v for k, v in large.items()
        }


def after_first_convolution(net: fx.GraphModule) -> fx.GraphModule:
    """The network without its first convolution: its input is that convolution's output."""
    graph = fx.Graph()
    stem = next(n for n in net.graph.nodes if n.op == "call_module")
    memo = {stem: graph.placeholder("x")}
    for node in net.graph.nodes:
        if node.op != "placeholder" and node is not stem:
            memo[node] = graph.node_copy(node, lambda source: memo[source])
    return fx.GraphModule(net, graph)


def times(name: str, size: int, count: int) -> Rows:
    """The medians of one model, its first stride eliminated, on one size x size image."""
    net, image = timm.create_model(name).eval(), torch.randn(1, 3, size, size)
    last = ss.features(net, input_size=size).feature_info.module_name()[-2:]
    fine, original = (
        ss.features(m, last, input_size=size)
        for m in (ss.eliminate(net, "S1L0", input_size=size), net)
    )
    dual = ss.dual_path(net, "S1L0", taps=last, input_size=size)
    two = Both(fine, original)
    stem = next(m for m in net.modules() if isinstance(m, nn.Conv2d))
    tail = after_first_convolution(original)
    with torch.inference_mode():
        sampled = stem(image)
        check(two(image), dual(image), tail(sampled))
        candidates = {
            "fine + tail": lambda: (fine(image), tail(sampled)),
            "dual path": lambda: dual(image),
            "two networks": lambda: two(image),
            "fine alone": lambda: fine(image),
        }
        return summary(rounds(candidates, count, name), "fine + tail")


def check(two: dict[str, Tensor], dual: dict[str, Tensor], tail: dict[str, Tensor]) -> None:
    """All candidates give the same maps."""
    for key, value in dual.items():
        path, _, name = key.partition(".")
        for other in (two[key], *([tail[name]] if path == "large" else [])):
            torch.testing.assert_close(value, other, rtol=1e-4, atol=1e-4)


def main() -> None:
    """Time every model and print the table."""
    asked = arguments(__doc__)
    results = {name: times(name, asked.size, asked.rounds) for name in MODELS}
    show("Dual path S1L0, one image: ratios to fine + tail (equal maps, checked)", results)
    save(asked, results)


if __name__ == "__main__":
    main()
