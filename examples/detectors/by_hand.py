"""The surgery that people do by hand, to compare with."""

import copy

from torch import nn


def by_hand(model: nn.Module, *paths: str) -> nn.Module:
    """Return a copy with strides patched and nothing else: the usual recipe, anchors left alone."""
    patched = copy.deepcopy(model)
    for path in paths:
        module = patched.get_submodule(path)
        if isinstance(module, nn.MaxPool2d):  # of three cells, so that the map keeps its size
            module.kernel_size, module.stride, module.padding = 3, 1, 1
        elif isinstance(module, nn.Conv2d):
            module.stride = (1, 1)
        else:
            raise ValueError(
                f"{path} is a {type(module).__name__}; patch convolutions and max pools"
            )
    return patched
