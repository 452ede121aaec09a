"""Backbones without their classifiers: by name, with pretrained weights, operated."""

import argparse
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import timm
import torch
import torchvision
from torch import Tensor, nn

import stridesurgery as ss
from examples.ssd.configurations import PELEENET, VGG, Configuration, find
from examples.ssd.neck import peleenet
from examples.ssd.programs import DetectionError, positive, sentence

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
TENSORFLOW = {"mean": (128 / 255,) * 3, "std": (128 / 255,) * 3}
TENSORFLOW_CLASSES = 1001  # ImageNet's and a background

Taps = Sequence[int | str]  # layers or modules, largest map first
Pixels = dict[str, list[float]]  # mean and std that weights expect, as torchvision's SSD takes them


def create(name: str) -> nn.Module:
    """Return the backbone of that name, with random weights and without its classifier."""
    if name in (VGG, PELEENET):
        return vgg16_reduced() if name == VGG else peleenet()
    if timm.is_model(name):
        try:
            # Swin takes one size of image only unless it is told otherwise; others lack the word.
            net = timm.create_model(name, num_classes=0, strict_img_size=False)
        except TypeError:
            net = timm.create_model(name, num_classes=0)
        if isinstance(net, timm.models.vgg.VGG):
            net.pre_logits = nn.Identity()  # the fully connected layers, most of its parameters
        return net
    if name not in torchvision.models.list_models(module=torchvision.models):
        told = f"neither timm nor torchvision knows a backbone {name!r}"
        raise DetectionError(f"{told}; timm.list_models('*resnet*') searches names.")
    # GoogLeNet brings two more classifiers.
    more = {"aux_logits": False, "init_weights": False} if name == "googlenet" else {}
    net = torchvision.models.get_model(name, weights=None, **more)
    for last in ("fc", "classifier", "heads", "head"):
        if hasattr(net, last):  # its parameters must not count
            setattr(net, last, nn.Identity())
    return net


def vgg16_reduced() -> nn.Sequential:
    """Return VGG-16 as SSD uses it: the fully connected layers as two convolutions."""
    features = torchvision.models.vgg16(weights=None).features
    pools = [i for i, layer in enumerate(features) if isinstance(layer, nn.MaxPool2d)]
    features[pools[2]].ceil_mode = True  # 75 cells become 38
    features[pools[4]] = nn.MaxPool2d(3, stride=1, padding=1)
    fc6, fc7 = nn.Conv2d(512, 1024, 3, padding=6, dilation=6), nn.Conv2d(1024, 1024, 1)
    parts = OrderedDict(features=features, fc6=fc6, relu6=nn.ReLU(True), fc7=fc7)
    return nn.Sequential(OrderedDict(**parts, relu7=nn.ReLU(True)))


def maps_of(backbone: nn.Module, row: Configuration) -> Any:
    """Return the operated backbone: images (N, 3, H, W) to maps, as `ss.features` does."""
    size: dict[str, Any] = {"input_size": (row.size, row.size)}
    if row.large:
        taps = {"small": row.small, "large": row.large}
        return ss.dual_path(backbone, row.surgery, taps=taps, combine=row.combine, **size)
    original: Any = ss.features(backbone, row.small, **size)
    if row.surgery is None:
        return original
    operated = ss.eliminate(backbone, row.surgery, restore_at=row.restore_at, **size)
    # A removed pool is a layer less: taps are numbered in the original, and found by their modules.
    return ss.features(operated, original.feature_info.module_name(), **size)


# ---- pretrained weights


def load_backbone(name: str, weights: str) -> tuple[nn.Module, Pixels]:
    """Return a backbone and its pixels. weights: none, pretrained (downloaded), or a file."""
    net = create(name)
    pixels = getattr(net, "pretrained_cfg", IMAGENET)
    if weights != "none":
        state = read(name, weights)
        fill(net, vgg_state(state) if name == VGG else state, f"{name}, {weights}")
        if len(state.get("classifier.bias", ())) == TENSORFLOW_CLASSES:
            pixels = TENSORFLOW
    return net, {f"image_{key}": list(pixels[key]) for key in IMAGENET}


def read(name: str, weights: str) -> Mapping[str, Tensor]:
    """Return the tensors of a file, or those that are to be had for a backbone of that name."""
    try:
        if weights != "pretrained":
            return timm.models.load_state_dict(weights, weights_only=True)
        if timm.is_model(name):
            return timm.create_model(name, pretrained=True).state_dict()
        name = "vgg16" if name == VGG else name
        return torchvision.models.get_model(name, weights="DEFAULT").state_dict()
    except Exception as problem:  # no network, a damaged file, a full disk: each raises its own
        told = f"--weights {weights} of {name} cannot be read ({sentence(problem)})"
        raise DetectionError(f"{told}; give a file of tensors by name, or none.") from problem


def fill(net: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load what the network has; a file may hold more, such as the classifier, but not less."""
    for key, value in net.state_dict().items():
        found = state.get(key, value if key.endswith("num_batches_tracked") else None)
        if found is None or found.shape != value.shape or not found.isfinite().all():
            raise DetectionError(f"{source}: no {key} of the right shape and of finite values.")
    net.load_state_dict(state, strict=False)


def vgg_state(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Return VGG-16's weights as SSD uses them: every third row, every fourth output."""
    if "classifier.0.weight" not in state:  # a file that has fc6 already
        return state
    fc6 = state["classifier.0.weight"].reshape(4096, 512, 7, 7)[::4, :, ::3, ::3]
    fc7 = state["classifier.3.weight"][::4, ::4, None, None]
    biases = {f"fc{6 + i}.bias": state[f"classifier.{3 * i}.bias"][::4] for i in (0, 1)}
    return {**state, "fc6.weight": fc6, "fc7.weight": fc7, **biases}


@torch.no_grad()
def wake_norms(net: nn.Module, images: Tensor) -> int:
    """Give batch norms that only add a bias the statistics of what they see; return how many.

    Converted weights often have their norms folded into the convolutions, all but the bias; in
    train mode such a norm would shift and scale a finished network. Afterwards it computes what it
    did before, in either mode. images: (N, 3, H, W), as the network takes them.
    """

    def wake(norm: nn.BatchNorm2d, inputs: tuple[Tensor, ...]) -> None:
        # In eval mode what comes out stays the same, so that the norms behind see what they would.
        variance, mean = torch.var_mean(inputs[0], dim=(0, 2, 3), unbiased=False)
        variance = variance.clamp(min=1e-6)
        state = {"weight": (variance + norm.eps).sqrt(), "bias": norm.bias + mean}
        statistics = {"running_mean": mean, "running_var": variance}
        norm.load_state_dict({**norm.state_dict(), **state, **statistics})

    folded = []
    for norm in net.modules():
        if isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None:
            state = norm.state_dict()  # one that takes nothing away and scales by 1
            scale = state["weight"] ** 2 / state["running_var"]
            if not state["running_mean"].any() and (scale - 1).abs().max() < 2e-3:
                folded.append(norm.register_forward_pre_hook(wake))
    net.eval()(images)
    for handle in folded:
        handle.remove()
    return len(folded)


# ---- a detector by name


def configuration_for(
    backbone: str, surgery: str | None, size: int, taps: Taps | None = None, *, dual: bool = False
) -> Configuration:
    """Return the configuration of a backbone under a surgery; its boxes follow the geometry.

    taps: maps for the first predictors; by default the untouched backbone's last two reductions.
    dual: the split network: predictors on the surgery's maps, extras on the untouched path.
    """
    if dual and surgery is None:
        raise DetectionError("two paths need a stride to remove: give --surgery, such as S1L0.")
    if taps is None:
        every: Any = ss.features(create(backbone), input_size=size)
        taps = every.feature_info.module_name()[-2:]
        if len(set(every.feature_info.reduction()[-2:])) < 2:
            told = f"{backbone} has tokens, or maps of one size only"
            raise DetectionError(f"{told}; take one that reduces in steps, or name --taps.")
    name = "-".join(["SSD", backbone, *filter(None, (surgery, "DualPath-S" * dual))])
    row = Configuration(name, backbone, size, surgery, small=tuple(taps), sizes=None, steps=None)
    boxes = (6,) * (len(taps) + 3) + (4,)
    return replace(row, boxes=boxes, large=(taps[-1],) if dual else ())


def add_detector(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that name a detector."""
    title = "the detector: a row of the paper, or any backbone"
    add = parser.add_argument_group(title).add_argument
    add("--config", metavar="ROW", help="a row that python -m examples.ssd.tables prints")
    add("--backbone", help="instead: a name that timm or torchvision knows")
    add("--surgery", help="of --backbone, by the paper's name: S1L0")
    add("--taps", nargs="+", help="of --backbone: layers or modules, largest map first")
    add("--dual", action="store_true", help="of --backbone: split paths")
    add("--size", type=positive, help="of --backbone: side of the input in pixels (300)")
    add("--true-anchors", action="store_true", help="boxes stand where cells really look")


def configuration_from(arguments: argparse.Namespace) -> Configuration:
    """Return the configuration that the arguments of `add_detector` name."""
    own = [f"--{k}" for k in ("surgery", "taps", "size", "dual") if getattr(arguments, k)]
    if (arguments.backbone is None and own) or (arguments.backbone and arguments.config):
        raise DetectionError(f"{', '.join(own) or '--backbone'} and a --config name two detectors.")
    if arguments.backbone is None:
        row = find(arguments.config or "SSDMnetv1")
        return replace(row, steps=None) if arguments.true_anchors else row
    taps = arguments.taps and [int(t) if t.isdigit() else t for t in arguments.taps]
    size, dual = arguments.size or 300, arguments.dual
    return configuration_for(arguments.backbone, arguments.surgery, size, taps, dual=dual)
