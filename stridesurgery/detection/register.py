"""Teach the library a kind of detector."""

from torch import nn

from stridesurgery._analysis import KINDS, Follow, Kind
from stridesurgery.errors import RequestError


def register_detector(kind: type[nn.Module] | str, *, at: str, follow: Follow) -> None:
    """Teach `eliminate` and its kin a detector: what is operated of it, and what must follow.

    Args:
        kind: its class, whose subclasses count too, or the qualified name of the class, so that it
            need not be imported.
        at: the path of the submodule that is operated, such as "backbone.body"; "" for all of it.
        follow: called with the detector as it was, a copy whose submodule is operated, the
            `Surgery`, and a function from the (rows, columns) that a cell of one of the submodule's
            maps measured to those that it measures now. It changes the copy.

    Raises:
        RequestError: `kind` is neither a class of modules nor a name.

    Example:
        >>> import torch, torchvision, stridesurgery as ss
        >>> class Counter(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.net, self.cell = torchvision.models.resnet18().eval(), 32
        ...     def forward(self, images):
        ...         return self.net(images) * self.cell
        >>> def follow(before, after, surgery, stride):
        ...     after.cell = int(stride((before.cell, before.cell))[0])
        >>> ss.detection.register_detector(Counter, at="net", follow=follow)
        >>> ss.eliminate(Counter(), "S1L0").cell
        16
    """
    if not isinstance(kind, str) and not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        raise RequestError(f"kind is a class of modules or its qualified name, got {kind!r}")
    KINDS[kind] = Kind(at, follow)
