"""The backbone inside a detector: operated, and asked for its maps."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call

import stridesurgery as ss
from examples.detectors.anchors import Level, Pair


def operated(backbone: nn.Module, surgery: str | ss.Surgery, size: Pair) -> nn.Module:
    """A backbone after a surgery, checked for inputs of (h, w) pixels.

    Raises:
        ValueError: dilation, after which the backbone still returns its coarse maps.
        ss.SurgeryError: the surgery is not possible.
    """
    wanted = ss.Surgery.parse(surgery) if isinstance(surgery, str) else surgery
    if wanted.dilate:
        raise ValueError(
            "a dilated backbone returns the maps it always did; take its finer ones with ss.features, see pyramid()"
        )
    return ss.eliminate(backbone, wanted, input_size=size)


def map_sizes(backbone: nn.Module, size: Pair) -> dict[str, Pair]:
    """The (h, w) cells of the maps that a backbone returns for an input of (h, w) pixels, without computing them."""
    state = {**dict(backbone.named_parameters()), **dict(backbone.named_buffers())}
    weightless = {name: torch.empty_like(value, device="meta") for name, value in state.items()}
    # Two images: batch norm does not train on a single cell.
    maps: Mapping[str, Tensor] = functional_call(
        backbone, weightless, torch.empty((2, 3, *size), device="meta")
    )
    return {name: (value.shape[2], value.shape[3]) for name, value in maps.items()}


def levels_at(backbone: nn.Module, tap_of: Callable[[str], str], size: Pair) -> tuple[Level, ...]:
    """The maps that a backbone returns for inputs of (h, w) pixels, in order.

    tap_of: from a map's name to the module that tells where its cells look, as `ss.features` takes it.
    """
    grids = map_sizes(backbone, size)
    looks = read_info(ss.features(backbone, list(map(tap_of, grids)), input_size=size)).geometry()
    return tuple(
        Level(name, grid, look) for (name, grid), look in zip(grids.items(), looks, strict=True)
    )


def read_info(maps: nn.Module) -> ss.FeatureInfo:
    """What `ss.features` says about the maps that its result returns."""
    info = maps.feature_info
    assert isinstance(info, ss.FeatureInfo)
    return info
