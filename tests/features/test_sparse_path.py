"""`sparse_path`: in the wanted tiles the fine path's maps, elsewhere nothing, and the coarse path as it was."""

import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import stridesurgery as ss
from tests.models import create
from tests.watch import error

SIZE = (96, 128)
ARCHITECTURES = """
    resnet18 regnetx_002 mobilenetv1_100 mobilenetv2_050 mobilenetv4_conv_small_035
    efficientnet_lite0 tf_efficientnet_lite0 dla34 repvgg_a0 starnet_s1 selecsls42 hgnetv2_b0
    densenet121 torchvision/mnasnet0_5 torchvision/mobilenet_v2 spnasnet_100
    torchvision/resnet18 torchvision/googlenet torchvision/alexnet fbnetc_100
""".split()


def corners(maps: dict[str, Tensor]) -> Tensor:
    """Choose the first tile of each image, and the last of all but the first."""
    like = next(iter(maps.values()))
    chosen = torch.zeros(len(like), *like.shape[2:], dtype=torch.bool)
    chosen[:, 0, 0] = chosen[1:, -1, -1] = True
    return chosen


def every(maps: dict[str, Tensor]) -> Tensor:
    return torch.ones(len(next(iter(maps.values()))), 1, 1, dtype=torch.bool)


def none(maps: dict[str, Tensor]) -> Tensor:
    return ~every(maps)


@torch.no_grad()
def maps_of(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    return model(x)


def wanted(found: dict[str, Tensor], name: str, step: int, tile: int) -> Tensor:
    """Return which numbers of a map lie in wanted tiles."""
    cells = tile // step
    mask = found["tiles"].repeat_interleave(cells, 1).repeat_interleave(cells, 2)
    map_ = found[name]
    return mask[:, None, : map_.shape[2], : map_.shape[3]].expand_as(map_)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_wanted_cells_are_the_whole_fine_paths(name: str) -> None:
    net = create(name)
    report = ss.inspect(net, SIZE)
    both = ss.dual_path(
        net, L=report.transitions[-1].layers[0], sampler="original", input_size=SIZE
    )
    x = torch.randn(2, 3, *SIZE)
    whole = maps_of(both, x)
    names = [n for n in whole if n.startswith("small.") and n.replace("small", "large") in whole]
    last = dict(zip(whole, both.feature_info.reduction(), strict=True))
    tile = last[names[-1]]
    for choose, margin in ((every, 0), (corners, None)):
        found = maps_of(ss.sparse_path(both, choose, tile=tile, margin=margin), x)
        assert all(torch.equal(found[n], whole[n]) for n in whole if n.startswith("large."))
        for n in names:
            inside = wanted(found, n, last[n], tile)
            assert inside.any() and (choose is every) == inside.all()
            assert error(found[n][inside], whole[n][inside]) < 1e-5, n
            assert not found[n][~inside].any()


def dual(name: str = "resnet18", L: int = 11, size: Any = SIZE, **options: Any) -> Any:
    return ss.dual_path(create(name), L=L, taps="layer4", input_size=size, **options)


def macs(model: nn.Module, x: Tensor) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(x)
    return counter.get_total_flops() // 2


@pytest.mark.parametrize("share", [True, False])
def test_compute_is_a_line_in_the_number_of_tiles_and_none_costs_none(share: bool) -> None:
    both, x = dual(share=share), torch.randn(1, 3, *SIZE)
    coarse = macs(ss.features(create("resnet18"), "layer4", input_size=SIZE), x)
    fine = macs(both, x) - coarse
    costs = []
    for count in range(4):

        def first(maps: dict[str, Tensor], count: int = count) -> Tensor:
            chosen = torch.zeros(1, *SIZE, dtype=torch.bool)
            chosen[:, 0, [32 * i for i in range(count)]] = True
            return chosen

        costs.append(macs(ss.sparse_path(both, first, tile=32), x))
    assert len({b - a for a, b in zip(costs, costs[1:], strict=False)}) == 1
    assert costs[0] == coarse if not share else coarse <= costs[0] < coarse + fine / 10
    tiles = 12
    assert abs((costs[1] - costs[0]) * tiles / fine - 1) < 0.1


def test_images_and_sizes_may_change_between_calls() -> None:
    both = dual()
    sparse = ss.sparse_path(both, corners, tile=32, margin=None)
    for shape in ((1, 3, 96, 128), (3, 3, 64, 160), (2, 3, 100, 75)):
        x = torch.randn(shape)
        found, whole = maps_of(sparse, x), maps_of(both, x)
        inside = wanted(found, "small.layer4", 16, 32)
        assert error(found["small.layer4"][inside], whole["small.layer4"][inside]) < 1e-5


def test_a_budget_fixes_all_shapes_and_takes_the_best_tiles() -> None:
    def mean(maps: dict[str, Tensor]) -> Tensor:
        return maps["large.layer4"].mean(1)

    sparse, x = ss.sparse_path(dual(), mean, tile=32, budget=3), torch.randn(2, 3, *SIZE)
    found = maps_of(sparse, x)
    assert found["tiles"].sum((1, 2)).tolist() == [3, 3]
    scores = found["large.layer4"].mean(1)
    assert torch.equal(
        found["tiles"].flatten(1), scores.flatten(1) >= scores.flatten(1).topk(3)[0][:, -1:]
    )
    exported = torch.export.export(sparse, (x,)).module()
    again = torch.randn(2, 3, *SIZE)
    for name, value in maps_of(exported, again).items():
        assert torch.allclose(value, maps_of(sparse, again)[name], atol=1e-5), name


def test_it_compiles_for_changing_numbers_of_tiles() -> None:
    layers = [nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(inplace=True), nn.Conv2d(4, 4, 3, 2, 1)]
    both = ss.dual_path(nn.Sequential(*layers).eval(), L=0, taps=1, input_size=SIZE)
    sparse = ss.sparse_path(both, corners, tile=32)
    compiled = torch.compile(sparse, dynamic=True, backend="eager")
    for images in (2, 3):
        x = torch.randn(images, 3, *SIZE)
        for name, value in maps_of(compiled, x).items():
            assert torch.allclose(value, maps_of(sparse, x)[name], atol=1e-6)


def test_train_mode_is_the_dual_path() -> None:
    both, x = dual(), torch.randn(2, 3, *SIZE)
    sparse = ss.sparse_path(both, none, tile=32)
    whole, found = (copy.deepcopy(net).train()(x) for net in (both, sparse))
    assert found.pop("tiles").all()
    assert all(torch.equal(found[name], value) for name, value in whole.items())
    assert sparse.state_dict().keys() == both.state_dict().keys()


def test_copies_and_files_are_the_same() -> None:
    sparse, x = ss.sparse_path(dual(), corners, tile=32, fill=-1.0), torch.randn(2, 3, *SIZE)
    stored = io.BytesIO()
    torch.save(sparse, stored)
    stored.seek(0)
    found = maps_of(sparse, x)
    assert found["small.layer4"].min() == -1
    for other in (copy.deepcopy(sparse), torch.load(stored, weights_only=False)):
        assert all(torch.equal(found[name], value) for name, value in maps_of(other, x).items())


def test_verify_measures_what_a_margin_leaves_out() -> None:
    net = create("resnet18")
    both = ss.dual_path(net, L=11, taps="layer4", input_size=SIZE)
    approximate, exact = (
        ss.verify(net, ss.sparse_path(both, none, tile=32, margin=margin)) for margin in (0, None)
    )
    every_other = {c.what.partition(",")[0]: c.error for c in approximate.maps}["every other tile"]
    assert every_other > 1e-2
    assert "exact from" in str(approximate)
    assert all(check.error < 1e-5 for check in exact.maps)


def test_squeeze_excite_takes_the_coarse_paths_value_if_asked() -> None:
    both = ss.dual_path(create("seresnet18"), L=16, taps="layer4", input_size=SIZE)
    with pytest.raises(ss.OperatorError, match=r"se.*reads the whole map"):
        ss.sparse_path(both, every, tile=32)
    sparse, x = ss.sparse_path(both, every, tile=32, whole_maps="coarse"), torch.randn(2, 3, *SIZE)
    found, whole = (maps_of(net, x)["small.layer4"] for net in (sparse, both))
    assert 1e-4 < error(found, whole) < 0.5
    assert sparse.tiling.exact_margin == float("inf")


@pytest.mark.parametrize(
    "options, words",
    [
        ({"tile": 24}, "multiple of the fine path's largest reduction, 16 pixels"),
        ({"tile": 0}, "tile is an int"),
        ({"tile": 32, "margin": -1}, "margin is an int"),
        ({"tile": 32, "margin": 16, "budget": 2}, "leave the margin"),
        ({"tile": 32, "whole_maps": "tile"}, "whole_maps is"),
    ],
)
def test_bad_requests(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ss.RequestError, match=words):
        ss.sparse_path(dual(), every, **options)
    with pytest.raises(ss.RequestError, match="takes what dual_path returns"):
        ss.sparse_path(ss.features(create("resnet18"), input_size=SIZE), every, tile=32)


@pytest.mark.parametrize(
    "last, words",
    [
        (nn.Conv2d(8, 8, 3, 1, 1, padding_mode="reflect"), "padded with a number"),
        (nn.AvgPool2d(3, 1, 1, count_include_pad=False), "padded with a number"),
        (nn.GroupNorm(2, 8), "cell by cell"),
        (nn.BatchNorm2d(8, track_running_stats=False), "cell by cell"),
        (nn.Upsample(scale_factor=2), "padded with a number"),
    ],
)
def test_what_does_not_work_on_windows_is_refused(last: nn.Module, words: str) -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), last, nn.Conv2d(8, 8, 3, 1, 1)).eval()
    both = ss.dual_path(net, L=0, taps=1, input_size=SIZE)
    with pytest.raises(ss.OperatorError, match=words):
        ss.sparse_path(both, every, tile=32)


def test_shapes_alone_do_not_tell_how_many_tiles_run() -> None:
    sparse = ss.sparse_path(dual(), every, tile=32)
    with pytest.raises(ss.TraceError, match="take the dual path that it was made of"):
        ss.cost(sparse, SIZE)
    with pytest.raises(ss.RequestError, match="takes what dual_path returns"):
        ss.sparse_path(sparse, every, tile=32)
