"""Batch norms that see the images of all processes, on devices for which torch has no SyncBatchNorm.

Every norm goes through `F.batch_norm`; inside `SharedNorms` its statistics are those of the whole batch, and so are
its gradients. What two processes learn is then what one would learn from the same images.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


class SharedNorms(TorchFunctionMode):
    """Where it is entered, norms in train mode share their statistics between processes."""

    def __torch_function__(
        self,
        func: Callable,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        return (batch_norm if func is F.batch_norm else func)(*args, **(kwargs or {}))


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """As `F.batch_norm`; input: this process's part of the batch, (N, C, ...)."""
    if not training:
        return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    wide = input.to(
        torch.promote_types(input.dtype, torch.float32)
    )  # sums of half precision would be coarse
    others = [d for d in range(input.ndim) if d != 1]
    count = _Sum.apply(wide.new_tensor(input.numel() / input.shape[1]))
    mean = _Sum.apply(wide.sum(others)) / count
    centred = wide - _along(mean, input)
    variance = _Sum.apply(centred.square().sum(others)) / count
    with torch.no_grad():
        if running_mean is not None and running_var is not None:
            running_mean.lerp_(mean, momentum)
            running_var.lerp_(variance * count / (count - 1), momentum)
    scale = (variance + eps).rsqrt() * (1 if weight is None else weight)
    shift = 0 if bias is None else _along(bias, input)
    return (centred * _along(scale, input) + shift).to(input.dtype)


def _along(channels: Tensor, x: Tensor) -> Tensor:
    """channels: (C,). Returns it with x's (N, C, ...) dimensions."""
    return channels.reshape(-1, *[1] * (x.ndim - 2))


class _Sum(torch.autograd.Function):
    """The sum over all processes; each process's loss depends on it, so its gradient is a sum as well."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return _summed(value)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return _summed(gradient)


def _summed(value: Tensor) -> Tensor:
    total = value.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total)
    return total
