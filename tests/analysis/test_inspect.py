"""What `inspect` tells: the paper's numbering, every field of a layer, and where its cells look."""

import math

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import nn

import stridesurgery as ss
from tests.models import create

NUMBERING = {
    "mobilenetv1_100": (0, 2, 4, 6, 12),
    "torchvision/vgg16": (2, 5, 9, 13, 17),
    "torchvision/mobilenet_v2": (0, 2, 4, 7, 14),
}


@pytest.mark.parametrize("name", NUMBERING)
def test_strided_layers_have_the_numbers_of_the_paper(name: str) -> None:
    assert ss.inspect(create(name)).strided == NUMBERING[name]


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "regnetx_002", "dla34", "densenet121"])
def test_five_transitions_lead_from_pixels_to_a_reduction_of_32(name: str) -> None:
    transitions = ss.inspect(create(name), 224).transitions
    assert [t.level for t in transitions] == [(2**i, 2**i) for i in range(5)]
    assert all(t.factor == (2, 2) for t in transitions)


def test_residual_branch_and_shortcut_are_one_transition() -> None:
    report = ss.inspect(create("resnet50"), 224)
    assert [len(t.layers) for t in report.transitions] == [1, 1, 2, 2, 2]
    assert len(report.strided) == 8


def test_sizes_of_the_paper_at_300_pixels() -> None:
    """S2L4-6: the maps that the detector reads are 75, 38, 19 and 10 cells wide, and no border is invented."""
    fine = ss.eliminate(create("mobilenetv1_100", pad_type="same"), "S2L4-6", input_size=300)
    widths = [layer.out_grid[1] for layer in ss.inspect(fine, 300)]
    assert widths[-1] == 38 and set(widths) == {150, 75, 38}
    coarse = [layer.out_grid[1] for layer in ss.inspect(create("mobilenetv1_100"), 300)]
    assert sorted(set(coarse), reverse=True) == [150, 75, 38, 19, 10]


def test_every_field_of_a_layer() -> None:
    report = ss.inspect(create("resnet18"), (64, 96))
    assert report.input_size == (64, 96) and len(report) == len(report.layers) == len(list(report))
    stem, pool = report[0], report[1]
    assert (stem.index, stem.name, stem.operator) == (0, "conv1", "Conv2d")
    assert (stem.kernel, stem.stride, stem.padding, stem.dilation) == (
        (7, 7),
        (2, 2),
        (3, 3),
        (1, 1),
    )
    assert (stem.in_grid, stem.out_grid, stem.channels) == ((64, 96), (32, 48), 64)
    assert (stem.reduction, stem.transition) == ((2, 2), 0)
    assert (stem.step, stem.offset, stem.receptive_field) == ((2, 2), (0, 0), (7, 7))
    assert (pool.operator, pool.kernel, pool.out_grid, pool.reduction) == (
        "MaxPool2d",
        (3, 3),
        (16, 24),
        (4, 4),
    )
    assert pool.receptive_field == (11, 11) and pool.transition == 1
    assert report[2].transition is None and report[2].stride == (1, 1)
    for transition in report.transitions:
        assert all(
            report[i].index == i and report[i].transition == transition.index
            for i in transition.layers
        )


def test_report_prints_every_layer_once() -> None:
    report = ss.inspect(create("mobilenetv1_100"))
    lines = str(report).splitlines()
    assert len(lines) == len(report) + 2
    for layer, line in zip(report, lines[2:], strict=True):
        assert line.split()[:2] == [str(layer.index), layer.name]


def test_default_size_is_the_model_s_own() -> None:
    assert ss.inspect(create("mobilenetv1_100")).input_size == (224, 224)
    assert ss.inspect(create("inception_v3")).input_size == (299, 299)
    assert ss.inspect(create("torchvision/resnet18")).input_size == (224, 224)


# ---- where a cell looks: the witness is the gradient of one cell


def positive(net: nn.Module) -> nn.Module:
    """All weights positive and no norm, so that a cell's gradient is nonzero exactly where it looks."""
    for module in net.modules():
        for name, child in list(module.named_children()):
            if isinstance(
                child, (nn.BatchNorm2d, nn.LayerNorm, nn.ReLU, nn.ReLU6, nn.Hardswish, nn.SiLU)
            ):
                setattr(module, name, nn.Identity())
            elif isinstance(child, nn.MaxPool2d):
                setattr(
                    module,
                    name,
                    nn.AvgPool2d(child.kernel_size, child.stride, child.padding, child.ceil_mode),
                )
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.fill_(1.0 / max(parameter[0].numel(), 1) if parameter.dim() > 1 else 0.01)
    return net.eval()


def seen(
    net: nn.Module, name: str, size: tuple[int, int], cell: tuple[int, int]
) -> list[tuple[int, int]]:
    """(first, last) pixel that one cell of the named module's output depends on, along rows and columns."""
    kept: list[torch.Tensor] = []
    handle = net.get_submodule(name).register_forward_hook(
        lambda module, args, result: kept.append(result)
    )
    x = torch.ones(1, 3, *size, dtype=torch.double, requires_grad=True)
    net.double()(x)
    handle.remove()
    gradient = torch.autograd.grad(kept[0][0, :, cell[0], cell[1]].sum(), x)[0].abs().sum((0, 1))
    net.float()
    lines = [gradient.sum(1 - axis).nonzero().flatten() for axis in (0, 1)]
    return [(int(line.min()), int(line.max())) for line in lines]


def check_geometry(net: nn.Module, layer: ss.Layer, size: tuple[int, int]) -> bool:
    """Compare what a middle cell sees; whether its field lay inside the image."""
    cell = tuple(n // 2 for n in layer.out_grid)
    looks = seen(net, layer.name, size, cell)
    for axis, (first, last) in enumerate(looks):
        centre = layer.offset[axis] + layer.step[axis] * cell[axis]
        reach = (layer.receptive_field[axis] - 1) / 2
        if centre - reach < 0 or centre + reach > size[axis] - 1:
            return False
        assert (first + last) / 2 == centre, (
            f"{layer.name}: sees {first} to {last}, told centre {centre}"
        )
        assert last - first + 1 == layer.receptive_field[axis], (
            f"{layer.name}: sees {first} to {last}"
        )
    return True


REAL = [
    "mobilenetv1_100",
    "resnet18",
    "tf_efficientnet_lite0",
    "densenet121",
    "torchvision/vgg11",
    "regnetx_002",
]


@pytest.mark.parametrize("name", REAL)
def test_cells_look_where_the_gradient_says(name: str) -> None:
    size = (192, 224)
    net = positive(create(name))
    inside = [check_geometry(net, layer, size) for layer in list(ss.inspect(net, size))[:14]]
    assert sum(inside) >= 5


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
@given(
    st.lists(
        st.tuples(
            st.integers(1, 5),
            st.sampled_from([1, 2, 3]),
            st.integers(0, 3),
            st.sampled_from([1, 2]),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_cells_of_random_chains_look_where_the_gradient_says(
    shapes: list[tuple[int, int, int, int]],
) -> None:
    assume(math.prod(stride for _, stride, _, _ in shapes) <= 8)
    channels = [3, *[2] * len(shapes)]
    net = positive(
        nn.Sequential(*(nn.Conv2d(channels[i], 2, *shape) for i, shape in enumerate(shapes)))
    )
    layers = list(ss.inspect(net, 160))
    assume(layers)
    for layer in layers:
        assert check_geometry(net, layer, (160, 160)) or layer.receptive_field[0] > 60


@pytest.mark.parametrize("name", ["mobilenetv1_100", "resnet18", "tf_efficientnet_lite0"])
def test_geometry_of_an_operated_network(name: str) -> None:
    size = (192, 192)
    net = positive(create(name))
    for S in (1, 2):
        fine = ss.eliminate(net, S=S, pool="keep", input_size=size)
        inside = [check_geometry(fine, layer, size) for layer in list(ss.inspect(fine, size))[:12]]
        assert sum(inside) >= 5


def test_step_is_the_reduction_unless_the_grid_is_lost() -> None:
    for layer in ss.inspect(create("resnet50"), 224):
        assert layer.step == layer.reduction and all(math.isfinite(o) for o in layer.offset)
