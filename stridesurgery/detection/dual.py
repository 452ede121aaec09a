"""A detector that looks at an image on two grids, with one set of weights."""

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchvision.ops import batched_nms
from torchvision.ops.boxes import box_area

from stridesurgery._analysis import part_of
from stridesurgery._features import dual_path as dual_path_of
from stridesurgery._rewrite import eliminate
from stridesurgery.detection.levels import levels
from stridesurgery.errors import RequestError
from stridesurgery.surgery import Surgery

Detections = list[dict[str, Tensor]]  # of each image, as torchvision's detectors return them
EVERYTHING = 10**9  # detections of an image: nothing is left out


def dual_path(
    detector: nn.Module,
    S: int | str | Surgery,
    L: Any = None,
    *,
    bound: float = 96,
    combine: Literal["merge", "split"] = "merge",
    sizes: Literal["follow", "stay"] = "follow",
    centres: Literal["looks", "carried"] = "carried",
    large_norm: Literal["shared", "frozen"] = "shared",
    input_size: int | tuple[int, int] | None = None,
) -> "DualPath":
    """Give a detector a second, finer look at small objects, on one set of weights.

    The backbone becomes a dual path (`stridesurgery.dual_path`): what precedes the eliminated
    stride runs once. The heads run on the maps of both paths.

    Args:
        detector: one of torchvision's, or another of a kind that is registered, whose detections
            are torchvision's and whose suppression is set by `nms_thresh` and `detections_per_img`.
        S: how many strides to eliminate, or a name, or a `Surgery`; as for `eliminate`.
        L: at which layers; as for `eliminate`.
        bound: in evaluation, boxes of the fine path count whose side (the square root of the area)
            is below it, in pixels of the image that is given. `choose_bound` finds one.
        combine: "merge": one list of detections for each image, after one suppression of the boxes
            of both paths; "split": a pair, the lists of the original and of the fine path, each
            with its own suppression.
        sizes: as for `eliminate`.
        centres: as for `eliminate`; trained predictors want "carried".
        large_norm: as for `stridesurgery.dual_path`.
        input_size: as for `eliminate`.

    Returns:
        The detector of both paths. In train mode it returns the losses of both, "large.X" and
        "small.X".

    Raises:
        RequestError: a detector that is of no known kind, or without a suppression.
        SurgeryError: the surgery is not possible.

    Example:
        >>> import torch, torchvision, stridesurgery as ss
        >>> net = torchvision.models.detection.ssdlite320_mobilenet_v3_large(
        ...     weights=None, weights_backbone=None
        ... ).eval()
        >>> both = ss.detection.dual_path(net, "S1L0", bound=96)
        >>> sorted(both([torch.rand(3, 320, 320)])[0])
        ['boxes', 'labels', 'scores']
    """
    if combine not in ("merge", "split"):
        raise RequestError(f"combine is 'merge' or 'split', got {combine!r}")
    fine = eliminate(detector, S, L, input_size=input_size, sizes=sizes, centres=centres)
    surgery = fine.surgery
    assert isinstance(surgery, Surgery)
    part = part_of(detector, surgery.at, surgery.input_size)
    if part.detector != "" or not part.at or _suppression(detector) is None:
        raise RequestError(
            f"{type(detector).__name__} has no backbone and suppression that are known: a dual "
            "path takes detectors of torchvision, and registered ones whose nms_thresh and "
            "detections_per_img can be set"
        )
    assert part.size is not None
    names = [level.name for level in levels(part.module, part.size)]
    inner = replace(surgery, at=None, after=None, input_size=None)
    try:
        both = dual_path_of(
            part.module,
            inner,
            taps=[f"[{name}]" for name in names],
            sampler="original",
            large_norm=large_norm,
            input_size=part.size,
        )
    except RequestError as refusal:
        raise RequestError(
            f"{type(detector).__name__} has a backbone without two paths: {refusal}. It must "
            "return its maps in a dict"
        ) from refusal
    return DualPath(copy.deepcopy(detector), fine, both, part.at, names, bound, combine)


class DualPath(nn.Module):
    """The detector that `dual_path` returns.

    Example:
        >>> import torchvision, stridesurgery as ss
        >>> net = torchvision.models.detection.ssd300_vgg16(weights=None, weights_backbone=None)
        >>> both = ss.detection.dual_path(net, "S1L9", bound=96)
        >>> both.bound
        96
    """

    def __init__(
        self,
        coarse: nn.Module,
        fine: nn.Module,
        both: nn.Module,
        at: str,
        names: Sequence[str],
        bound: float,
        combine: str,
    ) -> None:
        super().__init__()
        self.both, self.coarse, self.fine = both, coarse, fine
        self.bound, self.combine, self.surgery = bound, combine, fine.surgery
        suppression = _suppression(coarse)
        assert suppression is not None
        self.nms_thresh, self.detections_per_img = (
            suppression.nms_thresh,
            suppression.detections_per_img,
        )
        kept: dict[str, Any] = {}
        holder, _, name = at.rpartition(".")
        for path, half in (("large", coarse), ("small", fine)):
            setattr(half.get_submodule(holder), name, _Path(both, path, names, kept))
            its = _suppression(half)
            if combine == "merge" and its is not None and not _crops(its):
                its.nms_thresh, its.detections_per_img = 1.0, EVERYTHING
        _share(coarse, fine)
        self.train(coarse.training)

    def paths(self, images: Any, targets: Any = None) -> tuple[Any, Any]:
        """Return what the original path gives, and what the fine path gives."""
        given = (images,) if targets is None else (images, copy.deepcopy(targets))
        state = torch.get_rng_state()
        large = self.coarse(*given)
        torch.set_rng_state(state)  # resized, and sampled, alike
        return large, self.fine(images, *given[1:])

    def forward(self, images: Any, targets: Any = None) -> Any:
        """Return detections, or in train mode the losses of both paths."""
        large, small = self.paths(images, targets)
        if self.training:
            return {
                f"{path}.{name}": value
                for path, losses in (("large", large), ("small", small))
                for name, value in losses.items()
            }
        return self.merged(large, small) if self.combine == "merge" else (large, small)

    def merged(
        self, large: Detections, small: Detections, bound: float | None = None
    ) -> Detections:
        """Return one list for each image: boxes below the bound join the original path's."""
        found = []
        for coarse, fine in zip(large, small, strict=True):
            below = box_area(fine["boxes"]).sqrt() < (self.bound if bound is None else bound)
            joined = {key: torch.cat([coarse[key], fine[key][below]]) for key in coarse}
            kept = batched_nms(
                joined["boxes"], joined["scores"], joined["labels"], self.nms_thresh
            )[: self.detections_per_img]
            found.append({key: value[kept] for key, value in joined.items()})
        return found


class _Path(nn.Module):
    """Stands for the backbone in one of two detectors; the first run keeps what the other needs."""

    def __init__(
        self, both: nn.Module, path: str, names: Sequence[str], kept: dict[str, Any]
    ) -> None:
        super().__init__()
        vars(self)["both"] = both  # a module of the whole, not of this one
        self.path, self.names, self.kept = path, tuple(names), kept

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return the maps of this path."""
        maps = self.kept.pop("maps", None) if self.path == "small" else None
        if maps is None:
            maps = vars(self)["both"](x)
        if self.path == "large":
            self.kept["maps"] = maps
        return {name: maps[f"{self.path}.[{name}]"] for name in self.names}


def _suppression(detector: nn.Module) -> Any:
    """Return the module that suppresses a detector's boxes, by its settings."""
    settings = ("nms_thresh", "detections_per_img")
    found = [m for m in detector.modules() if all(name in vars(m) for name in settings)]
    return found[0] if found else None


def _crops(suppression: nn.Module) -> bool:
    """Tell whether something is computed for every box that is left, such as its mask."""
    heads = ("mask_predictor", "keypoint_predictor")
    return any(getattr(suppression, name, None) is not None for name in heads)


def _share(coarse: nn.Module, fine: nn.Module) -> None:
    """Let the fine detector have the parameters, the buffers and the resizing of the other."""
    if hasattr(coarse, "transform"):
        fine.transform = coarse.transform  # pads to what both need
    for path, module in coarse.named_modules():
        twin = fine.get_submodule(path)
        twin._parameters.update(module._parameters)
        for name, value in module._buffers.items():
            own = twin._buffers.get(name)
            if value is not None and own is not None and torch.equal(own, value):
                twin._buffers[name] = value  # others have followed the strides, such as anchors
