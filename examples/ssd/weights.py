"""Pretrained weights for a backbone: downloaded, or from a file in the keys of timm or torchvision."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import timm
import torch
import torchvision
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from examples.ssd import backbones
from examples.ssd.configurations import VGG
from examples.ssd.programs import DetectionError, read_tensors, sentence

IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
TENSORFLOW = ([128 / 255] * 3, [128 / 255] * 3)
TENSORFLOW_CLASSES = 1001  # ImageNet's and a background


class Backbone(NamedTuple):
    """A backbone with weights, and the pixels in 0..1 that they expect."""

    net: nn.Module
    mean: list[float]
    std: list[float]


def load_backbone(name: str, weights: str) -> Backbone:
    """Return a backbone. weights: "none" (random), "pretrained" (downloaded), or a file."""
    net = backbones.create(name)
    if weights == "none":
        return Backbone(net, *IMAGENET)
    state = downloaded(name) if weights == "pretrained" else read(Path(weights))
    fill(net, vgg_state(state) if name == VGG else state, f"{name}, {weights}")
    for key, value in state.items():
        if key.endswith(("classifier.bias", "classifier.1.bias")):
            if len(value) == TENSORFLOW_CLASSES:
                return Backbone(net, *TENSORFLOW)
    if not timm.is_model(name):
        return Backbone(net, *IMAGENET)
    config = timm.get_pretrained_cfg(name)
    return Backbone(net, list(config.mean), list(config.std))


def downloaded(name: str) -> Mapping[str, Tensor]:
    try:
        if timm.is_model(name):
            return timm.create_model(name, pretrained=True).state_dict()
        name = "vgg16" if name == VGG else name
        return torchvision.models.get_model(name, weights="DEFAULT").state_dict()
    except Exception as problem:  # no network, a proxy, a full disk: each raises its own
        raise DetectionError(
            f"the pretrained weights of {name} could not be downloaded ({sentence(problem)}); "
            "give a file with --weights, or train from nothing with --weights none."
        ) from problem


def read(path: Path) -> Mapping[str, Tensor]:
    """Return the tensors of a safetensors file or of a state_dict that torch saved."""
    try:
        state = load_file(path) if path.suffix == ".safetensors" else read_tensors(path)
    except (OSError, SafetensorError) as problem:
        raise DetectionError(f"{path} cannot be read: {sentence(problem)}.") from problem
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise DetectionError(f"{path} holds no state_dict, tensors by name; save that alone.")
    return state


def fill(net: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load what the network has; a file may hold more, such as the classifier, but not less."""
    own = net.state_dict()
    for key, value in own.items():
        found = state.get(key, value if key.endswith("num_batches_tracked") else None)
        if found is None or found.shape != value.shape or not found.isfinite().all():
            raise DetectionError(f"{source}: no {key} of the right shape and of finite values.")
    net.load_state_dict({k: v for k, v in state.items() if k in own}, strict=False)


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
    woken = []

    def wake(norm: nn.BatchNorm2d, inputs: tuple[Tensor, ...]) -> None:
        # In eval mode what comes out stays the same, so that the norms behind see what they would.
        variance, mean = torch.var_mean(inputs[0], dim=(0, 2, 3), unbiased=False)
        variance = variance.clamp(min=1e-6)
        norm.bias.add_(mean)
        norm.weight.copy_((variance + norm.eps).sqrt())
        norm.load_state_dict({**norm.state_dict(), "running_mean": mean, "running_var": variance})
        woken.append(norm)

    handles, was_training = [], net.training
    for norm in net.modules():
        if isinstance(norm, nn.BatchNorm2d) and norm.running_var is not None and norm.affine:
            same = torch.allclose(norm.running_var, norm.weight**2, atol=2e-3)
            if (
                same and not torch.as_tensor(norm.running_mean).any()
            ):  # it takes nothing away and scales by 1
                handles.append(norm.register_forward_pre_hook(wake))
    net.eval()(images)
    net.train(was_training)
    for handle in handles:
        handle.remove()
    return len(woken)
