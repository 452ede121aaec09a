"""Compute as the paper's tables count it, and parameters.

The rule, found by rebuilding the paper's networks: one multiply-accumulate per weight and output of
a convolution, one more per output for a bias, 2 per input of a batch norm, 1 per input of a ReLU,
ReLU6 or max-pool that is a *module*. Functional ReLUs, additions, L2 norms and everything else
count nothing. The paper calls the result GFLOPS.
"""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

PER_INPUT_MODULES = (nn.ReLU, nn.ReLU6, nn.MaxPool2d)


def parameters(module: nn.Module) -> int:
    """Return how many values are learned; those used twice count once."""
    return sum(p.numel() for p in module.parameters())


def compute(module: nn.Module, size: int) -> int:
    """Return what a forward pass in eval mode on one image (3, size, size) counts.

    Shapes alone are computed. Two paths of a dual-path network share weights, not work.
    """
    weightless, calls = copy.deepcopy(module).to("meta").eval(), _Calls()

    def count_inputs(part: nn.Module, inputs: Any) -> None:
        calls.total += inputs[0].numel()

    for part in weightless.modules():
        if type(part) in PER_INPUT_MODULES:
            part.register_forward_pre_hook(count_inputs)
    with torch.inference_mode(), calls:
        weightless(torch.empty(1, 3, size, size, device="meta"))
    return calls.total


class _Calls(TorchFunctionMode):
    """Adds up convolutions and batch norms, whether a module or a rewritten graph calls them."""

    total = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        result = func(*args, **given)
        if func is torch.conv2d:
            bias = args[2] if len(args) > 2 else given.get("bias")
            self.total += result.numel() * (args[1][0].numel() + (bias is not None))
        elif func is F.batch_norm or func is torch.batch_norm:  # a mode does not see itself
            self.total += 2 * args[0].numel()
        return result
