"""Promise 2: every map after the transition is exactly k times larger, every map before it is as it was."""

import pytest
import torch
from torch import nn

import stridesurgery as ss
from tests.conftest import Case, one_of
from tests.models import create, image, size_of
from tests.watch import Call, calls, grown

# convolutions without padding lose a border, which is no k times larger on a k times larger map
LOSES_BORDERS = {"inception_v3", "torchvision/alexnet", "torchvision/squeezenet1_1"}


def test_every_map_is_as_large_as_its_reduction_says(case: Case) -> None:
    """Run for real: what every leaf module makes, against the level at which the stride went."""
    if case.name in LOSES_BORDERS:
        pytest.skip(
            "pads nowhere: its maps are k times larger up to a border, see the law of the enlarged "
            "input"
        )
    for transition, run in case.watched:
        k = tuple(int(f) for f in transition.factor)
        for before, after in run:
            problem = f"{case.name}, transition {transition.index}: {before.name} makes {tuple(after.made.shape)}"
            if isinstance(case.original.get_submodule(before.name), nn.ConstantPad2d):
                continue  # the border that it adds does not grow with the map
            growth = grown(before.made, after.made)
            wanted = {(1,) * before.made.dim()}
            if before.made.dim() == 4 and max(before.made.shape[2:]) > 1:
                wanted |= {(1, 1, *k), (1, *k, 1), (k[0] * k[1], 1, 1, 1)}
            if before.made.dim() == 3:  # tokens (N, cells, C), or windows of them
                wanted |= {(1, k[0] * k[1], 1), (1, 1, k[0] * k[1]), (k[0] * k[1], 1, 1)}
            assert growth in wanted, f"{problem} instead of {tuple(before.made.shape)}"


def test_layers_grow_exactly_beyond_the_level(case: Case) -> None:
    """The reduction that `inspect` tells decides which layers grow."""
    for transition, run in case.watched:
        maps = {before.name: (before, after) for before, after in run}
        for layer in case.report:
            if layer.name not in maps or 1 in layer.out_grid:
                continue
            before, after = maps[layer.name]
            beyond = any(
                r > level for r, level in zip(layer.reduction, transition.level, strict=True)
            )
            problem = (
                f"{case.name}, transition {transition.index}: layer {layer.index} ({layer.name})"
            )
            assert (after.made.shape != before.made.shape) == beyond, problem


@pytest.mark.parametrize("name", sorted(LOSES_BORDERS))
def test_borders_are_those_of_a_larger_input(name: str) -> None:
    """Without padding, the maps after a transition are those of the original on some input about k times larger."""
    model, size = create(name), size_of(name)
    report = ss.inspect(model, size)
    for transition in report.transitions[:2]:
        fine = ss.eliminate(model, L=one_of(report, transition), pool="keep", input_size=size)
        same = shapes(calls(model, image(size)))
        wanted = {
            key: shape
            for key, shape in shapes(calls(fine, image(size))).items()
            if shape != same[key]
        }
        k = int(transition.factor[0])
        assert any(
            wanted.items() <= larger(model, k * size + extra).items() for extra in range(-24, 25)
        ), transition


def shapes(run: list[Call]) -> dict[tuple[str, int], torch.Size]:
    return {(call.name, call.times): call.made.shape for call in run}


def larger(model: nn.Module, size: int) -> dict[tuple[str, int], torch.Size]:
    try:
        return shapes(calls(model, image(size)))
    except RuntimeError:  # too small
        return {}
