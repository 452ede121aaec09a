"""The stock COCO SSD with strides eliminated and nothing trained, beside its equal-cost rivals.

    python -m examples.study.training_free --work runs             # 90 minutes on one CPU core
    python -m examples.study.training_free --work runs --rows "as is" S1L0 "S1L0 dual path"

The detector is one of torchvision's (stock.py), so the library operates it whole; the boxes of S1L0
are those of the fine path of `stridesurgery.detection.dual_path`.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

import stridesurgery as ss
from examples.ssd import counting
from examples.ssd.model import Network
from examples.ssd.programs import run
from examples.study import stock
from examples.study.experiment import AS_IS, Experiment, Found, Row, View, arguments
from examples.study.stock import SIZE, StockDetector, data_folder, detector
from stridesurgery.detection import DualPath, GeometryBoxes, Stand

SURGERIES = {"S1L0": (0,), "S1L4": (4,), "S1L6": (6,), "S2L4-6": (4, 6)}
LARGE, ENLARGED, DILATED = "600 pixels", "300 pixels enlarged", "S1L12 dilated"
SLICES, OVERLAP = "slices", 0.2  # two by two; the share of a slice that its neighbour sees too


class Computed(nn.Module):
    """All that a detector or a dual path computes but boxes, for counting and timing."""

    def __init__(self, whole: nn.Module) -> None:
        super().__init__()
        self.whole = whole

    def forward(self, images: Tensor) -> list[Any]:
        whole: Any = self.whole
        parts = (whole.coarse, whole.fine) if isinstance(whole, DualPath) else (whole,)
        return [Network(part)(images) for part in parts]


def networks(parts: nn.ModuleDict) -> dict[str, tuple[Any, int]]:
    """Return every network that is compared and its input size; all have the weights of one."""
    whole = detector(parts)
    found: dict[str, tuple[Any, int]] = {AS_IS: (whole, SIZE)}
    for surgery, layers in SURGERIES.items():
        found[f"{surgery} by hand"] = patched(parts, layers), SIZE
        found[surgery] = ss.eliminate(whole, surgery, centres="carried"), SIZE
        found[f"{surgery} dual path"] = ss.detection.dual_path(whole, surgery), SIZE
    found[DILATED] = dilated(parts), SIZE
    return {**found, LARGE: (stock.at_size(parts, 2 * SIZE), 2 * SIZE)}


def patched(parts: nn.ModuleDict, layers: Sequence[int]) -> StockDetector:
    """Return what one builds without a library; boxes are as many cells large as in training."""
    own = copy.deepcopy(parts)
    for layer in layers:
        for module in own.get_submodule(f"backbone.{layer}").modules():
            if isinstance(module, nn.Conv2d):
                module.stride = (1, 1)
    return detector(own, boxes=stock.Boxes(factor=0.5 ** len(layers)))


def dilated(parts: nn.ModuleDict) -> StockDetector:
    """Return the detector with cells between those of the backbone's last map.

    Only after the last stride do the cells in between look halfway: those of an earlier layer look
    one cell of that layer aside, however many strides follow.
    """
    surgery = ss.Surgery(1, (12,), dilate=True)
    taps = {"small": stock.TAPS, "large": stock.TAPS[1:]}
    both = ss.dual_path(parts["backbone"], surgery, taps=taps, input_size=SIZE)
    at = [stock.middles(level) for level in ss.detection.levels(detector(parts).backbone, SIZE)]
    at[1] = ss.MapGeometry((at[1].step[0] / 2, at[1].step[1] / 2), at[1].offset, (0.0, 0.0))
    boxes = GeometryBoxes(stock.Boxes(), [Stand(one) for one in at])
    return detector(parts, both, boxes, root=f"large.{stock.TAPS[1]}")


def opened(net: StockDetector) -> StockDetector:
    """Return a detector that tells every box that is worth a look; it suppresses none."""
    net = copy.copy(net)
    net.nms_thresh, net.detections_per_img = 1.0, 10**9
    return net


def sliced(view: View) -> View:
    """Return what a detector finds in two by two overlapping slices of a photograph."""

    def found(photograph: Image.Image) -> Found:
        width, height = (round(side / (2 - OVERLAP)) for side in photograph.size)
        views = []
        for top in (0, photograph.height - height):
            for left in (0, photograph.width - width):
                one = view(photograph.crop((left, top, left + width, top + height)))
                views.append({**one, "boxes": one["boxes"] + torch.tensor([left, top] * 2)})
        return {key: torch.cat([one[key] for one in views]) for key in views[0]}

    return found


def views_of(nets: dict[str, tuple[Any, int]]) -> dict[str, View]:
    """Return what the networks find in a photograph, before any suppression."""

    def alone(net: StockDetector) -> View:
        net = opened(net)
        return lambda photograph: net([photograph])[0]

    def fine(both: DualPath) -> View:
        return lambda photograph: both.paths([photograph])[1][0]

    found = {name: alone(net) for name, (net, _) in nets.items() if name in (AS_IS, LARGE, DILATED)}
    for surgery in SURGERIES:
        found[f"{surgery} by hand"] = alone(nets[f"{surgery} by hand"][0])
        found[surgery] = fine(nets[f"{surgery} dual path"][0])
    enlarged = copy.copy(nets[LARGE][0])
    enlarged.see = stock.enlarged
    return {**found, ENLARGED: alone(enlarged), SLICES: sliced(found[AS_IS])}


def rows_of(nets: dict[str, tuple[Any, int]]) -> dict[str, Row]:
    """Return the lines of the table by title."""
    gmacs = {k: counting.compute(Computed(net), size) / 1e9 for k, (net, size) in nets.items()}
    pairs = [name for s in SURGERIES for name in (f"{s} by hand", s)]
    rows = {name: Row(name, gmacs[name]) for name in (AS_IS, LARGE, *pairs, DILATED)}
    for name in (LARGE, ENLARGED):
        rows[f"pyramid, {name}"] = Row(name, gmacs[AS_IS] + gmacs[LARGE], True)
    for name in SURGERIES:
        rows[f"{name} dual path"] = Row(name, gmacs[f"{name} dual path"], True)
    rows[SLICES] = Row(SLICES, 4 * gmacs[AS_IS])
    return {**rows, f"{SLICES} and whole": Row(SLICES, 5 * gmacs[AS_IS], True)}


def main(argv: Sequence[str] | None = None) -> None:
    """Look, evaluate, record."""
    asked = arguments(__doc__, argv)
    nets = networks(stock.load_parts(data_folder() / "weights"))
    merge = nets["S1L0 dual path"][0].merged
    Experiment("training_free", rows_of(nets), views_of(nets), merge, asked).run()


if __name__ == "__main__":
    run(main)
