"""Pretrained weights for the backbone: downloaded, or from a file in the keys of timm or torchvision."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
import torchvision
from safetensors.torch import load_file
from torch import Tensor, nn

from examples.ssd import backbones
from examples.ssd.checkpoint import first_line, is_state
from examples.ssd.configurations import SHUFFLENET, VGG
from examples.ssd.errors import CheckpointError, RequestError
from examples.ssd.files import read_tensors
from examples.ssd.shufflenet import for_rgb

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
TENSORFLOW = ((128 / 255,) * 3, (128 / 255,) * 3)
PLAIN = ((0.0,) * 3, (1.0,) * 3)
TENSORFLOW_CLASSES = 1001  # ImageNet's and a background


@dataclass(frozen=True)
class Backbone:
    """A backbone with weights, and the pixels they expect."""

    net: nn.Module
    mean: Sequence[float]  # per channel, of pixels in 0..1
    std: Sequence[float]
    source: str  # for people


def load_backbone(name: str, weights: str) -> Backbone:
    """weights: "none" (random), "pretrained" (downloaded from timm or torchvision), or a file.

    Raises:
        RequestError: they cannot be downloaded.
        CheckpointError: the file does not fit the backbone.
    """
    net = backbones.create(name)
    if weights == "none":
        return Backbone(net, *IMAGENET, "random weights")
    if weights == "pretrained":
        mean, std = pixels(name)
        state = downloaded(name)
        source = "pretrained weights"
    else:
        path = Path(weights)
        state = read(path)
        source = path.name
        classifier = next(
            (v for k, v in state.items() if k.endswith(("classifier.bias", "classifier.1.bias"))),
            None,
        )
        tensorflow = classifier is not None and classifier.shape == (TENSORFLOW_CLASSES,)
        mean, std = TENSORFLOW if tensorflow else pixels(name)
    fill(net, CONVERSIONS.get(name, dict)(state), source)
    return Backbone(net, mean, std, source)


def pixels(name: str) -> tuple[Sequence[float], Sequence[float]]:
    if name == SHUFFLENET:
        return PLAIN
    if name != VGG and timm.is_model(name):
        config = timm.data.resolve_data_config(
            {}, model=name, pretrained_cfg=timm.get_pretrained_cfg(name).to_dict()
        )
        return config["mean"], config["std"]
    return IMAGENET


def downloaded(name: str) -> Mapping[str, Tensor]:
    try:
        if name == VGG:
            return torchvision.models.vgg16(weights="DEFAULT").state_dict()
        if timm.is_model(name):
            return timm.create_model(name, pretrained=True).state_dict()
        return torchvision.models.get_model(name, weights="DEFAULT").state_dict()
    except Exception as problem:  # no network, a proxy, a full disk, no such weights: each raises something of its own
        raise RequestError(
            f"the pretrained weights of {name} could not be downloaded ({problem}); give a file with --weights, or "
            "train from nothing with --weights none."
        ) from problem


def read(path: Path) -> Mapping[str, Tensor]:
    """The tensors of a safetensors file or a state_dict that torch saved; nothing in it is executed.

    Raises:
        CheckpointError: it is missing, damaged, or holds something else.
    """
    try:
        state = load_file(path) if path.suffix == ".safetensors" else read_tensors(path)
    except FileNotFoundError:
        raise CheckpointError(f"there is no weight file {path}.") from None
    except Exception as problem:  # damaged bytes fail wherever they lead: a dozen types of error
        raise CheckpointError(
            f"{path} holds no weights that can be read: {first_line(problem)}"
        ) from problem
    if not is_state(state):
        parts = (
            ", ".join(map(str, list(state)[:4]))
            if isinstance(state, Mapping)
            else type(state).__name__
        )
        raise CheckpointError(
            f"{path} holds no state_dict, tensors by name, but {parts}; save the state_dict alone. (A detector's "
            "checkpoint goes with --init-from.)"
        )
    return state


def fill(net: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load what the network has; a file may hold more, such as the classifier, but not less."""
    own = net.state_dict()
    lacking = [k for k, v in own.items() if k not in state or state[k].shape != v.shape]
    lacking = [k for k in lacking if not k.endswith("num_batches_tracked")]
    if lacking:
        raise CheckpointError(
            f"{source} has no {lacking[0]} of the right shape; {len(lacking)} of {len(own)} tensors fail."
        )
    taken = {k: v for k, v in state.items() if k in own}
    broken = next((k for k, v in taken.items() if not torch.isfinite(v).all()), None)
    if broken is not None:
        raise CheckpointError(f"{source}: {broken} holds values that are no numbers.")
    net.load_state_dict(taken, strict=False)


def vgg_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """torchvision's VGG-16 as SSD uses it: of fc6 every third row and column and every fourth output is kept.

    A file that already has fc6 is taken as it is.
    """
    result = {k: v for k, v in state.items() if not k.startswith("classifier.")}
    if "classifier.0.weight" in state:
        try:
            fc6 = state["classifier.0.weight"].reshape(4096, 512, 7, 7)
            result["fc6.weight"], result["fc6.bias"] = (
                fc6[::4, :, ::3, ::3],
                state["classifier.0.bias"][::4],
            )
            result["fc7.weight"] = state["classifier.3.weight"][::4, ::4, None, None]
            result["fc7.bias"] = state["classifier.3.bias"][::4]
        except (IndexError, KeyError, RuntimeError) as problem:
            raise CheckpointError(
                f"the classifier is not VGG-16's: {first_line(problem)}"
            ) from problem
    return result


CONVERSIONS: Mapping[str, Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]] = {
    VGG: vgg_state,
    SHUFFLENET: for_rgb,
}  # from how weights are published to how the network here wants them


# ---- batch norms that were folded away


def wake_norms(net: nn.Module, images: Tensor) -> int:
    """Give batch norms that only add a bias the statistics of what they see, and the scale that undoes them.

    Converted weights often have their norms folded into the convolutions, all but the bias; in train mode such a norm
    would shift and scale a finished network. Afterwards it computes what it did before, in either mode.
    images: (N, 3, H, W), as the network takes them. Returns how many were woken.
    """
    asleep = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d) and _is_folded(m)]
    was_training = net.training
    with _statistics(asleep) as seen, torch.inference_mode():
        net.eval()(images)
    net.train(was_training)
    for norm, (mean, variance) in seen.items():
        norm.load_state_dict(
            {
                **norm.state_dict(),
                "running_mean": mean,
                "running_var": variance,
                "weight": (variance + norm.eps).sqrt(),
                "bias": mean + norm.bias,
            }
        )
    return len(seen)


def _is_folded(norm: nn.BatchNorm2d) -> bool:
    """Whether it takes nothing away and scales by 1."""
    if norm.running_mean is None or norm.running_var is None or norm.weight is None:
        return False
    return bool(
        (norm.running_mean == 0).all()
        and torch.allclose(norm.running_var, norm.weight**2, atol=2e-3)
    )


@contextmanager
def _statistics(
    norms: Sequence[nn.BatchNorm2d],
) -> Iterator[dict[nn.BatchNorm2d, tuple[Tensor, Tensor]]]:
    seen: dict[nn.BatchNorm2d, tuple[Tensor, Tensor]] = {}

    def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(module, nn.BatchNorm2d)
        variance, mean = torch.var_mean(inputs[0], dim=(0, 2, 3), unbiased=False)
        seen[module] = mean, variance.clamp(min=1e-6)

    handles = [norm.register_forward_pre_hook(note) for norm in norms]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
