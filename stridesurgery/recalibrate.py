"""New running statistics for the norms of an operated network, from unlabelled images."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import update_bn

from stridesurgery.errors import ModelError, RequestError


def recalibrate(model: nn.Module, batches: Iterable[Any], *, limit: int | None = 100, seed: int = 0) -> int:
    """Estimate the running statistics of all batch norms anew, in place, by `torch.optim.swa_utils.update_bn`.

    A network without a stride sees other statistics than it was trained on. Weights, modes, momenta and the global
    random state are as before; if anything raises, the statistics are, too.

    Args:
        model: an operated (or any) network; what `dual_path` gives has one set of statistics for both paths, to which
            both contribute in the order in which they run.
        batches: image batches (N, C, H, W), prepared as for inference, or tuples that begin with one, as a DataLoader
            gives. Each batch counts alike.
        limit: how many batches to take at most; None: all.
        seed: of whatever is random in the network in train mode (dropout).

    Returns:
        How many batches were taken.

    Raises:
        ModelError: the model has no batch norm with running statistics.
        RequestError: no batches, something else than images, or statistics that are no numbers.
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    if not norms:
        raise ModelError(
            f"{type(model).__name__} has no batch norm with running statistics (they may be folded into the "
            "convolutions, or it uses other norms): there is nothing to recalibrate"
        )
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
        raise RequestError(f"limit is how many batches to take at most, or None for all; got {limit!r}")
    device = next(iter(model.parameters())).device
    taken = _Counted(batches, limit)
    with _kept(model), torch.random.fork_rng(_devices(device)):
        torch.manual_seed(seed)
        update_bn(taken, model, device)
        if taken.count == 0:
            raise RequestError("batches is empty: there are no images to take statistics from")
        if not all(_finite(norm) for norm in norms):
            raise RequestError("the statistics are no numbers: an image holds nan or inf, or a map overflows")
    return taken.count


class _Counted:
    """The batches, up to the limit, and how many were taken."""

    def __init__(self, batches: Iterable[Any], limit: int | None) -> None:
        self.batches, self.limit, self.count = batches, limit, 0

    def __iter__(self) -> Iterator[Any]:
        for batch in islice(self.batches, self.limit):
            image = batch[0] if isinstance(batch, (list, tuple)) and batch else batch
            if not isinstance(image, Tensor) or image.dim() != 4:
                raise RequestError(
                    f"batch {self.count} is no image batch (N, C, H, W) and no tuple that begins with one: "
                    + (f"a tensor {tuple(image.shape)}" if isinstance(image, Tensor) else type(image).__name__)
                )
            self.count += 1
            yield batch


@contextmanager
def _kept(model: nn.Module) -> Iterator[None]:
    """Keep the mode of every module; if the block raises, every buffer too."""
    modes = {module: module.training for module in model.modules()}
    buffers = {buffer: buffer.detach().clone() for buffer in model.buffers()}
    momenta = {m: m.momentum for m in model.modules() if isinstance(m, _BatchNorm)}
    try:
        yield
    except BaseException:
        with torch.no_grad():
            for buffer, before in buffers.items():
                buffer.copy_(before)
        raise
    finally:
        for module, mode in modes.items():  # from the outside in; a rewritten graph chooses its mode's graph
            module.train(mode)
            module.training = mode  # also where train() is overridden to keep it
        for norm, momentum in momenta.items():
            norm.momentum = momentum


def _devices(device: torch.device) -> list[int]:
    return [device.index or 0] if device.type == "cuda" else []


def _finite(norm: _BatchNorm) -> bool:
    return all(s is None or bool(torch.isfinite(s).all()) for s in (norm.running_mean, norm.running_var))
