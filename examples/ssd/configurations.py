"""Every detector of the paper by name, and the honest baselines beside it, as data.

What each is made of is what the paper's Tables 1 and 2 were computed with; `tables` rebuilds them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from examples.ssd.programs import DetectionError

MOBILENET, VGG, PELEENET = "mobilenetv1_100", "vgg16_reduced", "peleenet"


@dataclass(frozen=True)
class Recipe:
    """How the paper trained a row: SGD, momentum 0.9, weight decay 1e-4, a cosine per epoch."""

    lr: float = 1e-3
    epochs: int = 100
    batch: int = 32  # images, over all processes
    warmup: int = 0  # epochs


@dataclass(frozen=True)
class Configuration:
    """One detector: a backbone, the surgery on it, what the predictors read, and their boxes."""

    name: str
    backbone: str = MOBILENET
    size: int = 300  # side of the square input, pixels
    surgery: str | None = None  # by the paper's name: S1L0
    restore_at: int | None = None  # a later layer that takes the removed stride on
    small: tuple[int | str, ...] = (11, 13)  # taps (layers or modules), largest map first
    large: tuple[int | str, ...] = ()  # those of the untouched path, if there are two paths
    combine: Literal["split", "concat"] = "split"  # how two paths are joined
    widen_third: bool = False  # concatenate the large path's maps to what predictor 3 reads, too
    extras: str = "SSSS"  # S: stride 2 and padding 1, P: stride 2 and padding 0, space: neither
    depths: tuple[int, ...] = (512, 256, 256, 128)  # channels of each extra map
    separable: bool = True  # extras as on MobileNet, with batch norm; else plain with biases
    boxes: tuple[int, ...] = (6, 6, 6, 6, 6, 4)  # per cell of each predictor
    # Of the boxes in pixels, one more than predictors; None: by the steps of the maps.
    sizes: tuple[float, ...] | None = (45, 90, 135, 180, 225, 270, 315)
    # Between cells in pixels, as printed; None: boxes stand where the cells really look.
    steps: tuple[float, ...] | None = (16, 32, 64, 100, 150, 300)
    neck: str = "ssd"  # the paper's, or that of a network it compares with
    head_kernel: int = 3  # of the predictors
    recipe: Recipe = Recipe()


# fmt: off
def _rows() -> tuple[Configuration, ...]:
    base = Configuration("SSDMnetv1")
    s1l6 = replace(base, name="SSDMnetv1-S1L6", surgery="S1L6",
                   sizes=(10, 45, 90, 135, 180, 225, 270), steps=(8, 16, 32, 64, 100, 150))
    fmap1 = replace(s1l6, name="SSDMnetv1-S1L0-Fmap1", surgery="S1L0", extras="SSSP",
                    steps=(8, 16, 32, 64, 100, 300))
    # Nothing reads the large path's layer 13 in 19-C; the paper ran it all the same: its compute
    # counts layers 12 and 13, and their batch norms see the large path in training.
    concat = replace(fmap1, name="SSDMnetv1-S1L0-DualPath19-C", large=(11, 13), combine="concat",
                     recipe=Recipe(batch=24))
    twice = replace(base, name="SSDMnetv1-S2L4-6", surgery="S2L4-6", recipe=Recipe(batch=16),
                    sizes=(5, 10, 45, 90, 135, 180, 225), steps=(4, 8, 16, 32, 64, 100))
    vgg = replace(base, name="SSD-VGG16", backbone=VGG, small=(12, 18),  # conv4_3 and fc7
                  extras="SS  ", depths=(512, 256, 256, 256), separable=False,
                  boxes=(6, 6, 6, 6, 4, 4), sizes=(30, 60, 111, 162, 213, 264, 315),
                  steps=(8, 16, 32, 64, 100, 300), recipe=Recipe(4e-3, epochs=60, warmup=5))
    fine = replace(vgg, name="SSD-VGG16-S1L2", surgery="S1L2",
                   recipe=replace(vgg.recipe, batch=16))
    pelee = tuple(round(304 * share, 2) for share in (0.07, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05))
    return (
        base,
        replace(base, name="SSDMnetv1-Size512", size=512,
                sizes=(45, 133, 215, 297, 379, 461, 543), steps=(16, 32, 64, 128, 256, 512)),
        replace(base, name="SSDMnetv1-Early", small=(5, 11, 13), boxes=(6, 6, 6, 6, 6, 4, 4),
                sizes=(10, 45, 90, 135, 180, 225, 270, 315), steps=(8, 16, 32, 64, 100, 150, 300)),
        replace(base, name="SSDMnetv1-Anchor10", sizes=(10, 90, 135, 180, 225, 270, 315)),
        s1l6,
        replace(s1l6, name="SSDMnetv1-S1L4", surgery="S1L4"),
        replace(s1l6, name="SSDMnetv1-S1L0", surgery="S1L0"),
        replace(fmap1, name="SSDMnetv1-S1L4-Fmap1", surgery="S1L4",
                sizes=(10, 45, 90, 135, 180, 225, 315)),
        fmap1,
        concat,
        replace(concat, name="SSDMnetv1-S1L0-DualPath19-10-C", widen_third=True),
        replace(base, name="SSDMnetv1-S1L0-DualPath19-10-S", surgery="S1L0", large=(13,),
                sizes=(10, 45, 135, 180, 225, 270, 315), steps=(8, 16, 64, 100, 150, 300),
                recipe=Recipe(batch=24)),
        twice,
        replace(twice, name="SSDMnetv1-S2L0-6", surgery="S2L0-6"),
        vgg,
        replace(fine, extras="SSSS", sizes=(15, 30, 60, 111, 162, 213, 264),
                steps=(4, 8, 16, 32, 64, 100)),
        replace(fine, name="SSD-VGG16-S1L2-DualPath", large=(18,),
                sizes=(15, 30, 111, 162, 213, 264, 315), steps=(4, 8, 32, 64, 100, 300)),
        # The text's variant: pool3 takes the stride on, "to keep the feature size same at the last
        # layers": boxes and steps are SSD-VGG16's. (pool4 would make 18 cells of 75, not 19.)
        replace(fine, name="SSD-VGG16-S1L2-Restored", restore_at=9),
        # What S1L0's boxes do without its finer maps: a difference from the base is of both.
        replace(s1l6, name="SSDMnetv1-Anchor10-45", surgery=None, steps=base.steps),
        # What the compute of S1L0 buys by a larger input instead: S1L0's boxes, twice as large.
        replace(base, name="SSDMnetv1-Size600", size=600,
                sizes=(20, 90, 180, 270, 360, 450, 540), steps=(16, 32, 64, 128, 200, 300)),
        # What the paper compares with in Table 3, as their authors published them.
        replace(vgg, name="RFB-Net-300", neck="rfb", sizes=(21, 45, 99, 153, 207, 261, 315)),
        replace(base, name="RFB-MobileNet-300", separable=False, boxes=(6,) * 6,
                neck="rfb_mobile", head_kernel=1),
        Configuration("PeleeNet", PELEENET, 304, small=("stage3", "stage4"), extras="S  ",
                      depths=(256, 256, 256), separable=False, boxes=(6,) * 6, sizes=pelee,
                      steps=(16, 16, 30.4, 60.8, 101.33, 304), neck="pelee", head_kernel=1),
    )
# fmt: on


ROWS: Mapping[str, Configuration] = {row.name: row for row in _rows()}


def find(name: str) -> Configuration:
    """Return the row of that name, or list the names there are."""
    if name not in ROWS:
        raise DetectionError(f"there is no configuration {name!r}. There are: {', '.join(ROWS)}.")
    return ROWS[name]
