"""Pretrained weights for a backbone: downloaded, or from a file in the keys of timm or torchvision."""

from collections.abc import Mapping

import timm
import torch
import torchvision
from torch import Tensor, nn

from examples.ssd import backbones
from examples.ssd.configurations import VGG
from examples.ssd.programs import DetectionError, sentence

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
TENSORFLOW = {"mean": (128 / 255,) * 3, "std": (128 / 255,) * 3}
TENSORFLOW_CLASSES = 1001  # ImageNet's and a background

Pixels = dict[str, list[float]]  # mean and std that weights expect, as torchvision's SSD takes them


def load_backbone(name: str, weights: str) -> tuple[nn.Module, Pixels]:
    """Return a backbone and its pixels. weights: none (random), pretrained (downloaded), or a file."""
    net = backbones.create(name)
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
        raise DetectionError(
            f"--weights {weights} of {name} cannot be read ({sentence(problem)}); give a file of "
            "tensors by name, or train from nothing with --weights none."
        ) from problem


def fill(net: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load what the network has; a file may hold more, such as the classifier, but not less."""
    for key, value in net.state_dict().items():
        found = state.get(key, value if key.endswith("num_batches_tracked") else None)
        if found is None or found.shape != value.shape or not found.isfinite().all():
            raise DetectionError(f"{source}: no {key} of the right shape and of finite values.")
    net.load_state_dict(state, strict=False)


def vgg_state(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Return torchvision's VGG-16 as SSD uses it: every third row and column, every fourth output."""
    if "classifier.0.weight" not in state:  # a file that has fc6 already
        return state
    fc6 = state["classifier.0.weight"].reshape(4096, 512, 7, 7)[::4, :, ::3, ::3]
    fc7 = state["classifier.3.weight"][::4, ::4, None, None]
    biases = {f"fc{6 + i}.bias": state[f"classifier.{3 * i}.bias"][::4] for i in (0, 1)}
    return {**state, "fc6.weight": fc6, "fc7.weight": fc7, **biases}


@torch.no_grad()
def wake_norms(net: nn.Module, images: Tensor) -> int:
    """Give batch norms that only add a bias the statistics of what they see; return how many.

    Converted weights often have their norms folded into the convolutions, all but the bias; in train
    mode such a norm would shift and scale a finished network. Afterwards it computes what it did
    before, in either mode. images: (N, 3, H, W), as the network takes them.
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
