"""Backbones without their classifiers, operated, as modules that give the maps an SSD reads."""

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import timm
import torchvision
from torch import nn

import stridesurgery as ss
from examples.ssd.configurations import PELEENET, SHUFFLENET, VGG, Configuration
from examples.ssd.errors import RequestError
from examples.ssd.pelee import peleenet
from examples.ssd.shufflenet import ShuffleNetV2

# Of torchvision's models: GoogLeNet brings two more classifiers.
OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "googlenet": {"aux_logits": False, "init_weights": False}
}


def create(name: str) -> nn.Module:
    """The backbone of that name, with random weights and without its classifier.

    Raises:
        RequestError: neither timm nor torchvision knows it.
    """
    if name == VGG:
        return vgg16_reduced()
    if name == PELEENET:
        return peleenet()
    if name == SHUFFLENET:
        return ShuffleNetV2()
    if timm.is_model(name):
        return timm_backbone(name)
    if name in torchvision.models.list_models(module=torchvision.models):
        return without_classifier(
            torchvision.models.get_model(name, weights=None, **OPTIONS.get(name, {}))
        )
    raise RequestError(
        f"neither timm nor torchvision knows a backbone {name!r}; `timm.list_models('*resnet*')` searches names."
    )


def timm_backbone(name: str) -> nn.Module:
    try:
        # Swin takes one size of image only unless it is told otherwise; other models do not know the word.
        return timm.create_model(name, num_classes=0, strict_img_size=False)
    except TypeError:
        net = timm.create_model(name, num_classes=0)
    if isinstance(net, timm.models.vgg.VGG):
        net.pre_logits = nn.Identity()  # the fully connected layers, most of its parameters
    return net


def vgg16_reduced() -> nn.Module:
    """VGG-16 as SSD uses it: fc6 a dilated 3x3 convolution, fc7 pointwise; `features` keeps torchvision's keys."""
    features = torchvision.models.vgg16(weights=None).features
    pool3, last = 16, 30
    features[pool3].ceil_mode = True  # 75 cells become 38
    features[last] = nn.MaxPool2d(3, stride=1, padding=1)
    parts = OrderedDict(
        fc6=nn.Conv2d(512, 1024, 3, padding=6, dilation=6),
        relu6=nn.ReLU(inplace=True),
        fc7=nn.Conv2d(1024, 1024, 1),
        relu7=nn.ReLU(inplace=True),
    )
    return nn.Sequential(OrderedDict(features=features, **parts))


def without_classifier(net: nn.Module) -> nn.Module:
    """torchvision's classifiers end in a module of one of three names; its parameters must not count."""
    for name in ("fc", "classifier", "heads", "head"):
        if hasattr(net, name):
            setattr(net, name, nn.Identity())
            return net
    raise RequestError(
        f"{type(net).__name__} ends in no fc, classifier or head that could be left out."
    )


def maps_of(backbone: nn.Module, row: Configuration) -> nn.Module:
    """The operated backbone: images (N, 3, H, W) to an ordered dict of maps, as `ss.features` names them."""
    size = (row.size, row.size)
    if row.large:
        return ss.dual_path(
            backbone,
            row.surgery,
            taps={"small": row.small, "large": row.large},
            combine=row.combine,
            input_size=size,
        )
    if row.surgery is None:
        return ss.features(backbone, row.small, input_size=size)
    # A removed pool is a layer less: taps are numbered in the original, and found again by their modules.
    modules = info(ss.features(backbone, row.small, input_size=size)).module_name()
    operated = ss.eliminate(backbone, row.surgery, restore_at=row.restore_at, input_size=size)
    return ss.features(operated, modules, input_size=size)


def info(features: nn.Module) -> Any:
    """What the library knows of the maps that a module of `maps_of` gives: channels, module names, geometry."""
    return features.feature_info
