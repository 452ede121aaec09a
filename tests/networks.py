"""Random small CNNs, made of everything that is known to go wrong with strides."""

from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from timm.layers import BlurPool2d
from timm.layers.conv2d_same import Conv2dSame
from torch import Tensor, nn

C = 4  # channels of every map


class Residual(nn.Module):
    """A strided branch beside a strided shortcut."""

    def __init__(self, branch: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.branch, self.shortcut = branch, shortcut

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.branch(x) + self.shortcut(x))


class Concatenated(nn.Module):
    """Branches side by side, as in an Inception reduction."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)
        self.mix = nn.Conv2d(C * len(branches), C, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(torch.cat([branch(x) for branch in self.branches], 1))


class SqueezeExcite(nn.Module):
    """A gate made from the mean of the map."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Conv2d(C, C, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.fc(x.mean((2, 3), keepdim=True)).sigmoid()


class Hourglass(nn.Module):
    """Down, and up again to the size of the skipped map or by a fixed factor."""

    def __init__(self, down: nn.Module, fixed: bool) -> None:
        super().__init__()
        self.down = down
        self.up = nn.Upsample(scale_factor=2) if fixed else None

    def forward(self, x: Tensor) -> Tensor:
        low = self.down(x)
        return x + (self.up(low) if self.up is not None else F.interpolate(low, size=x.shape[-2:]))


class Function(nn.Module):
    """An operator that is written in the forward code."""

    def __init__(self, kind: str, kernel: int, stride: int, ceil: bool) -> None:
        super().__init__()
        self.kind, self.kernel, self.stride, self.ceil = kind, kernel, stride, ceil
        self.weight = nn.Parameter(torch.randn(C, C, kernel, kernel) / kernel)
        self.seen = (
            nn.Identity()
        )  # a module that shows what the function made, also in a rewritten graph

    def forward(self, x: Tensor) -> Tensor:
        return self.seen(self.call(x))

    def call(self, x: Tensor) -> Tensor:
        if self.kind == "max":
            return F.max_pool2d(x, self.kernel, self.stride, self.kernel // 2, ceil_mode=self.ceil)
        if self.kind == "avg":
            return F.avg_pool2d(
                x, self.kernel, self.stride, self.kernel // 2, self.ceil, count_include_pad=False
            )
        if self.kind == "slice":
            return x[:, :, :: self.stride, :: self.stride]
        return F.conv2d(x, self.weight, stride=self.stride, padding=self.kernel // 2)


class Twice(nn.Module):
    """One module called twice; strided, it stands at two reductions."""

    def __init__(self, shared: nn.Module) -> None:
        super().__init__()
        self.shared = shared

    def forward(self, x: Tensor) -> Tensor:
        return self.shared(F.relu(self.shared(x)))


STRIDES = st.sampled_from([1, 2, 2, 2, 3])


@st.composite
def convolutions(draw: st.DrawFn, stride: int | None = None) -> nn.Module:
    kernel = draw(st.sampled_from([1, 2, 3, 3, 4, 5, 7]))
    stride = draw(STRIDES) if stride is None else stride
    dilation = draw(st.sampled_from([1, 1, 2]))
    groups = draw(st.sampled_from([1, C]))
    if draw(st.integers(0, 4)) == 0:
        conv: nn.Module = Conv2dSame(C, C, kernel, stride, 0, dilation, groups)
    else:
        padding = draw(st.sampled_from([dilation * (kernel - 1) // 2, 0, kernel // 2]))
        mode = draw(st.sampled_from(["zeros", "zeros", "zeros", "reflect", "replicate"]))
        conv = nn.Conv2d(C, C, kernel, stride, padding, dilation, groups, padding_mode=mode)
    return nn.Sequential(conv, nn.BatchNorm2d(C), nn.ReLU())


@st.composite
def pools(draw: st.DrawFn, stride: int | None = None) -> nn.Module:
    kernel, ceil = draw(st.sampled_from([2, 3, 4])), draw(st.booleans())
    stride = draw(STRIDES) if stride is None else stride
    padding = draw(st.integers(0, kernel // 2))
    kind = draw(st.sampled_from(["max", "avg", "blur", "function"]))
    if kind == "max":
        return nn.MaxPool2d(kernel, stride, padding, ceil_mode=ceil)
    if kind == "avg":
        return nn.AvgPool2d(kernel, stride, padding, ceil, count_include_pad=draw(st.booleans()))
    if kind == "blur":
        return BlurPool2d(C, 3, stride=max(stride, 2))
    function = draw(st.sampled_from(["max", "avg", "slice", "conv"]))
    return Function(function, draw(st.sampled_from([2, 3])), stride, ceil)


def padded(stride: int, kernel: int = 3) -> nn.Module:
    return nn.Sequential(nn.Conv2d(C, C, kernel, stride, kernel // 2), nn.BatchNorm2d(C))


@st.composite
def joins(draw: st.DrawFn) -> nn.Module:
    """Blocks with branches that agree in size."""
    kind, stride = (
        draw(st.sampled_from("residual concat se hourglass twice".split())),
        draw(STRIDES),
    )
    if kind == "residual":
        pooled = nn.Sequential(
            nn.AvgPool2d(stride, stride, ceil_mode=True, count_include_pad=False),
            nn.Conv2d(C, C, 1),
        )
        shortcut = draw(st.sampled_from([padded(stride, 1), pooled]))
        return Residual(
            nn.Sequential(padded(stride, draw(st.sampled_from([3, 5]))), nn.ReLU(), padded(1)),
            shortcut,
        )
    if kind == "concat":
        pool = draw(
            st.sampled_from([nn.MaxPool2d(3, stride, 1), Function("max", 3, stride, False)])
        )
        return Concatenated(padded(stride), pool, nn.Sequential(padded(1, 1), padded(stride, 5)))
    if kind == "hourglass":
        inner = draw(
            st.one_of(st.just(nn.Identity()), st.just(SqueezeExcite()), convolutions(stride=1))
        )
        return Hourglass(nn.Sequential(padded(2), inner), draw(st.booleans()))
    if kind == "twice":
        return Twice(draw(st.one_of(convolutions(), pools())))
    return SqueezeExcite()


class Net(nn.Sequential):
    """A stem, blocks, and a head that sees the mean."""

    def __init__(self, stem: nn.Module, blocks: list[nn.Module]) -> None:
        super().__init__(nn.Conv2d(3, C, 1), stem, *blocks, nn.Conv2d(C, C, 1))


def chains() -> st.SearchStrategy[Any]:
    """Networks without branches."""
    return st.builds(
        Net, convolutions(), st.lists(st.one_of(convolutions(), pools()), min_size=1, max_size=4)
    )


def branched() -> st.SearchStrategy[Any]:
    """Networks with everything."""
    block = st.one_of(convolutions(), pools(), joins(), joins())
    return st.builds(Net, convolutions(), st.lists(block, min_size=1, max_size=4))
