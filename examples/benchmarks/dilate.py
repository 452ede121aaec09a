"""Output stride 8 and 16 beside what timm and torchvision offer: time and exactness.

    python -m examples.benchmarks.dilate
    python -m examples.benchmarks.dilate --size 320 --rounds 30 --json results.json

The error is that of the finer last map, sampled where the original has cells, relative to the
original's largest value; norms are random, so that nothing is hidden by zeros.
"""

from collections.abc import Callable
from functools import partial

import timm
import torch
import torchvision.models
from torch import Tensor, nn

import stridesurgery as ss
from examples.benchmarks.timing import Rows, arguments, rounds, save, show, summary

Candidates = dict[str, nn.Module]


def awake(net: nn.Module) -> nn.Module:
    """Return the network in eval mode with random norms, equal for every one of an architecture."""
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


def compare(case: str, size: int, count: int) -> tuple[Rows, dict[str, float]]:
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
    asked = arguments(__doc__)
    found = {case: compare(case, asked.size, asked.rounds) for case in CASES}
    times = {case: times for case, (times, _) in found.items()}
    show("Output stride 8 or 16, one image: ratios to the other library", times)
    print("\nLargest difference from the original's last map on its own cells, relative")
    for case, (_, errors) in found.items():
        print(f"{case:28}", "   ".join(f"{title}: {value:.1e}" for title, value in errors.items()))
    save(
        asked, {case: {"times": times, "errors": errors} for case, (times, errors) in found.items()}
    )


if __name__ == "__main__":
    main()
