"""The detector: an operated backbone, a neck, heads and the prior boxes that belong to their outputs."""

import copy
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from examples.ssd import backbones, geometry, pelee, priors, rfb
from examples.ssd.configurations import Configuration
from examples.ssd.errors import RequestError
from examples.ssd.heads import Heads
from examples.ssd.loss import Losses, losses
from examples.ssd.neck import neck_for
from examples.ssd.priors import Cells

Module = TypeVar("Module", bound=nn.Module)

COCO_CLASSES = 81  # background and 80
NECKS: Mapping[str, Callable[[Configuration, Sequence[str], Sequence[int]], Any]] = {
    "ssd": neck_for,
    "rfb": rfb.vgg_neck,
    "rfb_mobile": rfb.mobile_neck,
    "pelee": pelee.pelee_neck,
}


class SSD(nn.Module):
    """images -> features (maps by key) -> neck (one map a predictor) -> heads (offsets and logits of every prior)."""

    priors: Tensor  # (P, 4): centre x, centre y, width, height as shares of the image
    mean: Tensor  # (3, 1, 1), of pixels in 0..255, as the backbone's weights expect them
    std: Tensor

    def __init__(
        self,
        features: nn.Module,
        neck: nn.Module,
        heads: Heads,
        size: int,
        turned: Collection[str] = (),
    ) -> None:
        """turned: the keys of the maps that `features` gives as (N, H, W, C)."""
        super().__init__()
        self.features, self.neck, self.heads, self.size = features, neck, heads, size
        self.turned = frozenset(turned)
        self.register_buffer("mean", 255 * torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1))
        self.register_buffer("std", 255 * torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1))
        self.register_buffer(
            "priors", torch.zeros(0, 4), persistent=False
        )  # follows from the configuration

    @property
    def classes(self) -> int:
        """With the background."""
        return self.heads.classes

    def prepare(self, images: Tensor) -> Tensor:
        """images: (N, 3, size, size), RGB, 0..255, any type. Returns what `forward` takes."""
        return (images.to(self.mean.dtype) - self.mean) / self.std

    def maps(self, images: Tensor) -> list[Tensor]:
        """images: as `prepare` returns them. Returns the map each predictor reads, (N, C, H, W)."""
        maps = self.features(images)
        return cast(
            list[Tensor],
            self.neck(
                {key: x.permute(0, 3, 1, 2) if key in self.turned else x for key, x in maps.items()}
            ),
        )

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """images: as `prepare` returns them. Returns offsets (N, P, 4) and logits (N, P, classes)."""
        return cast(tuple[Tensor, Tensor], self.heads(self.maps(images)))

    def scores(self, logits: Tensor) -> Tensor:
        """How sure the detector is of each class but the background, (N, P, classes - 1)."""
        return logits.float().softmax(dim=2)[..., 1:]

    def losses(
        self, offsets: Tensor, logits: Tensor, boxes: Tensor, labels: Tensor, counts: Sequence[int]
    ) -> Losses:
        """What `forward` returned beside the objects of the images, as `loss.losses` has it."""
        return losses(offsets, logits, self.priors, boxes, labels, counts)


def build(
    row: Configuration, classes: int = COCO_CLASSES, backbone: nn.Module | None = None
) -> SSD:
    """The detector of a configuration; on `backbone` with its weights, or on a new one with random weights.

    classes: with the background.
    """
    features = backbones.maps_of(
        backbones.create(row.backbone) if backbone is None else backbone, row
    )
    layout = have_channels_last(features, row.size)
    neck = NECKS[row.neck](row, list(layout), backbones.info(features).channels())
    heads = Heads(neck.out_channels, row.boxes, classes, row.head_kernel)
    ssd = SSD(features, neck, heads, row.size, [key for key, last in layout.items() if last])
    initialise(ssd.neck, ssd.heads)
    ssd.priors = priors.clipped(unclipped_priors(ssd, row), row.size)
    return ssd


def initialise(*parts: nn.Module) -> None:
    """Xavier weights and zero biases, as SSD starts everything that is not the backbone."""
    for module in (m for part in parts for m in part.modules()):
        if isinstance(module, nn.Conv2d):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def unclipped_priors(ssd: SSD, row: Configuration) -> Tensor:
    """(P, 4): centre x, centre y, width, height in pixels, as the configuration places them."""
    counts = map_sizes(ssd)
    if row.steps is None:
        cells: Sequence[Cells] = true_cells(ssd, counts)
    else:
        cells = [
            priors.printed_cells(count, step) for count, step in zip(counts, row.steps, strict=True)
        ]
    return priors.unclipped_priors(cells, row.boxes, row.sizes)


def true_cells(ssd: SSD, counts: Sequence[tuple[int, int]]) -> list[Cells]:
    """Where the cells of every predictor's map look: the backbone's from the library, the extras' from there on."""
    looks = {feature.name: feature.geometry for feature in backbones.info(ssd.features).features}
    neck: Any = (
        ssd.neck
    )  # of whatever kind: the keys of its sources, that of the extras' root, and the extras

    def cells_of(key: str, count: tuple[int, int]) -> Cells:
        look = looks[key]
        # The library puts pixel centres at integers; boxes span the image from 0, half a pixel before the first.
        return Cells(count, look.step, (look.offset[0] + 0.5, look.offset[1] + 0.5))

    cells = [cells_of(key, count) for key, count in zip(neck.sources, counts, strict=False)]
    last = cells_of(neck.root, (0, 0))
    for extra, count in zip(neck.extras, counts[len(cells) :], strict=True):
        last = geometry.through(last, count, path(extra))
        cells.append(last)
    return cells


def path(extra: nn.Module) -> Iterator[nn.Conv2d]:
    """The convolutions that an extra runs one after the other; of branches, which all look alike, the shortest."""
    line = extra.shortcut if isinstance(extra, rfb.ReceptiveFieldBlock) else extra
    return (module for module in line.modules() if isinstance(module, nn.Conv2d))


def map_sizes(ssd: SSD) -> list[tuple[int, int]]:
    """(rows, columns) of every predictor's map, without computing one."""
    with torch.inference_mode():
        maps = weightless(ssd).maps(torch.empty(1, 3, ssd.size, ssd.size, device="meta"))
    return [(x.shape[2], x.shape[3]) for x in maps]


def have_channels_last(features: nn.Module, size: int) -> dict[str, bool]:
    """For each map that a feature module gives, in its order, whether it is (N, H, W, C) instead of (N, C, H, W).

    Raises:
        RequestError: one of several that differ could be either.
    """
    with torch.inference_mode():
        maps = weightless(features)(torch.empty(1, 3, size, size, device="meta"))
    channels = {feature.name: feature.channels for feature in backbones.info(features).features}
    last = {key: x.shape[1] != channels[key] for key, x in maps.items()}
    unclear = [key for key, x in maps.items() if x.shape[1] == x.shape[3]]
    if unclear and any(last.values()):
        raise RequestError(
            f"map {unclear[0]} has as many channels as rows: which are which? Take another --size."
        )
    return last


def weightless(module: Module) -> Module:
    """A copy that computes shapes only."""
    return copy.deepcopy(module).to("meta").eval()
