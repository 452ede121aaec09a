"""Backbones without their classifiers, operated, as modules that give the maps an SSD reads."""

import argparse
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import timm
import torchvision
from torch import nn

import stridesurgery as ss
from examples.ssd.configurations import PELEENET, VGG, Configuration, find
from examples.ssd.pelee import peleenet
from examples.ssd.programs import DetectionError, positive


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
        raise DetectionError(
            f"neither timm nor torchvision knows a backbone {name!r}; "
            "timm.list_models('*resnet*') searches names."
        )
    # GoogLeNet brings two more classifiers.
    more = {"aux_logits": False, "init_weights": False} if name == "googlenet" else {}
    net = torchvision.models.get_model(name, weights=None, **more)
    for last in ("fc", "classifier", "heads", "head"):
        if hasattr(net, last):  # its parameters must not count
            setattr(net, last, nn.Identity())
    return net


def vgg16_reduced() -> nn.Sequential:
    """Return VGG-16 as SSD uses it: the fully connected layers as a dilated convolution and a 1x1."""
    features = torchvision.models.vgg16(weights=None).features
    pools = [i for i, layer in enumerate(features) if isinstance(layer, nn.MaxPool2d)]
    features[pools[2]].ceil_mode = True  # 75 cells become 38
    features[pools[4]] = nn.MaxPool2d(3, stride=1, padding=1)
    fc6, fc7 = nn.Conv2d(512, 1024, 3, padding=6, dilation=6), nn.Conv2d(1024, 1024, 1)
    parts = OrderedDict(features=features, fc6=fc6, relu6=nn.ReLU(True), fc7=fc7)
    return nn.Sequential(OrderedDict(**parts, relu7=nn.ReLU(True)))


def maps_of(backbone: nn.Module, row: Configuration) -> nn.Module:
    """Return the operated backbone: images (N, 3, H, W) to a dict of maps, as `ss.features` does."""
    size: dict[str, Any] = {"input_size": (row.size, row.size)}
    if row.large:
        taps = {"small": row.small, "large": row.large}
        return ss.dual_path(backbone, row.surgery, taps=taps, combine=row.combine, **size)
    original = ss.features(backbone, row.small, **size)
    if row.surgery is None:
        return original
    operated = ss.eliminate(backbone, row.surgery, restore_at=row.restore_at, **size)
    # A removed pool is a layer less: taps are numbered in the original, and found by their modules.
    return ss.features(operated, info(original).module_name(), **size)


def info(features: nn.Module) -> Any:
    """Return what the library knows of the maps that a module of `maps_of` gives."""
    return features.feature_info


# ---- any backbone


def configuration_for(
    backbone: str,
    surgery: str | None,
    size: int,
    taps: Sequence[int | str] | None = None,
    *,
    dual: bool = False,
) -> Configuration:
    """Return the configuration of a backbone by name under a surgery; its boxes follow the geometry.

    taps: maps for the first predictors; by default the last two reductions of the untouched backbone.
    dual: the split network: predictors on the surgery's maps, extras on the untouched path.
    """
    if dual and surgery is None:
        raise DetectionError("two paths need a stride to remove: give --surgery, such as S1L0.")
    if taps is None:
        known = info(ss.features(create(backbone), input_size=size))
        taps = known.module_name()[-2:]
        if len(set(known.reduction()[-2:])) < 2:
            raise DetectionError(
                f"{backbone} has no two maps of different size, as a vision transformer has only "
                "tokens; take a backbone that reduces in steps, or name two or more with --taps."
            )
    return Configuration(
        "-".join(["SSD", backbone, *filter(None, (surgery, "DualPath-S" * dual))]),
        backbone=backbone,
        size=size,
        surgery=surgery,
        small=tuple(taps),
        large=(taps[-1],) if dual else (),
        boxes=(6,) * (len(taps) + 3) + (4,),
        sizes=None,
        steps=None,
    )


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


def detector(arguments: argparse.Namespace) -> Configuration:
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
