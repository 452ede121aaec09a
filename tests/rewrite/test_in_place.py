"""Forward code that writes in place: no map is returned as it was not, no lasting write is lost."""

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from timm.layers import EvoNorm2dB0
from torch import Tensor, nn

import stridesurgery as ss
from tests.models import awake, create, image


def conv(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride, 1)


class Writes(nn.Module):
    """Two strided convolutions and a write into what the first made."""

    def __init__(self, write: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.c1, self.c2, self.write = conv(3, 4, 2), conv(4, 5, 2), write

    def forward(self, x: Tensor) -> Tensor:
        y = self.c1(x)
        self.write(y)
        return self.c2(y)


WRITES: dict[str, Callable[[Tensor], object]] = {
    "method": lambda y: y.add_(5),
    "item": lambda y: y.__setitem__((slice(None), 0), 3.0),
    "select": lambda y: y.select(1, 0).add_(5),
    "transposed": lambda y: y.mT.add_(1),
    "view_as": lambda y: y.view_as(y).mul_(2),
    "init": lambda y: nn.init.constant_(y[:, 0], 3),
    "out": lambda y: torch.add(y, 1, out=y),
    "keyword": lambda y: torch.relu_(input=y),
    "float": lambda y: y.float().add_(1),
    "diagonal": lambda y: y.diagonal(0, 2, 3).add_(1),
    "unfold": lambda y: y.unfold(2, 2, 2).mul_(2),
    "data": lambda y: y.data.add_(1),
    "dropout": lambda y: F.alpha_dropout(y, 0.5, False).add_(1),
}


@pytest.mark.parametrize("name", WRITES)
def test_maps_are_those_of_their_modules_and_writes_are_kept(name: str) -> None:
    net, x = awake(Writes(WRITES[name])).eval(), image(16)
    with torch.no_grad():
        maps = ss.features(net, ("c1", "c2"), input_size=16)(x)
        both = ss.dual_path(net, "S1L0", taps="c2", input_size=16)(x)
        assert torch.equal(maps["c1"], net.c1(x)) and torch.equal(maps["c2"], net(x))
        assert torch.allclose(both["large.c2"], net(x), atol=1e-6)


class Skip(nn.Module):
    """A skip from before a pool that an activation in place follows."""

    def __init__(self) -> None:
        super().__init__()
        self.c1, self.pool, self.relu = conv(3, 4), nn.MaxPool2d(2), nn.ReLU(inplace=True)
        self.c2, self.up = conv(4, 4), nn.Upsample(scale_factor=2)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.c1(x)
        return torch.cat([skip, self.up(self.c2(self.relu(self.pool(skip))))], 1)


@pytest.mark.parametrize("form", ["module", "graph"])
def test_a_removed_pool_gives_memory_of_its_own(form: str) -> None:
    net, x = awake(Skip()).eval(), image(16)
    with torch.no_grad():
        assert torch.equal(ss.eliminate(net, S=1, form=form, input_size=16)(x)[:, :4], net.c1(x))
        for found in ss.dual_path(net, S=1, taps="c1", input_size=16)(x).values():
            assert torch.equal(found, net.c1(x))


class Adds(nn.Module):
    """Adds a finer path into its own input."""

    def __init__(self) -> None:
        super().__init__()
        self.c, self.up, self.d = conv(3, 3, 2), nn.Upsample(scale_factor=2), conv(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        x += self.up(self.c(x))
        return self.d(x)


def test_paths_that_would_overwrite_what_they_share_are_refused() -> None:
    with pytest.raises(ss.OperatorError, match="overwritten in place"):
        ss.dual_path(Adds().eval(), S=1, taps="d", input_size=16)


class OwnNorm(nn.BatchNorm2d):
    """Unknown by type: recorded down to its buffers."""


def test_running_statistics_are_updated_as_often_as_they_run() -> None:
    net = nn.Sequential(conv(3, 4, 2), EvoNorm2dB0(4), conv(4, 4), OwnNorm(4)).train()
    maps = ss.features(net, "3", input_size=16)
    maps(image(16, batch=4))
    assert int(maps.get_buffer("3.num_batches_tracked")) == 1
    assert not torch.equal(maps.get_buffer("1.running_var"), net.get_buffer("1.running_var"))
    with pytest.raises(ss.OperatorError, match="large_norm='shared'"):
        ss.dual_path(net, "S1L0", taps="3", large_norm="frozen", input_size=16)


def test_norms_that_are_frozen_stay_so() -> None:
    net, x = (
        awake(nn.Sequential(conv(3, 4, 2), nn.BatchNorm2d(4), conv(4, 4))).train(),
        image(16, batch=2),
    )
    net[1].eval()
    maps = ss.features(net, "2", input_size=16)
    for model in (maps, copy.deepcopy(maps)):
        assert model.training and torch.equal(model(x)["2"], net(x))


def test_calls_of_one_module_are_told_apart() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.c1, self.c2, self.relu = conv(3, 4, 2), conv(4, 5, 2), nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            return self.relu(self.c2(self.relu(self.c1(x))))

    net, x = Shared().eval(), image(16)
    maps = ss.features(net, input_size=16)
    assert list(maps(x)) == ["relu#0", "relu#1"] and maps.feature_info.channels() == [4, 5]
    assert torch.equal(ss.features(net, "relu#1", input_size=16)(x)["relu#1"], net(x))
    assert len(ss.dual_path(net, "S1L0", input_size=16)(x)) == 4


class Auxiliary(nn.Module):
    """In train mode another branch calls the same function first."""

    def __init__(self) -> None:
        super().__init__()
        self.c1, self.aux, self.c2 = conv(3, 4), conv(4, 4), conv(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.c1(x)
        extra = F.max_pool2d(self.aux(y), 2).mean() if self.training else 0
        return F.max_pool2d(self.c2(y), 2) + extra


def test_functions_that_the_modes_call_differently_are_refused() -> None:
    with pytest.raises(ss.GridError, match="1 times in eval mode and 2 times in train mode"):
        ss.eliminate(Auxiliary().eval(), S=1, input_size=16)


class Mixes(nn.Module):
    """Subtracts the mean over the images of a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.c, self.d = conv(3, 4, 2), conv(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.c(x)
        return self.d(y - y.mean(0, keepdim=True))


@pytest.mark.parametrize(
    "net",
    [
        Mixes(),
        nn.Sequential(conv(3, 4, 2), nn.BatchNorm2d(4, track_running_stats=False), conv(4, 4)),
    ],
)
def test_phases_are_refused_where_images_are_mixed(net: nn.Module) -> None:
    with pytest.raises(ss.OperatorError, match="all images of a batch"):
        ss.eliminate(net.eval(), S=1, dilate=True, input_size=16)


def test_a_map_as_deep_as_it_is_wide_keeps_its_layout() -> None:
    """8 x 8 cells of 8 channels, rows first: only the permutation before it tells."""

    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.norm, self.d = nn.Conv2d(3, 8, 4, 4), nn.LayerNorm(8), conv(8, 8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.d(self.norm(self.stem(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2))

    fine = ss.eliminate(awake(Last()).eval(), "S1L0", stride=2, dilate=True, input_size=32)
    assert ss.features(fine, "norm", input_size=32)(image(32))["norm"].shape == (1, 16, 16, 8)


def test_a_sliced_path_looks_where_its_slices_look() -> None:
    """After a removed pool the large path sees one cell where the original sees four."""
    net = awake(
        nn.Sequential(conv(3, 4), nn.AvgPool2d(2, 2), conv(4, 4), conv(4, 4, 2), conv(4, 4))
    ).eval()
    sliced, pooled = (
        ss.dual_path(net, L=1, taps="4", sampler=s, input_size=64).feature_info.geometry(1)
        for s in ("slice", "original")
    )
    assert (sliced.offset[0], sliced.receptive_field[0]) == (0.0, 19.0)
    assert (pooled.offset[0], pooled.receptive_field[0]) == (0.5, 20.0)


def test_a_deeper_stride_of_a_dilated_dual_path() -> None:
    net, x = create("resnet18"), image(64)
    both = ss.dual_path(net, L=(6, 11), dilate=True, taps="layer3.0.conv1", input_size=64)
    wanted = ss.features(net, "layer3.0.conv1", input_size=64)(x)["layer3.0.conv1"]
    assert torch.allclose(both(x)["large.layer3.0.conv1"], wanted, atol=1e-4)


def test_a_divisor_grows_with_the_window_that_takes_a_stride_on() -> None:
    net = nn.Sequential(conv(3, 4, 2), nn.AvgPool2d(2, 2, divisor_override=4)).eval()
    assert ss.verify(net, ss.eliminate(net, "S1L0", restore_at=1, input_size=16), 16)


def test_a_surgery_is_taken_as_it_is() -> None:
    surgery = ss.Surgery(1, (0,), dilate=True)
    both = ss.dual_path(create("resnet18"), surgery, taps="layer1", input_size=64)
    assert [m.shape[-1] for m in both(image(64)).values()] == [32, 16]
