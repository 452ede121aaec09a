"""`verify` on models that return maps: each is compared with the network that it is from."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import stridesurgery as ss
from stridesurgery._node import info
from tests.models import awake, create
from tests.watch import snapshot, unchanged

PATHS: list[tuple[str, dict[str, Any]]] = [
    ("mobilenetv1_100", {"S": "S1L0", "taps": (11, 13), "combine": "concat"}),
    ("resnet18d", {"S": 2, "sampler": "original"}),
    ("resnetblur18", {"L": "layer4.0.aa", "sampler": "original"}),
    (
        "seresnet18",
        {"L": (0, 6), "dilate": True, "taps": {"small": ("act1", "layer3"), "large": "layer2"}},
    ),
    ("tf_efficientnet_b0", {"S": 1, "axis": "w"}),
    ("convnextv2_atto", {"S": 1, "stride": 2}),
]


@pytest.mark.parametrize(("name", "options"), PATHS)
def test_both_paths_are_found_to_be_their_networks(name: str, options: dict[str, Any]) -> None:
    net = create(name)
    found = ss.verify(net, ss.dual_path(net, input_size=64, **options))
    assert found.input_size == (64, 64) and found.sites and found.tensors == len(net.state_dict())
    assert {check.name.partition(".")[0] for check in found.maps} == {"small", "large"}
    for check in found.maps:
        assert check.error is not None and check.error < 1e-5, check
        assert ("the original's" in check.what) == (
            check.name.startswith("large") or "dilate" in options
        ), check
    assert all(f"map      {check.name}: equals" in str(found) for check in found.maps)


class Rows(nn.Module):
    """Its norm returns a map (N, H, W, C)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.last = (
            nn.Conv2d(3, 8, 4, 4),
            nn.LayerNorm(8),
            nn.Conv2d(8, 8, 3, 1, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(self.stem(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2))


@pytest.mark.parametrize("options", [{}, {"dilate": True}])
@pytest.mark.parametrize("combine", ["split", "concat"])
def test_maps_with_channels_last(options: dict[str, Any], combine: str) -> None:
    net = awake(Rows()).eval()
    taps = {"small": "norm", "large": ("norm", "last")} if combine == "split" else "norm"
    both = ss.dual_path(net, "S1L0", stride=2, taps=taps, combine=combine, input_size=32, **options)
    assert [check.name for check in ss.verify(net, both).maps][:2] == ["small.norm", "large.norm"]


@pytest.mark.parametrize("options", [{}, {"form": "graph"}, {"dilate": True}])
def test_maps_of_an_operated_model(options: dict[str, Any]) -> None:
    net = create("mobilenetv3_small_050")
    once = ss.eliminate(net, "S1L0", input_size=64)
    for original, fine in (
        (net, ss.eliminate(net, S=2, input_size=64, **options)),
        (net, ss.eliminate(once, S=1, input_size=64, **options)),
    ):
        found = ss.verify(original, ss.features(fine, (0, "blocks.3"), input_size=96))
        assert [check.name for check in found.maps] == ["0", "blocks.3"]
        assert all(check.error is not None and check.error < 1e-5 for check in found.maps)


def test_what_cannot_be_compared_is_said_with_the_way_out() -> None:
    net = create("torchvision/squeezenet1_1")
    found = ss.verify(
        net, ss.dual_path(net, "S1L1", taps=("features.0", "features.4"), input_size=64)
    )
    assert [check.name for check in found.maps if check.error is None] == ["large.features.4"]
    assert "large.features.4: not compared" in str(found) and "sampler='original'" in str(found)
    cut = ss.features(ss.eliminate(net, S=2, input_size=64), "features.0", input_size=64)
    assert ss.verify(net, cut).sites[1].what == "runs for none of the maps"


def test_other_networks_are_refused() -> None:
    net = create("resnet18")
    fine = ss.eliminate(net, "S1L0", input_size=64)
    with pytest.raises(ss.RequestError, match="no .surgery"):
        ss.verify(net, ss.features(net, input_size=64))
    with pytest.raises(ss.RequestError, match="both models have undergone S1L0"):
        ss.verify(fine, ss.features(fine, input_size=64))


def is_large(node: torch.fx.Node) -> bool:
    return str(info(node).key[0]).startswith("large:")


def of_large(name: str) -> Callable[[torch.fx.Node], bool]:
    return lambda node: is_large(node) and getattr(node.target, "__name__", node.target) == name


def weight(both: nn.Module) -> None:
    with torch.no_grad():
        both.get_parameter("layer3.0.conv1.weight")[0, 0, 0, 0] += 1


def padding(both: nn.Module) -> None:
    both.get_submodule("conv1").padding = (2, 2)


def other_norm(both: nn.Module) -> None:
    """The large path runs another norm of the same size."""
    for node in filter(of_large("layer2.0.bn1"), both.graph.nodes):
        node.target = "layer2.0.bn2"
    both.graph = both.graph


def other_slice(both: nn.Module) -> None:
    """The large path reads the cells beside those that it should."""
    (node,) = (n for n in both.graph.nodes if getattr(n.target, "__name__", "") == "sample")
    with both.graph.inserting_before(node):
        node.args = (both.graph.call_function(torch.roll, (node.args[0], 1, 3)), *node.args[1:])
    both.graph = both.graph


def swapped(both: nn.Module) -> None:
    """Two maps of one size change places."""
    output = next(n for n in both.graph.nodes if n.op == "output")
    maps = dict(output.args[0])
    maps["small.layer2"], maps["large.layer1.1.bn1"] = (
        maps["large.layer1.1.bn1"],
        maps["small.layer2"],
    )
    output.args = (maps,)
    both.graph = both.graph


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (weight, "weight layer3.0.conv1.weight"),
        (padding, "conv1: the sampled output is"),
        (other_norm, "large.layer2 differs from the original's"),
        (other_slice, "large.act1 differs from the original's"),
        (swapped, "small.layer2 has 64 channels instead of 128"),
    ],
)
def test_what_is_off_is_found(spoil: Callable[[nn.Module], None], words: str) -> None:
    net = create("resnet18")
    taps = {"small": ("act1", "layer2"), "large": ("act1", "layer1.1.bn1", "layer2")}
    both = ss.dual_path(net, "S1L0", taps=taps, input_size=64)
    spoil(both)
    with pytest.raises(ss.SurgeryError, match=words):
        ss.verify(net, both)


def test_neither_model_is_changed() -> None:
    net = create("mobilenetv2_050").train()
    both = ss.dual_path(net, S=1, large_norm="frozen", input_size=64)
    before, state = snapshot(net), {key: value.clone() for key, value in both.state_dict().items()}
    ss.verify(net, both)
    assert not unchanged(before, net)
    assert both.training and all(
        torch.equal(value, state[key]) for key, value in both.state_dict().items()
    )
