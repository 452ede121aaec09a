"""The stock COCO SSD on a sparse path: the finer network only where something small is seen.

    python -m examples.study.sparse --work runs     # 300 pixels, half an hour; or --size 600

Nothing is trained. A tile is wanted if a box of the coarse path has its middle there, is smaller
than a third of the image and scores more than a threshold. Of the fine path's first two maps the
boxes in wanted tiles and below a bound join those of the coarse path. Compute is counted.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import max_pool2d
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.detection.image_list import ImageList

import stridesurgery as ss
from examples.ssd.programs import run
from examples.study import stock
from examples.study.experiment import AS_IS, Experiment, Found, Row, View, arguments
from examples.study.stock import TAPS, data_folder
from examples.study.training_free import Computed, opened

STEPS = (8, 16)  # of S1L0's first two maps, pixels
SMALL = 1 / 3  # of the image's side: a box that asks for a tile is smaller
GRID = 96  # cells a side on which boxes ask
WHOLE = "dual path, whole"
Layout = tuple[int, int, float]  # tile, margin, threshold
SMALL_TILES = [(32, 0, t) for t in (0.2, 0.3, 0.4)] + [(32, 32, t) for t in (0.2, 0.25, 0.3, 0.4)]
LARGE_TILES = [(48, 48, 0.3), (48, 48, 0.4), (64, 0, 0.2), (64, 0, 0.3)]
LAYOUTS = {300: SMALL_TILES + LARGE_TILES, 600: LARGE_TILES[2:]}  # by input size


class Sparse(nn.Module):
    """The detector on a sparse path: (1, 3, H, W) to the fine path's boxes in wanted tiles."""

    def __init__(self, parts: nn.ModuleDict, size: int, layout: Layout) -> None:
        super().__init__()
        self.size, (self.tile, self.margin, self.threshold) = size, layout
        self.coarse: Any = opened(stock.at_size(parts, size))
        self.fine: Any = opened(ss.eliminate(self.coarse, "S1L0", centres="carried"))
        self.where = ImageList(torch.empty(1, 3, size, size), [(size, size)])
        grids = [level.grid for level in ss.detection.levels(self.fine.backbone, size)]
        [boxes] = self.fine.anchor_generator(self.where, [torch.empty(1, 1, *g) for g in grids])
        kinds = self.fine.anchor_generator.num_anchors_per_location()
        self.boxes = boxes.split([h * w * k for (h, w), k in zip(grids, kinds, strict=True)])
        both = ss.dual_path(parts["backbone"], "S1L0", taps=TAPS, share=False, input_size=size)
        self.backbone = ss.sparse_path(both, self.ask, tile=self.tile, margin=self.margin)
        self.wanted: Tensor  # tiles of the last image, (rows, columns)

    def forward(self, image: Tensor) -> Found:
        maps = self.backbone(image)
        self.wanted = maps["tiles"][0]
        said: dict[str, list[Tensor]] = {"bbox_regression": [], "cls_logits": []}
        places, heads, sizes = [], self.fine.head.heads, self.where.image_sizes
        for tap, step, head, boxes in zip(TAPS, STEPS, heads, self.boxes, strict=False):
            found, cells = maps[f"small.{tap}"][0].permute(1, 2, 0), self.tile // step
            inside = self.wanted.repeat_interleave(cells, 0).repeat_interleave(cells, 1)
            inside = inside[: found.shape[0], : found.shape[1]]
            chosen = found[inside][:, :, None, None]  # (cells, C, 1, 1)
            said["bbox_regression"].append(head.box(chosen).reshape(-1, 4)[:, stock.TO_SSD])
            said["cls_logits"].append(head.cls(chosen).reshape(-1, 91)[:, 1:])
            places.append(boxes.view(*inside.shape, -1, 4)[inside].flatten(0, 1))
        outputs = {key: torch.cat(parts)[None] for key, parts in said.items()}
        return self.fine.postprocess_detections(outputs, [torch.cat(places)], sizes)[0]

    def ask(self, maps: Mapping[str, Tensor]) -> Tensor:
        """Return where the coarse path sees something small, (1, GRID, GRID)."""
        net, sizes = self.coarse, self.where.image_sizes
        six = list(net.backbone.six({str(tap): maps[f"large.{tap}"] for tap in TAPS}).values())
        boxes = net.anchor_generator(self.where, six)
        [found] = net.postprocess_detections(net.head(six), boxes, sizes)
        corners = found["boxes"] / self.size
        small = (corners[:, 2:] - corners[:, :2]).prod(1) < SMALL**2
        middles = (corners[:, :2] + corners[:, 2:])[small & (found["scores"] > self.threshold)] / 2
        column, row = (middles * GRID).long().clamp(max=GRID - 1).T
        asked = torch.zeros(1, GRID, GRID, dtype=torch.bool)
        asked[0, row, column] = True
        return asked

    def ran(self) -> int:
        """Return how many tiles of the last image have run."""
        ring = -(-self.margin // self.tile)
        return int(max_pool2d(self.wanted[None].float(), 2 * ring + 1, 1, ring).sum())


def gmacs(net: nn.Module, size: int) -> float:
    """Return the multiply-accumulates of one image, 10^9."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(torch.zeros(1, 3, size, size))
    return counter.get_total_flops() / 2e9


def view(parts: nn.ModuleDict, size: int, layout: Layout) -> View:
    """Return what a sparse path finds in a photograph, and what it costs."""
    net = Sparse(parts, size, layout)

    def found(photograph: Image.Image) -> Found:
        image = (stock.as_tensor(stock.resized(photograph, size))[None] * 255 - 128) / 128
        with FlopCounterMode(display=False) as counter:
            one = net(image)
        boxes = one["boxes"] * torch.tensor([*photograph.size] * 2) / size
        facts = {"gmacs": counter.get_total_flops() / 2e9, "ran": net.ran() / net.wanted.numel()}
        return {**one, "boxes": boxes, **{k: torch.tensor(v) for k, v in facts.items()}}

    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Look, evaluate, record."""
    asked = arguments(__doc__, argv, sizes=tuple(LAYOUTS))
    size, parts = asked.size, stock.load_parts(data_folder() / "weights")
    whole = stock.at_size(parts, size)
    both, alone = ss.detection.dual_path(whole, "S1L0"), opened(whole)
    views: dict[str, View] = {AS_IS: lambda photograph: alone([photograph])[0]}
    views[WHOLE] = lambda photograph: both.paths([photograph])[1][0]
    rows = {AS_IS: Row(AS_IS, gmacs(Computed(whole), size))}
    rows[WHOLE] = Row(WHOLE, gmacs(Computed(both), size), True)
    for layout in LAYOUTS[size]:
        name = "tile {}, margin {}, threshold {}".format(*layout)
        rows[name], views[name] = Row(name, joins=True), view(parts, size, layout)
    Experiment(f"sparse/{size} pixels", rows, views, both.merged, asked).run()


if __name__ == "__main__":
    run(main)
