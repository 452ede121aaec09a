"""Output stride 8 and 16: phases in the batch beside what timm and torchvision offer, in time and in exactness.

    python -m examples.benchmarks.dilate
    python -m examples.benchmarks.dilate --size 320 --rounds 30 --json results.json

The error is that of the finer last map, sampled where the original has cells, relative to the original's largest
value; norms are random, so that nothing is hidden by zeros.
"""

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import timm
import torch
import torchvision.models
from torch import Tensor, nn

import stridesurgery as ss
from examples.benchmarks.timing import rounds, show, summary

Candidates = dict[str, nn.Module]


def awake(net: nn.Module) -> nn.Module:
    """The network in eval mode with random norms, the same for every network of one architecture."""
    generator = torch.Generator().manual_seed(0)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low in (
                (module.weight, 0.7),
                (module.bias, -0.2),
                (module.running_mean, -0.2),
            ):
                assert tensor is not None
                tensor.data.copy_(torch.rand(tensor.shape, generator=generator) * 0.5 + low)
    return net.eval()


def with_weights(net: nn.Module, of: nn.Module) -> nn.Module:
    """A network with another's weights, in eval mode."""
    net.load_state_dict(of.state_dict())
    return net.eval()


def last_map(net: nn.Module, size: int) -> nn.Module:
    """The network up to its last map."""
    name = ss.features(net, input_size=size).feature_info.module_name(-1)
    return ss.features(net, name, input_size=size)


def dilated(net: nn.Module, stride: int, size: int) -> nn.Module:
    """The network at an output stride of 8 or 16, by this library."""
    layers = [t.layers[0] for t in ss.inspect(net, size).transitions if t.level[0] >= stride]
    return ss.eliminate(net, L=layers, dilate=True, input_size=size)


def timm_candidates(name: str, stride: int, size: int) -> Candidates:
    """The original, this library's and timm's network at that output stride."""
    net = awake(timm.create_model(name))
    theirs = with_weights(timm.create_model(name, output_stride=stride), net)
    return {
        "original": net,
        f"timm output_stride={stride}": theirs,
        "stridesurgery": dilated(net, stride, size),
    }


def torchvision_candidates(name: str, stride: int, size: int) -> Candidates:
    """The original, this library's and torchvision's network at that output stride."""
    net = awake(torchvision.models.get_model(name, weights=None))
    replaced = [False, stride == 8, True]
    theirs = torchvision.models.get_model(name, weights=None, replace_stride_with_dilation=replaced)
    return {
        "original": net,
        "torchvision dilation": with_weights(theirs, net),
        "stridesurgery": dilated(net, stride, size),
    }


CASES: dict[str, tuple[Callable[[str, int, int], Candidates], str, int]] = {
    "timm resnet50, 8": (timm_candidates, "resnet50", 8),
    "timm resnet50, 16": (timm_candidates, "resnet50", 16),
    "torchvision resnet50, 8": (torchvision_candidates, "resnet50", 8),
    "timm mobilenetv2_100, 8": (timm_candidates, "mobilenetv2_100", 8),
    "timm mobilenetv2_100, 16": (timm_candidates, "mobilenetv2_100", 16),
    "timm efficientnet_b0, 16": (timm_candidates, "efficientnet_b0", 16),
}


def compare(
    case: str, size: int, count: int
) -> tuple[dict[str, dict[str, float]], dict[str, float]]:
    """Times as ratios to what the other library gives, and errors against the original's map."""
    make, name, stride = CASES[case]
    nets = {title: last_map(net, size) for title, net in make(name, stride, size).items()}
    image = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        maps = {title: next(iter(net(image).values())) for title, net in nets.items()}
        original = maps.pop("original")
        errors = {title: error(found, original) for title, found in maps.items()}
        other = next(iter(maps))
        candidates: dict[str, Callable[[], object]] = {
            title: partial(nets[title], image) for title in maps
        }
        return summary(rounds(candidates, count, case), other), errors


def error(found: Tensor, original: Tensor) -> float:
    """The largest difference on the original's cells, relative to the original's largest value."""
    k = found.shape[-1] // original.shape[-1]
    sampled = found[..., ::k, ::k]
    return ((sampled - original).abs().max() / original.abs().max()).item()


def main() -> None:
    """Time every case and print both tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--size", type=int, default=224, help="pixels, a multiple of 32")
    parser.add_argument("--threads", type=int, default=1, help="torch threads")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    results = {case: compare(case, arguments.size, arguments.rounds) for case in CASES}
    show(
        "Output stride 8 or 16, one image: ratios to the other library",
        {c: times for c, (times, _) in results.items()},
    )
    print("\nLargest difference from the original's last map on its own cells, relative")
    for case, (_, errors) in results.items():
        print(f"{case:28}", "   ".join(f"{title}: {value:.1e}" for title, value in errors.items()))
    if arguments.json:
        figures = {
            case: {"times": times, "errors": errors} for case, (times, errors) in results.items()
        }
        arguments.json.write_text(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
