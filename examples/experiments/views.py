"""The views of a photograph that `training_free` compares: one detector's weights in networks of other strides."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor, nn

import stridesurgery as ss
from examples.ssd import counting
from examples.ssd.stock import HIGH_TAP, INPUT_SIZE, LOW_TAP, Predictions, StockSSD
from examples.ssd.stock_boxes import (
    Candidates,
    Centres,
    anchors,
    candidates,
    learned_centres,
    six_layers,
    usual_centres,
)
from examples.ssd.stock_networks import (
    TwoPaths,
    as_input,
    enlarged,
    resized,
    with_stride_eliminated,
    with_stride_patched,
)
from examples.training_free import DOUBLED, FINER

SURGERIES: Mapping[str, tuple[int, ...]] = {
    "S1L0": (0,),
    "S1L4": (4,),
    "S1L6": (6,),
    "S2L4-6": (4, 6),
}
AS_IS, LARGE, ENLARGED, DILATED = "as is", "600 pixels", "300 pixels enlarged", "S1L12 dilated"


@dataclass(frozen=True)
class View:
    """One network on one size of photograph."""

    net: nn.Module  # gives Predictions
    anchors: Tensor  # (A, 4)
    see: Callable[[Image.Image], Image.Image]  # the photograph as the network gets it


@dataclass(frozen=True)
class Row:
    """One way of detecting: all boxes of a view, or those of the original with a finer view's below a bound."""

    view: str
    joined: bool
    gmacs: float  # 10^9 multiply-accumulates a photograph, as the paper counts


def seen_small(photograph: Image.Image) -> Image.Image:
    return resized(photograph, INPUT_SIZE)


def seen_large(photograph: Image.Image) -> Image.Image:
    return resized(photograph, DOUBLED)


def seen_enlarged(photograph: Image.Image) -> Image.Image:
    """As large, but no more is known of the photograph than at 300 pixels."""
    return enlarged(photograph, DOUBLED)


def views(net: StockSSD) -> dict[str, View]:
    """Every network that is compared; all have the weights of one."""
    trained = six_layers(net, INPUT_SIZE)
    doubled = anchors(
        learned_centres(six_layers(net, DOUBLED), DOUBLED, trained, INPUT_SIZE), FINER
    )
    result = {
        AS_IS: View(net, anchors(usual_centres(trained)), seen_small),
        LARGE: View(net, doubled, seen_large),
        ENLARGED: View(net, doubled, seen_enlarged),
    }
    for surgery, layers in SURGERIES.items():
        scale = FINER ** len(layers)
        patched, operated = with_stride_patched(net, layers), with_stride_eliminated(net, surgery)
        in_middle = usual_centres(six_layers(patched, INPUT_SIZE))
        where_learned = learned_centres(
            six_layers(operated, INPUT_SIZE), INPUT_SIZE, trained, INPUT_SIZE
        )
        result[f"{surgery} by hand"] = View(patched, anchors(in_middle, scale), seen_small)
        result[surgery] = View(operated, anchors(where_learned, scale), seen_small)
    dilated = Dilated(net)
    result[DILATED] = View(dilated, dilated_anchors(net, dilated), seen_small)
    return result


# ---- dilation


class Dilated(nn.Module):
    """The detector's own maps, the backbone's last one with cells between its cells; the rest is as it was.

    Only after the last stride do the cells in between look halfway: those of an earlier layer look one cell of that
    layer aside, however many strides follow.
    """

    def __init__(self, net: StockSSD) -> None:
        super().__init__()
        self.net = net
        operated = ss.eliminate(net.backbone, "S1L12", dilate=True, input_size=INPUT_SIZE)
        self.features = ss.features(operated, (str(LOW_TAP), str(HIGH_TAP)), input_size=INPUT_SIZE)

    def forward(self, images: Tensor) -> Predictions:
        low, high = self.features(images).values()
        others = self.net.six_maps(low, high[..., ::2, ::2])[2:]
        return self.net.predict_from([low, high, *others])


def dilated_anchors(net: StockSSD, dilated: Dilated) -> Tensor:
    """The detector's own anchors, on the second map also halfway between them."""
    low, high, *others = usual_centres(six_layers(net, INPUT_SIZE))
    with torch.inference_mode():
        _, dense = dilated.features(torch.zeros(1, 3, INPUT_SIZE, INPUT_SIZE)).values()
    return anchors([low, halfway(high, dense.shape[-2:]), *others])


def halfway(centres: Centres, cells: Sequence[int]) -> Centres:
    """As many centres as there are cells, twice as close."""
    both = zip((centres.rows, centres.columns), cells, strict=True)
    return Centres(*(old[0] + (old[1] - old[0]) / 2 * torch.arange(count) for old, count in both))


# ---- two paths


def largest_difference(
    net: StockSSD, alone: nn.Module, surgery: str, photographs: Iterable[Image.Image]
) -> float:
    """Of a score, between both paths of one graph and the two networks that they stand for."""
    two_paths, gaps = TwoPaths(net, surgery), [0.0]
    for photograph in photographs:
        image = as_input(seen_small(photograph))
        with torch.inference_mode():
            for path, other in zip(two_paths(image), (alone, net), strict=True):
                gaps.append(float((path.scores - other(image).scores).abs().max()))
    return max(gaps)


def rows(net: StockSSD, known: Mapping[str, View]) -> dict[str, Row]:
    """Every row of the table by its title."""
    base = counting.compute(net, INPUT_SIZE) / 1e9
    large = counting.compute(net, DOUBLED) / 1e9
    alone = {
        name: counting.compute(known[name].net, INPUT_SIZE) / 1e9
        for name in known
        if name in SURGERIES
    }
    result = {AS_IS: Row(AS_IS, False, base), LARGE: Row(LARGE, False, large)}
    for name, gmacs in alone.items():
        result[f"{name} by hand"] = Row(f"{name} by hand", False, gmacs)
        result[name] = Row(name, False, gmacs)
    result[DILATED] = Row(DILATED, False, counting.compute(known[DILATED].net, INPUT_SIZE) / 1e9)
    for name in alone:
        result[f"{name} dual path"] = Row(
            name, True, counting.compute(TwoPaths(net, name), INPUT_SIZE) / 1e9
        )
    result["pyramid, 600 pixels"] = Row(LARGE, True, base + large)
    result["pyramid, 300 pixels enlarged"] = Row(ENLARGED, True, base + large)
    return result


@torch.inference_mode()
def seen(view: View, photograph: Image.Image) -> Candidates:
    """Every box of a photograph that is worth a look, in its pixels, before any suppression."""
    said = view.net(as_input(view.see(photograph)))
    return candidates(said, view.anchors, (photograph.height, photograph.width))
