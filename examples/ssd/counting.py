"""Compute as the paper's tables count it, and parameters.

The rule, found by rebuilding the paper's networks: one multiply-accumulate per weight and output of a convolution,
one more per output for a bias, 2 per input of a batch norm, 1 per input of a ReLU, ReLU6 or max-pool that is a
*module*. Functional ReLUs, additions, L2 norms and everything else count nothing. The paper calls the result GFLOPS.
"""

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

PER_INPUT_MODULES = (nn.ReLU, nn.ReLU6, nn.MaxPool2d)


def parameters(module: nn.Module) -> int:
    """Learned values; those used twice count once."""
    return sum(p.numel() for p in module.parameters())


def compute(module: nn.Module, size: int | tuple[int, int]) -> int:
    """What a forward pass in eval mode on one image (3, size) counts. Shapes alone are computed.

    A module's own branches taken twice count twice: the two paths of a dual-path network share weights, not work.
    """
    rows, columns = (size, size) if isinstance(size, int) else size
    skeleton = copy.deepcopy(module).to("meta").eval()
    with (
        torch.inference_mode(),
        _Calls() as calls,
        _module_inputs(skeleton, PER_INPUT_MODULES) as inputs,
    ):
        skeleton(torch.empty(1, 3, rows, columns, device="meta"))
    return calls.total + sum(inputs)


def convolution(output: Tensor, weight: Tensor, bias: Tensor | None) -> int:
    """output: (N, C, H, W); weight: (C, inputs of a group, kernel rows, kernel columns)."""
    return output.numel() * (weight[0].numel() + (bias is not None))


def batch_norm(input: Tensor) -> int:
    return 2 * input.numel()


class _Calls(TorchFunctionMode):
    """Adds up convolutions and batch norms, whether a module or a rewritten graph calls them."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_function__(
        self,
        func: Callable,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = dict(kwargs or {})
        result = func(*args, **given)
        if func is torch.conv2d:
            bias = args[2] if len(args) > 2 else given.get("bias")
            self.total += convolution(result, args[1], bias)
        elif (
            func is F.batch_norm or func is torch.batch_norm
        ):  # the outer one only: a mode does not see itself
            self.total += batch_norm(args[0])
        return result


@contextmanager
def _module_inputs(root: nn.Module, kinds: tuple[type[nn.Module], ...]) -> Iterator[list[int]]:
    """The number of input values of every call of a module of those exact kinds."""
    counts: list[int] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        counts.append(inputs[0].numel())

    handles = [m.register_forward_pre_hook(note) for m in root.modules() if type(m) in kinds]
    try:
        yield counts
    finally:
        for handle in handles:
            handle.remove()


def two_decimals(value: float) -> float:
    """As the paper's counter prints."""
    return round(value, 2)


def to_one_decimal(value: float) -> float:
    """Half up, as a person rounds two printed decimals."""
    return math.floor(value * 10 + 0.5 + 1e-9) / 10
