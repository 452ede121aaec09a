"""Which operators mix the images of a batch: those are refused where phases would lie in it, and no others."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import stridesurgery as ss
from tests.models import image


def conv(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride, 1)


class Between(nn.Module):
    """A function between a strided layer and another one."""

    def __init__(self, function: Callable[["Between", Tensor], Tensor]) -> None:
        super().__init__()
        self.c, self.d, self.function = conv(3, 4, 2), conv(4, 4), function
        self.steps, self.heads = nn.LSTM(4, 4), nn.MultiheadAttention(4, 2)
        self.register_buffer("table", torch.randn(64, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.d(self.function(self, self.c(x)))


def numbered(y: Tensor, made: Callable[..., Tensor]) -> Tensor:
    return y + made(y.shape[0], device=y.device).view(-1, 1, 1, 1)


MIX: dict[str, Callable[[Between, Tensor], Tensor]] = {
    "mean": lambda net, y: y - y.mean(0, keepdim=True),
    "einsum over images": lambda net, y: y + torch.einsum("bchw,bdhw->cdhw", y, y).mean(0),
    "einsum of all pairs": lambda net, y: torch.einsum("bchw,achw->achw", y, y),
    "tensordot": lambda net, y: torch.tensordot(y.new_ones(y.shape[0], y.shape[0]), y, 1),
    "matmul": lambda net, y: (y.flatten(1) @ y.flatten(1).T @ y.flatten(1)).view_as(y),
    "linalg.norm": lambda net, y: y / torch.linalg.norm(y, dim=(0, 1), keepdim=True),
    "norm of everything": lambda net, y: y / torch.linalg.vector_norm(y),
    "renorm": lambda net, y: torch.renorm(y, 2, 1, 1.0),
    "rot90": lambda net, y: torch.rot90(y, 2, (0, 1)),
    "repeat": lambda net, y: y.repeat(2, 1, 1, 1)[1 : y.shape[0] + 1],
    "linspace": lambda net, y: numbered(
        y, lambda n, device: torch.linspace(0, 1, n, device=device)
    ),
    "arange": lambda net, y: numbered(y, torch.arange),
    "a row of a table for each image": lambda net, y: y * net.table[: y.shape[0]],
    "the first image": lambda net, y: y - y[0],
    "a slice of images": lambda net, y: y - y[:1],
    "roll": lambda net, y: y.roll(1, 0),
    "flip": lambda net, y: y.flip(0),
    "softmax": lambda net, y: y.softmax(0),
    "sort": lambda net, y: y.sort(0)[0],
    "cumsum": lambda net, y: y.cumsum(0),
    "normalize": lambda net, y: F.normalize(y, dim=0),
    "amax": lambda net, y: y / y.amax(),
    "another order of axes": lambda net, y: y.reshape(
        y.shape[1], y.shape[0], *y.shape[2:]
    ).transpose(0, 1),
    "batch statistics": lambda net, y: F.batch_norm(y, None, None, training=True),
    "pairs": lambda net, y: (y[:, None] - y[None]).mean(1),
    "cdist": lambda net, y: y + torch.cdist(y.flatten(1), y.flatten(1)).mean(),
    "index_fill": lambda net, y: y.index_fill(
        0, torch.zeros(1, dtype=torch.long, device=y.device), 0
    ),
    "steps of a recurrent network": lambda net, y: POOLED["steps"](net, F.group_norm(y, 2)),
    "attention": lambda net, y: POOLED["attention"](net, F.group_norm(y, 2)),
}
POOLED: dict[str, Callable[[Between, Tensor], Tensor]] = {  # no phases run, as no group norm does
    "steps": lambda net, y: net.steps(y.mean((2, 3)).unsqueeze(1))[0].view(-1, 4, 1, 1) * y,
    "attention": lambda net, y: (
        net.heads(*[y.mean((2, 3)).unsqueeze(1)] * 3)[0].view(-1, 4, 1, 1) * y
    ),
}
APART: dict[str, Callable[[Between, Tensor], Tensor]] = {
    "gates": lambda net, y: y * y.mean((2, 3), keepdim=True).sigmoid(),
    "group norm": lambda net, y: F.group_norm(y, 2),
    "layer norm": lambda net, y: F.layer_norm(y, y.shape[1:]),
    "instance norm": lambda net, y: F.instance_norm(y),
    "attention function": lambda net, y: F.scaled_dot_product_attention(
        *[y.flatten(2).mT] * 3
    ).mT.reshape(y.shape),
    "einsum": lambda net, y: (
        torch.einsum("bchw,bdhw->bcd", y, y).mean((1, 2))[:, None, None, None] * y
    ),
    "vector norm": lambda net, y: y / torch.linalg.vector_norm(y, dim=(2, 3), keepdim=True),
    "softmax of cells": lambda net, y: y.flatten(1).softmax(1).view_as(y),
    "fft": lambda net, y: torch.fft.irfft2(torch.fft.rfft2(y), s=y.shape[-2:]),
    "shuffle": lambda net, y: (
        y.view(y.shape[0], 2, 2, *y.shape[2:]).transpose(1, 2).reshape(y.shape)
    ),
    "heads": lambda net, y: (
        y.reshape(-1, 2, *y.shape[2:]).mean(1, keepdim=True).expand(-1, 2, -1, -1).reshape(y.shape)
    ),
    "topk": lambda net, y: y.topk(1, 1)[0] * y,
    "masks": lambda net, y: torch.where(y > 0, y, torch.zeros_like(y)).masked_fill(y > 1, 0),
    "repeat of channels": lambda net, y: y.repeat(1, 2, 1, 1)[:, :4],
    "pixels": lambda net, y: F.pixel_shuffle(F.pixel_unshuffle(y, 2), 2),
    "resize": lambda net, y: F.interpolate(F.avg_pool2d(y, 2), scale_factor=2.0) * y,
    "local response": lambda net, y: F.local_response_norm(y, 2),
    "activations": lambda net, y: (
        F.mish(y) + F.logsigmoid(y) + F.hardswish(y) + F.prelu(y, y.new_ones(4))
    ),
    "steps that are cells": lambda net, y: (
        net.steps(y.flatten(2).permute(2, 0, 1))[0].permute(1, 2, 0).view_as(y)
    ),
    "attention among cells": lambda net, y: (
        net.heads(*[y.flatten(2).permute(2, 0, 1)] * 3)[0].permute(1, 2, 0).view_as(y)
    ),
}


@pytest.mark.parametrize("name", MIX)
def test_what_mixes_images_is_not_dilated(name: str) -> None:
    net = Between(MIX[name]).eval()
    x = torch.cat([image(16), 2 - image(16) ** 2])
    assert not torch.allclose(net(x), torch.cat([net(x[:1]), net(x[1:])]), atol=1e-5)  # it does
    with pytest.raises(ss.SurgeryError, match="images"):
        ss.eliminate(net, S=1, dilate=True, input_size=16)


@pytest.mark.parametrize("name", [*APART, *POOLED])
def test_what_keeps_images_apart_is_dilated(name: str) -> None:
    """Or mixes them after they are pooled, where no phases run."""
    net = Between((APART | POOLED)[name]).eval()
    fine = ss.eliminate(net, S=1, dilate=True, input_size=16)
    x = torch.cat([image(16), 2 - image(16) ** 2])
    assert torch.allclose(fine(x)[..., ::2, ::2], net(x), atol=1e-5)


HOOKS: dict[str, Callable[[Tensor], Tensor]] = {
    "images": lambda y: y - y.mean(0, keepdim=True),
    "cells": lambda y: y - y.mean((2, 3), keepdim=True),
    "moved": lambda y: y.roll(1, 2),
    "grid": lambda y: y[..., ::2],
    "numbers": lambda y: y * 2 + 1,
    "channels": lambda y: y * torch.ones(4, device=y.device).view(1, 4, 1, 1) * 3,
}


def _hooked(name: str, place: str) -> nn.Module:
    net = nn.Sequential(conv(3, 4, 2), nn.ReLU(), conv(4, 4, 2), nn.ReLU(), conv(4, 4)).eval()
    net.get_submodule(place).register_forward_hook(lambda module, args, result: HOOKS[name](result))
    return net


@pytest.mark.parametrize("form", ["module", "graph", "dilate", "dual_path"])
@pytest.mark.parametrize("place", ["1", "2", "3"])
@pytest.mark.parametrize("name", HOOKS)
def test_hooks_that_change_what_a_layer_gives(name: str, place: str, form: str) -> None:
    """The second convolution is operated: what its hook sees of other cells or images is refused, and of others' never
    wrong."""
    net = _hooked(name, place)
    refused = (
        name == "grid"
        or (place == "2" and name not in ("numbers", "channels"))
        or (place == "3" and name == "images" and form == "dilate")
    )
    x = torch.cat([image(16), 2 - image(16) ** 2])
    try:
        if form == "dual_path":
            fine = ss.dual_path(net, "S1L1", input_size=16)
            large = {key[6:]: value for key, value in fine(x).items() if key.startswith("large.")}
            wanted = ss.features(net, list(large), input_size=16)(x)
            assert all(torch.allclose(large[key], wanted[key], atol=1e-5) for key in large)
        else:
            options = {"dilate": {"dilate": True}, "graph": {"form": "graph"}}.get(form, {})
            fine = ss.eliminate(net, "S1L1", input_size=16, **options)
    except ss.SurgeryError as problem:
        assert refused, problem
        assert "hook" in str(problem) or "images" in str(problem)
        return
    assert not refused
    assert ss.verify(net, fine, 16)
