"""The padding rule, operator by operator: the finer output sampled [::k, ::k] is the original's, at every size."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, currently_in_test_context, given, settings
from hypothesis import strategies as st
from timm.layers import AvgPool2dSame, BlurPool2d
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.pool2d_same import MaxPool2dSame
from timm.layers.space_to_depth import SpaceToDepth
from timm.models.swin_transformer import PatchMerging as SwinMerging
from torch import Tensor, nn
from torchvision.models.swin_transformer import PatchMerging as VisionSwinMerging

import stridesurgery as ss
from tests.models import awake
from tests.watch import error

many = settings(max_examples=100, deadline=None)
CHANNELS = 3
SIZES = st.tuples(st.integers(6, 33), st.integers(6, 33))
STRIDES = st.sampled_from([1, 2, 3, 4, 6])


class Single(nn.Module):
    """One operator as a network; NHWC operators see their axes in their order."""

    def __init__(self, operator: Any, last: bool = False) -> None:
        super().__init__()
        self.operator, self.last = operator, last

    def forward(self, x: Tensor) -> Tensor:
        return (
            self.operator(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            if self.last
            else self.operator(x)
        )


@st.composite
def axes(draw: st.DrawFn, dilated: bool = True, pool: bool = False) -> tuple[tuple[int, int], ...]:
    """((rows, columns) of kernel, stride, padding, dilation), not all strides 1."""
    sides = []
    for _ in range(2):
        kernel, stride = draw(st.integers(1, 7)), draw(STRIDES)
        padding = draw(st.integers(0, kernel // 2 if pool else kernel))
        sides.append((kernel, stride, padding, draw(st.integers(1, 3)) if dilated else 1))
    kernel, stride, padding, dilation = zip(*sides, strict=True)
    assume(max(stride) > 1)
    return kernel, stride, padding, dilation


def remaining(draw: Any, stride: tuple[int, int]) -> int:
    """A stride that can remain along both axes."""
    common = [d for d in range(1, max(stride)) if all(s % d == 0 for s in stride)]
    return draw.draw(st.sampled_from(common))


def finer_output(
    net: nn.Module, size: tuple[int, int], stride: int, x: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """What the network makes of a random map before and after its stride is reduced."""
    net = net.eval()
    x = (
        torch.randn(1, CHANNELS, *size, generator=torch.Generator().manual_seed(0))
        if x is None
        else x
    )
    with torch.no_grad():
        try:
            before = net(x)
        except RuntimeError:
            assume(False)
        if currently_in_test_context():
            assume(before.shape[2:] != (1, 1))  # a pool that covers the whole map is no layer
        return before, ss.eliminate(net, L=0, stride=stride, pool="keep", input_size=size)(x)


def check(
    before: Tensor,
    after: Tensor,
    size: tuple[int, int],
    stride: tuple[int, int],
    left: int,
    tolerance: float = 1e-5,
) -> None:
    """The law: exactness at every size; k*o cells where the stride divides it; never a border that was not there."""
    step = tuple(1 if s == 1 else left for s in stride)
    k = tuple(s // r for s, r in zip(stride, step, strict=True))
    assert error(after[:, :, :: k[0], :: k[1]], before) <= tolerance
    for axis in range(2):
        o, n = before.shape[axis + 2], after.shape[axis + 2]
        overpads = o > -(-size[axis] // stride[axis])
        if overpads or size[axis] % stride[axis] == 0:
            assert n == k[axis] * o
        else:
            assert n == min(k[axis] * o, -(-size[axis] // step[axis]))


@many
@given(axes(), SIZES, st.data())
def test_convolution(shape: Any, size: tuple[int, int], data: Any) -> None:
    kernel, stride, padding, dilation = shape
    left = remaining(data, stride)
    conv = nn.Conv2d(CHANNELS, 3, kernel, stride, padding, dilation)
    check(*finer_output(Single(conv), size, left), size, stride, left)


@many
@given(axes(), SIZES, st.data())
def test_convolution_as_a_function(shape: Any, size: tuple[int, int], data: Any) -> None:
    kernel, stride, padding, dilation = shape
    left, weight = remaining(data, stride), torch.randn(3, CHANNELS, *kernel)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(weight)

        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(x, self.weight, None, stride, padding, dilation)

    check(*finer_output(Net(), size, left), size, stride, left)


@many
@given(axes(), SIZES, st.data())
def test_same_convolution(shape: Any, size: tuple[int, int], data: Any) -> None:
    kernel, stride, _, dilation = shape
    left = remaining(data, stride)
    conv = Conv2dSame(CHANNELS, 3, kernel, stride, 0, dilation)
    check(*finer_output(Single(conv), size, left), size, stride, left)


@many
@given(axes(pool=True), SIZES, st.booleans(), st.booleans(), st.data())
def test_max_pool(shape: Any, size: tuple[int, int], ceil: bool, function: bool, data: Any) -> None:
    kernel, stride, padding, dilation = shape
    assume(not ceil or dilation == (1, 1))  # refused: a window may hold no cell
    left = remaining(data, stride)
    settings = {
        "kernel_size": kernel,
        "stride": stride,
        "padding": padding,
        "dilation": dilation,
        "ceil_mode": ceil,
    }
    pool = (lambda x: F.max_pool2d(x, **settings)) if function else nn.MaxPool2d(**settings)
    before, after = finer_output(Single(pool), size, left)
    check(before, after, size, stride, left, tolerance=0)
    assert after.isfinite().all()


@many
@given(
    axes(pool=True, dilated=False), SIZES, st.booleans(), st.booleans(), st.booleans(), st.data()
)
def test_average_pool(
    shape: Any, size: tuple[int, int], ceil: bool, include: bool, function: bool, data: Any
) -> None:
    kernel, stride, padding, _ = shape
    left = remaining(data, stride)
    settings = {"kernel_size": kernel, "stride": stride, "padding": padding}
    settings |= {"ceil_mode": ceil, "count_include_pad": include}
    pool = (lambda x: F.avg_pool2d(x, **settings)) if function else nn.AvgPool2d(**settings)
    before, after = finer_output(Single(pool), size, left)
    check(before, after, size, stride, left)
    assert after.isfinite().all()


@many
@given(
    axes(pool=True, dilated=False),
    SIZES,
    st.sampled_from([MaxPool2dSame, AvgPool2dSame]),
    st.data(),
)
def test_same_pool(shape: Any, size: tuple[int, int], kind: Any, data: Any) -> None:
    kernel, stride, _, _ = shape
    left = remaining(data, stride)
    check(*finer_output(Single(kind(kernel, stride)), size, left), size, stride, left)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(2, 6),
    st.sampled_from([2, 3, 4]),
    SIZES,
    st.sampled_from(["reflect", "constant", "replicate"]),
)
def test_blur_pool(filt: int, stride: int, size: tuple[int, int], mode: str) -> None:
    assume(min(size) >= 12)  # a reflected border cannot be wider than its map
    pool = BlurPool2d(CHANNELS, filt_size=filt, stride=stride, pad_mode=mode)
    check(*finer_output(Single(pool), size, 1), size, (stride, stride), 1)


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from([2, 3, 4]),
    st.integers(2, 6),
    st.integers(2, 6),
    st.sampled_from(["module", "pixel", "function"]),
)
def test_space_to_depth(block: int, rows: int, columns: int, form: str) -> None:
    size = (block * rows, block * columns)
    assume(form != "module" or block == 4)  # timm's knows blocks of four only
    if form == "module":
        net = Single(SpaceToDepth(block))
    else:
        net = Single(
            nn.PixelUnshuffle(block) if form == "pixel" else lambda x: F.pixel_unshuffle(x, block)
        )
    check(*finer_output(net, size, 1), size, (block, block), 1, tolerance=0)


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from([2, 3]), st.sampled_from([1, 2, 3]), st.integers(0, 3), st.integers(0, 3), SIZES
)
def test_slices(down: int, right: int, top: int, first: int, size: tuple[int, int]) -> None:
    net = Single(lambda x: x[:, :, top::down, first::right])
    stride = (down, right)
    before, after = finer_output(net, size, 1)
    assert after[:, :, ::down, ::right].equal(before)
    for axis, start in enumerate((top, first)):
        assert after.shape[axis + 2] <= size[axis]
        if size[axis] % stride[axis] == 0 and start < stride[axis]:
            assert after.shape[axis + 2] == stride[axis] * before.shape[axis + 2]


@settings(max_examples=40, deadline=None)
@given(SIZES, st.sampled_from([SwinMerging, VisionSwinMerging]))
def test_swin_merging(size: tuple[int, int], kind: Any) -> None:
    torch.manual_seed(0)
    merging = SwinMerging(CHANNELS) if kind is SwinMerging else VisionSwinMerging(CHANNELS)
    net = Single(awake(merging), last=True)
    check(*finer_output(net, size, 1), size, (2, 2), 1)


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize(
    "kernel,stride,padding", [(3, 2, 1), (4, 2, 1), (5, 3, 2), (2, 2, 1), (5, 4, 2)]
)
@pytest.mark.parametrize("size", [(16, 16), (17, 13), (24, 15)])
def test_padding_modes(
    mode: str, kernel: int, stride: int, padding: int, size: tuple[int, int]
) -> None:
    conv = nn.Conv2d(CHANNELS, 3, kernel, stride, padding, padding_mode=mode)
    check(*finer_output(Single(conv), size, 1), size, (stride, stride), 1)


@pytest.mark.parametrize("padding", ["valid", "same"])
def test_string_paddings(padding: str) -> None:
    """torch allows "same" at stride 1 only; a strided layer after it must be exact too."""
    if padding == "valid":
        net = Single(nn.Conv2d(CHANNELS, 3, 3, 2, "valid"))
        check(*finer_output(net, (16, 15), 1), (16, 15), (2, 2), 1)
    net = Single(
        nn.Sequential(
            nn.Conv2d(CHANNELS, CHANNELS, (4, 3), 1, padding), nn.Conv2d(CHANNELS, 3, 3, 2, 1)
        )
    )
    x = torch.randn(1, CHANNELS, 16, 16)
    with torch.no_grad():
        before, after = net(x), ss.eliminate(net, L=1, input_size=16)(x)
    assert error(after[:, :, ::2, ::2], before) < 1e-5


@pytest.mark.parametrize("size", [16, 17])
def test_removed_pool_passes_its_map_through(size: int) -> None:
    """Shifted to the cells that the pool's windows are centred on, the border repeated where they end."""
    for pool in (
        nn.MaxPool2d(2),
        nn.MaxPool2d(3, 2, 1),
        nn.AvgPool2d(2),
        nn.MaxPool2d(3, 2, ceil_mode=True),
    ):
        x = torch.randn(1, CHANNELS, size, size)
        after = ss.eliminate(Single(pool), L=0, input_size=size)(x)
        h, w = after.shape[2:]
        wide = F.pad(x, (0, 1, 0, 1), mode="replicate")
        assert any(after.equal(wide[:, :, i : i + h, i : i + w]) for i in (0, 1))
