"""Answers and forward code that dilation, or a graph, can get wrong: rows for `tests.unusual.UNUSUAL`."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.unusual import (
    ANY,
    NOT_DILATED,
    Body,
    C,
    Unusual,
    attended,
    attention,
    named,
    sequence,
    tail,
    tails,
)


def writes(edit: Callable[[Tensor], Any], **options: Any) -> Unusual:
    """The last map, of which a part is overwritten after it was made."""

    def overwritten(y: Tensor) -> Tensor:
        y = y * 1
        edit(y)
        return y

    return tail(overwritten, **options)


class Mirrored(nn.Module):
    """The mean over an image and its mirror image, which run as one batch."""

    def __init__(
        self, join: Callable[[Tensor, Tensor], Tensor], split: Callable[[Tensor, int], Tensor]
    ) -> None:
        super().__init__()
        self.body, self.join, self.split = Body(), join, split

    def forward(self, x: Tensor) -> Tensor:
        return self.split(self.body(self.join(x, x.flip(3))), x.shape[0])


class Context(nn.Module):
    """Runs a part of itself in a context of torch."""

    def __init__(self, context: Callable[[], Any]) -> None:
        super().__init__()
        self.body, self.context = Body(), context

    def forward(self, x: Tensor) -> Tensor:
        with self.context():
            y = self.body.b(self.body.a(x))
        return self.body.c(y.float())


def with_mean() -> nn.Module:
    """A hook on the whole model that adds numbers to its answer."""
    net = named(Body())
    net.register_forward_hook(
        lambda module, args, result: {"map": result, "mean": result.mean((2, 3))}
    )
    return net


def overwritten(y: Tensor) -> Tensor:
    y = y * 1
    y[-1] = 0.0
    return y


MAY = {"may_refuse": ("dilate",)}
GRAPHS = {"may_refuse": ("graph", "dilate")}

ANSWERS: dict[str, Unusual] = {
    # a write into a part of a map, which comes after the map in the graph
    "writes a channel": writes(lambda y: y[:, 0].zero_(), **MAY),
    "writes by index": writes(lambda y: y.__setitem__((slice(None), 0), y[:, 1]), **MAY),
    "writes where": writes(lambda y: y.__setitem__(y < 0.5, 0), **MAY),
    "writes into a chunk": writes(lambda y: y.chunk(2, 1)[0].add_(y[:, 4:]), **MAY),
    "writes into a view": writes(lambda y: y.transpose(2, 3).mul_(2), **MAY),
    "writes all": writes(lambda y: y.add_(1)),
    "fills another": tail(lambda y: torch.zeros_like(y).index_copy_(1, torch.arange(C), y)),
    # the batch
    "times the batch": tail(lambda y: y * y.shape[0], **GRAPHS),
    "over the batch of the image": tails(lambda net, x, maps: maps[-1] / x.shape[0], **GRAPHS),
    "normalised over the images": tail(lambda y: F.normalize(y, dim=0), **NOT_DILATED),
    "layer norm over the images": tail(
        lambda y: F.layer_norm(y.mean((2, 3)).T, (y.shape[0],)), **GRAPHS
    ),
    "convolution over the images": tails(
        lambda net, x, maps: net.mix(maps[-1].mean((2, 3)).T[None]),
        lambda: {"mix": nn.Conv1d(C, C, 3, 1, 1)},
    ),
    "transformer over the images": tails(
        lambda net, x, maps: net.mix(maps[-1].flatten(2).transpose(1, 2)),
        lambda: {"mix": nn.TransformerEncoderLayer(C, 2, 16, dropout=0.0)},
        **NOT_DILATED,
    ),
    "transformer over the cells": tails(
        lambda net, x, maps: net.mix(sequence(maps[-1])),
        lambda: {"mix": nn.TransformerEncoderLayer(C, 2, 16, dropout=0.0)},
        **MAY,
    ),
    "softmax over the images": tail(lambda y: y.softmax(0), **NOT_DILATED),
    "softmax over the images, a module": tails(
        lambda net, x, maps: net.soft(maps[-1]), lambda: {"soft": nn.Softmax(0)}, **NOT_DILATED
    ),
    "softmax over the images, by name": tail(
        lambda y: torch.softmax(input=y, dim=0), **NOT_DILATED
    ),
    "sdpa over the images": tail(
        lambda y: F.scaled_dot_product_attention(*[y.mean((2, 3))[None]] * 3)[0]
    ),
    "images weighed by their likeness": tail(
        lambda y: y.mean((2, 3)) @ (y.mean((2, 3)).T @ y.mean((2, 3)))
    ),
    "mean without nan over the images": tail(
        lambda y: y - y.nanmean(0, keepdim=True), **NOT_DILATED
    ),
    "rolled as one row": tail(lambda y: y.roll(1), **NOT_DILATED),
    "gathered along the images": tail(
        lambda y: y.gather(0, torch.zeros_like(y, dtype=torch.int64)), **NOT_DILATED
    ),
    "upside down": tail(lambda y: torch.flipud(y), **NOT_DILATED),
    "one image overwritten": tail(overwritten, **NOT_DILATED),
    "running sum over the images": tail(lambda y: y.cumsum(0), **NOT_DILATED),
    "images against images": tail(lambda y: y.flatten(1) @ y.flatten(1).T),
    "einsum over the images": tail(lambda y: torch.einsum("nchw,mchw->nm", y, y)),
    "einsum in each image": tail(lambda y: torch.einsum("nchw,ndhw->ncd", y, y)),
    "images in another order": tail(lambda y: y[torch.tensor([1, 0])], **NOT_DILATED),
    "one image": tail(lambda y: y[:1], **NOT_DILATED),
    "a loss": tail(lambda y: y.square().mean(), **NOT_DILATED),
    "number of the image": tail(lambda y: y + torch.arange(y.shape[0]).view(-1, 1, 1, 1), **MAY),
    "mirror images, first half": Unusual(
        lambda: Mirrored(lambda x, z: torch.cat([x, z]), lambda y, n: y[:n] + y[n:].flip(3)), **MAY
    ),
    "mirror images, in turn": Unusual(
        lambda: Mirrored(
            lambda x, z: torch.stack([x, z], 1).flatten(0, 1),
            lambda y, n: y.mean((2, 3)).view(n, 2, -1).mean(1),
        ),
        **MAY,
    ),
    # the batch together with another axis
    "(C * N, H, W)": tail(lambda y: y.transpose(0, 1).flatten(0, 1), **MAY),
    "(N * C, H, W)": tail(lambda y: y.flatten(0, 1), **MAY),
    "(H * W * N, C)": tail(lambda y: y.permute(2, 3, 0, 1).reshape(-1, C), **MAY),
    "(N * heads, L, C / heads)": tail(
        lambda y: y.reshape(y.shape[0] * 2, C // 2, -1).transpose(1, 2), **MAY
    ),
    "(1, N, C)": tail(lambda y: y.mean((2, 3))[None]),
    "(C, N)": tail(lambda y: y.mean((2, 3)).T),
    "last place of a sequence": tail(lambda y: sequence(y)[-1], may_refuse=ANY),
    "sequence first, attended, first place": tails(
        lambda net, x, maps: attended(net, sequence(maps[-1]))[0], attention, may_refuse=ANY
    ),
    # contexts, which a graph does not hold
    "half precision inside": Unusual(
        lambda: Context(lambda: torch.autocast("cpu", torch.bfloat16)), **GRAPHS
    ),
    "numbers from a hook of the model": Unusual(with_mean, **GRAPHS),
}
