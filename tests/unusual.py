"""Small models that people do have, each with something in it that a copy, a recording or a graph can lose."""

import copy
import dataclasses
from collections import OrderedDict, namedtuple
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune, weight_norm
from torchvision.models.feature_extraction import create_feature_extractor

from tests.models import awake

C = 8  # channels of every map


@dataclass(frozen=True)
class Unusual:
    """How to build a model, which strides to take, and which requests may be answered by a refusal."""

    build: Callable[[], nn.Module]
    cuts: tuple[tuple[str, ...], ...] = (
        ("body.a.0",),
        ("body.c.0",),
    )  # modules that change together
    may_refuse: tuple[str, ...] = ()  # of "module", "graph" and "dilate"
    must_refuse: tuple[str, ...] = ()
    request: dict[str, Any] = field(
        default_factory=dict
    )  # by default L is the first module of the cut
    loose: bool = False  # the answer contains sizes, which a dilated model may state of either grid

    def make(self) -> nn.Module:
        """The model, the same at every call, awake and in eval mode."""
        torch.manual_seed(0)
        return awake(self.build()).eval()


def down(channels: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, C, 3, 2, 1), nn.BatchNorm2d(C), nn.ReLU())


class Body(nn.Module):
    """Three strides."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = down(3), down(C), down(C)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.a(x)))


class Tailed(nn.Module):
    """A body, and code that makes the answer of its maps: `tail(model, image, maps)`."""

    def __init__(self, tail: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        self.body, self.tail = Body(), tail
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Any:
        a = self.body.a(x)
        b = self.body.b(a)
        return self.tail(self, x, (a, b, self.body.c(b)))


def tail(function: Callable[..., Any], **options: Any) -> Unusual:
    """The answer is a function of the last map."""
    return tails(lambda net, x, maps: function(maps[-1]), **options)


def tails(
    function: Callable[..., Any], parts: Callable[[], dict[str, Any]] = dict, **options: Any
) -> Unusual:
    return Unusual(lambda: Tailed(function, **parts()), **options)


# ----------------------------------------------------------------------------------------------
# wrappers of others


def resnet() -> nn.Module:
    return torchvision.models.ResNet(torchvision.models.resnet.BasicBlock, [1, 1, 1, 1])


RESNET = (("conv1",), ("layer4.0.conv1", "layer4.0.downsample.0"))


def below(prefix: str) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(f"{prefix}.{name}" for name in cut) for cut in RESNET)


def extractor() -> nn.Module:
    return create_feature_extractor(resnet(), {"layer2": "a", "layer4": "b"})


class Inside(nn.Module):
    """Another module's maps, fused."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.head = inner, nn.Linear(512, 5)

    def forward(self, x: Tensor) -> Any:
        maps = self.inner(x)
        return {"maps": maps, "logits": self.head(maps["b"].mean((2, 3)))}


def features_only(**options: Any) -> nn.Module:
    sizes: dict[str, Any] = {"layers": (1, 1, 1, 1), "channels": (8, 8, 16, 16), "stem_width": 8}
    return timm.create_model("resnet18", features_only=True, **sizes, **options)


# ---------------------------------------------------------------------------------------------------------
# hooks


class Collector(nn.Module):
    """Returns what its hooks have put aside."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.body, self.maps = Body(), {}
        hooks: dict[str, Callable[[str], Any]] = {
            "method": lambda name: self.keep,
            "closure": lambda name: lambda module, args, result: self.maps.update({name: result}),
            "partial": lambda name: partial(self.keep_as, name),
        }
        for name, part in self.body.named_children():
            part.register_forward_hook(hooks[kind](name))

    def keep(self, module: nn.Module, args: Any, result: Tensor) -> None:
        self.maps[len(self.maps)] = result

    def keep_as(self, name: str, module: nn.Module, args: Any, result: Tensor) -> None:
        self.maps[name] = result

    def forward(self, x: Tensor) -> list[Tensor]:
        self.maps.clear()
        self.body(x)
        return list(self.maps.values())


def named(body: nn.Module) -> nn.Module:
    return nn.Sequential(OrderedDict(body=body))


def hooked(path: str, when: str = "forward") -> Unusual:
    """A hook that changes what a module takes or gives."""

    def build() -> nn.Module:
        net = named(Body())
        if when == "forward":
            net.get_submodule(path).register_forward_hook(
                lambda module, args, result: result * 2 + 1
            )
        else:
            net.get_submodule(path).register_forward_pre_hook(
                lambda module, args: (args[0] / 3 - 1,)
            )
        return net

    return Unusual(build)


# -------------------------------------------------------------------------------------- attributes
# and copies


class Switched(nn.Module):
    """Flags, one of which is named as hooks are, and a way of its own to be copied."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.use_hooks, self.config = Body(), True, {"pooled": True}
        self.pool = nn.MaxPool2d(3, 2, 1)

    def __getstate__(self) -> dict[str, Any]:
        return dict(self.__dict__)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body.a(x)
        x = self.pool(x) if self.config["pooled"] and self.use_hooks else x
        return self.body.c(self.body.b(x))


class CopiesItself(nn.Module):
    """`__deepcopy__` of its own, which shares what is not a module."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.scale = Body(), [2.0]

    def __deepcopy__(self, memo: dict[int, Any]) -> "CopiesItself":
        twin = type(self)()
        memo[id(self)] = twin
        twin.body, twin.scale, twin.training = (
            copy.deepcopy(self.body, memo),
            self.scale,
            self.training,
        )
        return twin

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) * self.scale[0]


def patched(closed: bool) -> nn.Module:
    """A model whose forward was replaced from outside, by a method of its own or a function that holds the model."""
    net = named(Body())
    if closed:
        net.forward = lambda x: net.body(x) + 1
    else:
        net.forward = net.body.forward
    return net


def reparametrized(
    rule: Callable[[nn.Module], Any], path: str = "body.c.0"
) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        net = named(Body())
        rule(net.get_submodule(path))
        return net

    return build


def pruned(conv: nn.Module) -> None:
    conv.weight.requires_grad_(False)  # else torch cannot copy it
    prune.l1_unstructured(conv, "weight", 0.5)


class Adapted(nn.Module):
    """A frozen convolution beside one of low rank."""

    def __init__(self, base: nn.Conv2d) -> None:
        super().__init__()
        self.base, self.up = base, nn.Conv2d(2, base.out_channels, 1, bias=False)
        self.down = nn.Conv2d(base.in_channels, 2, 3, 2, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x)) * 0.5


def adapted() -> nn.Module:
    net = named(Body())
    net.body.c[0] = Adapted(net.body.c[0])
    return net


# ------------------------------------------------------------------------------------- state and
# shapes in forward


class Cached(nn.Module):
    """Adds positions that it keeps by size, and remembers the last size."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.known, self.size = Body(), {}, None

    def positions(self, y: Tensor) -> Tensor:
        key = tuple(y.shape[-2:])
        if key not in self.known:
            self.known[key] = torch.arange(key[0] * key[1]).reshape(1, 1, *key).to(y) / 10
        return self.known[key]

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        self.size = y.shape[-2:]
        return y + self.positions(y) * self.size[0]


def coordinates(y: Tensor) -> Tensor:
    rows, columns = (torch.linspace(-1, 1, n) for n in y.shape[-2:])
    grid = torch.stack(torch.meshgrid(rows, columns, indexing="ij")).expand(y.shape[0], -1, -1, -1)
    return torch.cat([y, grid], 1)


class Written(nn.Module):
    """Convolutions that are written in the forward code: depthwise by the shape, and with standardised weights."""

    def __init__(self) -> None:
        super().__init__()
        self.body = Body()
        self.blur, self.weight = (
            nn.Parameter(torch.rand(C, 1, 3, 3)),
            nn.Parameter(torch.randn(C, C, 3, 3)),
        )

    def forward(self, x: Tensor) -> Tensor:
        y = F.conv2d(
            self.body(x),
            self.blur,
            padding=1,
            groups=C if x.shape[1] == C else self.body(x).shape[1],
        )
        return F.conv2d(y, (self.weight - self.weight.mean()) / self.weight.std(), padding=1)


class PatchTokens(nn.Module):
    """Reshapes its tokens by `patch_size`, as vision transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.patch_size, self.patches = 4, nn.Conv2d(3, C, 3, 4, 1)
        self.mix, self.head = nn.Linear(C, C), nn.Linear(C, 5)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        tokens = self.mix(self.patches(x).flatten(2).transpose(1, 2))
        h, w = (n // self.patch_size for n in x.shape[-2:])
        return {
            "map": tokens.transpose(1, 2).reshape(len(x), -1, h, w),
            "logits": self.head(tokens.mean(1)),
        }


class Twice(nn.Module):
    """One block at two reductions."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.shared = Body(), nn.Sequential(nn.Conv2d(C, C, 3, 1, 1), nn.BatchNorm2d(C))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a = self.shared(self.body.a(x))
        return a, self.shared(self.body.c(self.body.b(a)))


def flipped(net: nn.Module, x: Tensor) -> Tensor:
    """The mean over an image and its mirror image, which run as one batch."""
    y = net.body(torch.cat([x, x.flip(3)]))
    return (y[: x.shape[0]] + y[x.shape[0] :].flip(3)) / 2


def flipping() -> nn.Module:
    net = Tailed(lambda *_: None)
    net.forward = partial(flipped, net)
    return net


# -------------------------------------------------------------------------------------------------------
# answers

Pair = namedtuple("Pair", "fine coarse")


@dataclass
class Answer:
    map: Tensor
    logits: Tensor


def sequence(y: Tensor) -> Tensor:
    return y.flatten(2).permute(2, 0, 1)  # (L, N, C)


def attention() -> dict[str, Any]:
    return {"attend": nn.MultiheadAttention(C, 2)}


def attended(net: nn.Module, tokens: Tensor) -> Tensor:
    return net.attend(tokens, tokens, tokens)[0]


BOTH, NOT_DILATED, ANY = (
    ("module", "graph"),
    {"must_refuse": ("dilate",)},
    ("module", "graph", "dilate"),
)
AS_GRAPH = {"must_refuse": ("graph", "dilate")}  # what a graph cannot build

UNUSUAL: dict[str, Unusual] = {
    "feature extractor": Unusual(extractor, RESNET),
    "feature extractor inside": Unusual(lambda: Inside(extractor()), below("inner")),
    "traced by torch.fx": Unusual(lambda: torch.fx.symbolic_trace(resnet().eval()), RESNET),
    "features_only": Unusual(features_only, RESNET),
    "features_only hook": Unusual(lambda: features_only(feature_cls="hook"), below("body")),
    "features_only fx": Unusual(lambda: features_only(feature_cls="fx"), below("graph_module")),
    "features_only dict": Unusual(lambda: features_only(feature_cls="dict"), RESNET),
    "features_only list": Unusual(
        lambda: features_only(feature_cls="list", out_indices=(1, 3)), RESNET[:1]
    ),
    **{
        f"hooks that collect: {kind}": Unusual(partial(Collector, kind))
        for kind in ("method", "closure", "partial")
    },
    "hook on a leaf": hooked("body.b.1"),
    "hook on the strided leaf": hooked("body.c.0"),
    "hook on a block": hooked("body.b"),
    "hook on the model": dataclasses.replace(hooked(""), must_refuse=("dilate",)),
    "pre-hook on a leaf": hooked("body.b.0", "before"),
    "pre-hook on a block": hooked("body.c", "before"),
    "pre-hook on the model": hooked("", "before"),
    "CRNN": tails(
        lambda net, x, maps: net.fc(net.lstm(maps[-1].mean(2).permute(2, 0, 1))[0]),
        lambda: {"lstm": nn.LSTM(C, 6), "fc": nn.Linear(6, 5)},
    ),
    "LSTM that takes images for time": tails(
        lambda net, x, maps: net.lstm(maps[-1].flatten(2).transpose(1, 2))[0],
        lambda: {"lstm": nn.LSTM(C, 6)},
        **NOT_DILATED,
    ),
    "tokens (L, N, C)": tail(sequence),
    "tokens (N, L, C)": tail(lambda y: y.flatten(2).transpose(1, 2)),
    "tokens (N * L, C)": tail(
        lambda y: y.permute(0, 2, 3, 1).reshape(-1, C), may_refuse=("dilate",)
    ),
    "map (H, W, N, C)": tail(lambda y: y.permute(2, 3, 0, 1), may_refuse=("dilate",)),
    "map (C, N, H, W)": tail(lambda y: y.transpose(0, 1), may_refuse=("dilate",)),
    "map (N, H, W, C)": tail(lambda y: y.permute(0, 2, 3, 1)),
    "rows and columns": tail(lambda y: [y.mean(2), y.amax(3), y.flatten(2)]),
    "similarity (N, 1, L, L)": tail(
        lambda y: (y.flatten(2).transpose(1, 2) @ y.flatten(2)).unsqueeze(1), may_refuse=("dilate",)
    ),
    "a list of one map an image": tail(lambda y: list(y.unbind(0)), may_refuse=("graph", "dilate")),
    "sequence-first attention": tails(
        lambda net, x, maps: attended(net, sequence(maps[-1])).mean(0), attention
    ),
    "attention over the images": tails(
        lambda net, x, maps: attended(net, maps[-1].flatten(2).transpose(1, 2)),
        attention,
        **NOT_DILATED,
    ),
    "mean over the images": tail(lambda y: y - y.mean(0, keepdim=True), **NOT_DILATED),
    "centred on the first image": tail(lambda y: y - y[:1], **NOT_DILATED),
    "normalised by its batch": tail(
        lambda y: F.batch_norm(y, None, None, training=True), **NOT_DILATED
    ),
    "neighbours in the batch": tail(lambda y: torch.cat([y, y.roll(1, 0)], 1), **NOT_DILATED),
    "clips in the batch": tail(lambda y: y.reshape(-1, 2, *y.shape[1:]).mean(1), may_refuse=ANY),
    "mirror images in the batch": Unusual(flipping, may_refuse=ANY),
    "dict": tails(lambda net, x, maps: dict(enumerate(maps))),
    "tuple with the image": tails(lambda net, x, maps: (x, *maps)),
    "the same map twice": tails(lambda net, x, maps: [maps[2], maps[2], (maps[1],)]),
    "nested": tails(
        lambda net, x, maps: OrderedDict(
            p=[maps[0], {"q": maps[2]}], r=(maps[1].mean((2, 3)), None)
        )
    ),
    "named tuple": tails(
        lambda net, x, maps: Pair(maps[1], maps[2]), may_refuse=("graph", "dilate")
    ),
    "dataclass": tail(lambda y: Answer(y, y.mean((2, 3))), **AS_GRAPH),
    "sizes in the answer": tail(lambda y: {"map": y, "size": tuple(y.shape[-2:])}, loose=True),
    "no tensor in the answer": tail(
        lambda y: {}, must_refuse=("graph", "dilate"), may_refuse=("module",)
    ),
    "upsampled to the image": tails(
        lambda net, x, maps: F.interpolate(maps[2], x.shape[-2:], mode="bilinear")
    ),
    "use_hooks": Unusual(Switched),
    "__deepcopy__": Unusual(CopiesItself),
    "forward replaced by a method": Unusual(partial(patched, False)),
    "forward replaced by a closure": Unusual(partial(patched, True), may_refuse=ANY),
    "inside inside inside": Unusual(
        lambda: named(named(named(Body()))), (("body.body.body.a.0",), ("body.body.body.c.0",))
    ),
    "weight_norm": Unusual(reparametrized(parametrizations.weight_norm), may_refuse=ANY),
    "weight_norm before the stride": Unusual(
        reparametrized(parametrizations.weight_norm, "body.b.0")
    ),
    "old weight_norm": Unusual(reparametrized(weight_norm), may_refuse=ANY),
    "pruned": Unusual(reparametrized(pruned)),
    "low rank beside": Unusual(adapted, (("body.a.0",), ("body.c.0.base", "body.c.0.down"))),
    "Identity that is given a dict": tails(
        lambda net, x, maps: net.neck({"b": maps[1], "c": maps[2]}), lambda: {"neck": nn.Identity()}
    ),
    "one block twice": Unusual(Twice),
    "cached by size": Unusual(Cached, may_refuse=ANY),
    "coordinates": tail(coordinates, may_refuse=("dilate",)),
    "groups=x.shape[1]": Unusual(Written),
    "tokens by patch_size": Unusual(
        PatchTokens, (("patches",),), request={"stride": 2}, may_refuse=ANY
    ),
}
