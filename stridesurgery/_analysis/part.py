"""The part of a model that is analysed and operated: all of it, or a detector's backbone."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from types import NoneType
from typing import Any

import torch
from torch import Tensor, nn

from stridesurgery._analysis.analysis import read_size
from stridesurgery._hw import HW
from stridesurgery._node import tensors_among
from stridesurgery._trace import Numbers, copy_to_meta, input_channels, number_format
from stridesurgery.errors import RequestError, TraceError
from stridesurgery.surgery import Surgery

NewStride = Callable[[HW[Fraction]], HW[Fraction]]
Follow = Callable[[nn.Module, nn.Module, Surgery, NewStride], None]


@dataclass(frozen=True)
class Kind:
    """A kind of model that knows the strides of a part of it."""

    at: str  # the path of the part; "" for all of it
    follow: Follow  # (before, after, surgery, new stride): gives `after` what must follow


KINDS: dict[type | str, Kind] = {}  # by class, or by its qualified name where it is not imported
TOLD: set[type] = set()  # modules that know strides: nothing outside a known kind may hold one


def kind_of(model: nn.Module) -> Kind | None:
    """Return the kind of a model, by its class or the nearest base that is known."""
    for base in type(model).__mro__:
        found = KINDS.get(base) or KINDS.get(f"{base.__module__}.{base.__qualname__}")
        if found is not None:
            return found
    return None


@dataclass(frozen=True)
class Part:
    """A submodule with the input that it gets inside its model."""

    module: nn.Module
    at: str  # its path; "" for the model itself
    size: int | HW[int] | None  # of its own input
    of: int | HW[int] | None = None  # the size of the model's input that gives it that
    detector: str | None = None  # the path of the module of a known kind that it belongs to

    def inside(self, surgery: Any) -> Any:
        """Return a surgery of the model as one of the part."""
        return replace(surgery, at=None) if isinstance(surgery, Surgery) else surgery

    def outside(self, surgery: Surgery) -> Surgery:
        """Return a surgery of the part as one of the model."""
        assert isinstance(self.of, tuple)
        return replace(surgery, at=self.at, input_size=self.of)


def part_of(
    model: nn.Module, at: str | None = None, input_size: int | HW[int] | None = None
) -> Part:
    """Return the part at a path; of a known kind of detector the one that it is operated at.

    Raises:
        RequestError: there is no such part; a detector of an unknown kind.
        TraceError: the model does not run up to it, or gives it no image or map.
    """
    if not isinstance(model, nn.Module):
        return Part(model, "", input_size)  # analyse says what it is instead
    if not isinstance(at, (str, NoneType)):
        raise RequestError(f"at is the path of a submodule, got {at!r}")
    modules = dict(model.named_modules())
    path = at or ""
    around = [p for p in modules if p in ("", path) or path.startswith(f"{p}.")]
    kinds = {p: kind for p in around if (kind := kind_of(modules[p])) is not None}
    detector = next(reversed(kinds), None)  # the innermost
    if detector is None and at is None:
        _check_untold(model, modules)
    elif detector is not None and detector == path:
        path = ".".join(filter(None, (path, kinds[detector].at)))
    elif detector is not None and not kinds[detector].at:
        raise RequestError(
            f"the strides of a {type(modules[detector]).__name__} are told from all of it; leave "
            "at out"
        )
    if path not in modules:
        first = ", ".join(name for name, _ in model.named_children())
        raise RequestError(
            f"at={path!r} names no submodule of {type(model).__name__}; it holds {first}"
        )
    if path == "":
        return Part(model, "", input_size, detector=detector)
    size = read_size(model, input_size)
    return Part(modules[path], path, _seen(model, path, size), size, detector)


def _check_untold(model: nn.Module, modules: Mapping[str, nn.Module]) -> None:
    for path, module in modules.items():
        if kind_of(module) is not None:
            raise RequestError(
                f"{type(model).__name__} holds a {type(module).__name__}; name it: at={path!r}"
            )
        if isinstance(module, tuple(TOLD)):
            raise RequestError(
                f"{type(model).__name__} holds a {type(module).__name__} ({path}), which knows "
                "strides, and what else must follow is not known of this class. Teach it with "
                "detection.register_detector, or operate a part alone with at= and set the rest "
                "yourself"
            )


class _Reached(BaseException):  # which no forward code catches
    def __init__(self, given: Any) -> None:
        super().__init__()
        self.given = given


def _seen(model: nn.Module, at: str, size: HW[int]) -> HW[int]:
    """Return the size of the first image or map that a submodule gets, without computing it."""
    meta_model = copy_to_meta(model).eval()

    def stop(module: nn.Module, args: Any, kwargs: Any) -> None:
        raise _Reached((args, kwargs))

    meta_model.get_submodule(at).register_forward_pre_hook(stop, with_kwargs=True)
    problem: Exception | None = None
    for channels in input_channels(meta_model):
        image = torch.empty(1, channels, *size, device="meta", dtype=number_format(meta_model))
        try:
            with torch.no_grad(), torch.device("meta"), Numbers():
                meta_model(image)
        except _Reached as reached:
            maps: list[Tensor] = [t for t in tensors_among(reached.given) if t.ndim == 4]
            if not maps:
                raise TraceError(
                    f"{at!r} gets no image or map (N, C, H, W); name a submodule that does"
                ) from None
            return maps[0].shape[2], maps[0].shape[3]
        except Exception as found:
            problem = problem or found
    what = "does not call it" if problem is None else f"raised {type(problem).__name__}: {problem}"
    raise TraceError(
        f"{type(model).__name__} cannot be run up to {at!r} on images of {size[0]}x{size[1]} "
        f"pixels: it {what}. Operate the submodule by itself and put it back"
    ) from problem
