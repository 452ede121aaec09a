"""Estimate new running statistics of norms in an operated network, from unlabelled images."""

import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import update_bn

from stridesurgery.errors import ModelError, RequestError


def recalibrate(
    model: nn.Module, batches: Iterable[Any], *, limit: int | None = 100, seed: int = 0
) -> int:
    """Estimate the running statistics of the batch norms again, in place.

    The work is done by `torch.optim.swa_utils.update_bn`. A network without a stride sees other
    statistics than it was trained on.

    Everything else stays as it was: weights, other buffers, modes, momenta, and the random states
    of torch and Python. The statistics of norms that take no part stay too. These are norms that
    the forward pass does not reach, and norms that a module keeps in evaluation mode by its own
    `train`. If anything raises, nothing has changed.

    Args:
        model: an operated network, or any other. A network of `dual_path` has one set of statistics
            for both paths. Both paths contribute to it, in the order in which they run.
        batches: image batches (N, C, H, W), prepared as for inference, or tuples that begin with
            one, as a DataLoader gives. Each batch has equal weight.
        limit: largest number of batches to take; None: all.
        seed: seed of the random parts of the network in train mode (dropout).

    Returns:
        The number of batches taken.

    Raises:
        ModelError: no batch norm with running statistics takes part.
        RequestError: there are no batches, the network does not accept the images, or the
            statistics are not finite.

    Example:
        >>> import timm, torch, stridesurgery as ss
        >>> fine = ss.eliminate(timm.create_model("resnet18").eval(), "S1L0", input_size=64)
        >>> ss.recalibrate(fine, [torch.rand(4, 3, 64, 64) for _ in range(2)])
        2
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
    if not norms:
        raise ModelError(
            f"{type(model).__name__} has no batch norm with running statistics (they may be folded "
            "into the convolutions, or it uses other norms): there is nothing to recalibrate"
        )
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
        raise RequestError(
            f"limit is how many batches to take at most, or None for all; got {limit!r}"
        )
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise RequestError(f"seed is an int, got {seed!r}")
    device = next(norms[0].buffers()).device
    if device.type == "meta":
        raise ModelError(
            f"{type(model).__name__} has no values (its tensors are on the meta device)"
        )
    taken = _Taken(batches, limit)
    with _kept(model, norms), _own_random_numbers(seed):
        try:
            update_bn(taken, model, device)
        except (RuntimeError, ValueError, TypeError) as problem:
            if isinstance(problem, (RequestError, ModelError)):
                raise
            raise RequestError(
                f"the network does not run on batch {taken.count - 1}: {problem}"
            ) from problem
        if taken.count == 0:
            raise RequestError("batches is empty: there are no images to take statistics from")
    return taken.count


class _Taken:
    """Iterate over the batches up to the limit, and count those taken."""

    def __init__(self, batches: Iterable[Any], limit: int | None) -> None:
        if not isinstance(batches, Iterable) or isinstance(batches, (str, bytes, Tensor)):
            raise RequestError(
                f"batches is an iterable of image batches, got {type(batches).__name__}"
            )
        self.batches, self.limit, self.count = batches, limit, 0

    def __iter__(self) -> Iterator[Any]:
        for batch in islice(self.batches, self.limit):
            image = batch[0] if isinstance(batch, (list, tuple)) and batch else batch
            if not isinstance(image, Tensor) or image.dim() != 4 or not len(image):
                raise RequestError(
                    f"batch {self.count} is no image batch (N, C, H, W) and no tuple that begins "
                    "with one: "
                    + (
                        f"a tensor {tuple(image.shape)}"
                        if isinstance(image, Tensor)
                        else type(image).__name__
                    )
                )
            self.count += 1
            yield batch


@contextmanager
def _kept(model: nn.Module, norms: list[_BatchNorm]) -> Iterator[None]:
    """Restore everything but the statistics of norms that take part.

    These are restored too if the block raises.
    """
    modes = {module: module.training for module in model.modules()}
    buffers = {buffer: buffer.detach().clone() for buffer in model.buffers()}
    momenta = {m: m.momentum for m in model.modules() if isinstance(m, _BatchNorm)}
    new: set[Tensor] = set()
    try:
        yield
        fresh = [norm for norm in norms if _took_part(norm)]
        _check(model, fresh)
        new = {b for norm in fresh for b in norm.buffers(recurse=False)}
    finally:
        with torch.no_grad():
            for buffer, before in buffers.items():
                if buffer not in new:
                    buffer.copy_(before)
        # outer modules first: a rewritten graph selects the graph of its mode
        for module, mode in modes.items():
            module.train(mode)
            module.training = mode  # also if train() is overridden to keep it
        for norm, momentum in momenta.items():
            norm.momentum = momentum


def _took_part(norm: _BatchNorm) -> bool:
    return norm.num_batches_tracked is not None and bool(norm.num_batches_tracked > 0)


def _check(model: nn.Module, norms: list[_BatchNorm]) -> None:
    if not norms:
        raise ModelError(
            f"no batch norm of {type(model).__name__} takes part: all are frozen or out of reach"
        )
    for norm in norms:
        if not all(bool(torch.isfinite(s).all()) for s in norm.buffers(recurse=False)):
            raise RequestError(
                "the statistics are no numbers: an image holds nan or inf, or a map overflows"
            )


@contextmanager
def _own_random_numbers(seed: int) -> Iterator[None]:
    """Seed the random numbers of this block, and restore the random states after it."""
    state = random.getstate()
    with torch.random.fork_rng(list(range(torch.cuda.device_count()))):
        torch.manual_seed(seed)
        random.seed(seed)
        try:
            yield
        finally:
            random.setstate(state)
