"""Every detector of the paper by name, and the honest baselines beside it, as data.

    python -m examples.ssd.configurations        # prints the table

What each is made of is what the paper's Tables 1 and 2 were computed with; `tables` rebuilds them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from examples.ssd.errors import RequestError
from examples.ssd.formatting import as_table

Tap = int | str  # a layer's number, or a module path
Extra = Literal["S", "P", " "]  # stride 2, padding 1; stride 2, padding 0; stride 1, padding 0

MOBILENET, VGG, PELEENET, SHUFFLENET = (
    "mobilenetv1_100",
    "vgg16_reduced",
    "peleenet",
    "shufflenetv2_05",
)
SSSS: tuple[Extra, ...] = ("S", "S", "S", "S")
SSSP: tuple[Extra, ...] = ("S", "S", "S", "P")


@dataclass(frozen=True)
class Recipe:
    """How the paper trained a row: SGD, momentum 0.9, weight decay 1e-4, a cosine per epoch."""

    learning_rate: float = 1e-3
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
    small: tuple[Tap, ...] = (11, 13)  # what the (small-object) path gives, largest map first
    large: tuple[Tap, ...] = ()  # what the large-object path gives; empty: there is a single path
    combine: Literal["split", "concat"] = "split"  # how the two paths' maps are combined
    widen_third: bool = False  # concatenate what is left of the large path to the first extra's map, for its predictor
    extras: tuple[Extra, ...] = SSSS
    depths: tuple[int, ...] = (512, 256, 256, 128)  # channels of each extra map
    separable: bool = (
        True  # extras: depthwise with batch norm, as on MobileNet; else plain with biases
    )
    boxes: tuple[int, ...] = (6, 6, 6, 6, 6, 4)  # per cell of each predictor
    sizes: tuple[float, ...] = (
        45,
        90,
        135,
        180,
        225,
        270,
        315,
    )  # of the boxes, pixels; one more than predictors
    steps: tuple[float, ...] | None = (
        16,
        32,
        64,
        100,
        150,
        300,
    )  # between cells, pixels; None: the true geometry
    neck: Literal["ssd", "rfb", "rfb_mobile", "pelee"] = (
        "ssd"  # the paper's, or that of a network it compares with
    )
    head_kernel: int = 3  # of the predictors
    recipe: Recipe = Recipe()

    def __post_init__(self) -> None:
        # Pelee's first map feeds two predictors.
        predictors = len(self.small) + len(self.extras) + (self.neck == "pelee")
        facts = {"boxes": len(self.boxes), "sizes": len(self.sizes) - 1}
        if self.steps is not None:
            facts["steps"] = len(self.steps)
        for what, count in facts.items():
            if count != predictors:
                raise RequestError(
                    f"{self.name} has {predictors} predictors, and {what} for {count}."
                )
        if len(self.extras) != len(self.depths):
            raise RequestError(
                f"{self.name} has {len(self.extras)} extras and depths for {len(self.depths)}."
            )

    @property
    def with_true_anchors(self) -> "Configuration":
        """The same detector with each box centred where its cell really looks."""
        return replace(self, steps=None)


DUAL = Recipe(batch=24)
TWO_STRIDES = Recipe(batch=16)
VGG_RECIPE = Recipe(learning_rate=4e-3, epochs=60, batch=32, warmup=5)
VGG_FINE = replace(VGG_RECIPE, batch=16)

ENLARGED_STEPS = (8, 16, 32, 64, 100, 150)
FMAP1_STEPS = (8, 16, 32, 64, 100, 300)
ENLARGED = Configuration(
    "SSDMnetv1-S1L6", surgery="S1L6", sizes=(10, 45, 90, 135, 180, 225, 270), steps=ENLARGED_STEPS
)
FMAP1 = replace(
    ENLARGED, name="SSDMnetv1-S1L0-Fmap1", surgery="S1L0", extras=SSSP, steps=FMAP1_STEPS
)
TWICE = Configuration(
    "SSDMnetv1-S2L4-6",
    surgery="S2L4-6",
    sizes=(5, 10, 45, 90, 135, 180, 225),
    steps=(4, 8, 16, 32, 64, 100),
    recipe=TWO_STRIDES,
)
SSD_VGG = Configuration(
    "SSD-VGG16",
    backbone=VGG,
    small=(12, 18),  # conv4_3 and fc7
    extras=("S", "S", " ", " "),
    depths=(512, 256, 256, 256),
    separable=False,
    boxes=(6, 6, 6, 6, 4, 4),
    sizes=(30, 60, 111, 162, 213, 264, 315),
    steps=(8, 16, 32, 64, 100, 300),
    recipe=VGG_RECIPE,
)

_ROWS = (
    Configuration("SSDMnetv1"),
    Configuration(
        "SSDMnetv1-Size512",
        size=512,
        sizes=(45, 133, 215, 297, 379, 461, 543),
        steps=(16, 32, 64, 128, 256, 512),
    ),
    Configuration(
        "SSDMnetv1-Early",
        small=(5, 11, 13),
        boxes=(6, 6, 6, 6, 6, 4, 4),
        sizes=(10, 45, 90, 135, 180, 225, 270, 315),
        steps=(8, 16, 32, 64, 100, 150, 300),
    ),
    Configuration("SSDMnetv1-Anchor10", sizes=(10, 90, 135, 180, 225, 270, 315)),
    ENLARGED,
    replace(ENLARGED, name="SSDMnetv1-S1L4", surgery="S1L4"),
    replace(ENLARGED, name="SSDMnetv1-S1L0", surgery="S1L0"),
    replace(
        FMAP1, name="SSDMnetv1-S1L4-Fmap1", surgery="S1L4", sizes=(10, 45, 90, 135, 180, 225, 315)
    ),
    FMAP1,
    # Nothing reads the large path's layer 13 in 19-C; the paper ran it all the same: its compute counts layers 12 and
    # 13, and their batch norms see the large path in training.
    replace(
        FMAP1, name="SSDMnetv1-S1L0-DualPath19-C", large=(11, 13), combine="concat", recipe=DUAL
    ),
    replace(
        FMAP1,
        name="SSDMnetv1-S1L0-DualPath19-10-C",
        large=(11, 13),
        combine="concat",
        widen_third=True,
        recipe=DUAL,
    ),
    Configuration(
        "SSDMnetv1-S1L0-DualPath19-10-S",
        surgery="S1L0",
        large=(13,),
        sizes=(10, 45, 135, 180, 225, 270, 315),
        steps=(8, 16, 64, 100, 150, 300),
        recipe=DUAL,
    ),
    TWICE,
    replace(TWICE, name="SSDMnetv1-S2L0-6", surgery="S2L0-6"),
    SSD_VGG,
    replace(
        SSD_VGG,
        name="SSD-VGG16-S1L2",
        surgery="S1L2",
        extras=SSSS,
        sizes=(15, 30, 60, 111, 162, 213, 264),
        steps=(4, 8, 16, 32, 64, 100),
        recipe=VGG_FINE,
    ),
    replace(
        SSD_VGG,
        name="SSD-VGG16-S1L2-DualPath",
        surgery="S1L2",
        large=(18,),
        sizes=(15, 30, 111, 162, 213, 264, 315),
        steps=(4, 8, 32, 64, 100, 300),
        recipe=VGG_FINE,
    ),
    # The text's variant: pool3 takes the stride on, "to keep the feature size same at the last layers", so that
    # boxes and steps are those of SSD-VGG16. (pool4 cannot: of 75 cells it would make 18, not 19.)
    replace(SSD_VGG, name="SSD-VGG16-S1L2-Restored", surgery="S1L2", restore_at=9, recipe=VGG_FINE),
    # What S1L0's boxes do without its finer maps: a difference from the base is of both.
    replace(
        ENLARGED, name="SSDMnetv1-Anchor10-45", surgery=None, steps=Configuration("SSDMnetv1").steps
    ),
    # What the compute of S1L0 buys by a larger input instead: S1L0's boxes, twice as large.
    Configuration(
        "SSDMnetv1-Size600",
        size=600,
        sizes=(20, 90, 180, 270, 360, 450, 540),
        steps=(16, 32, 64, 128, 200, 300),
    ),
    # What the paper compares with in Table 3, as their authors published them.
    replace(SSD_VGG, name="RFB-Net-300", neck="rfb", sizes=(21, 45, 99, 153, 207, 261, 315)),
    Configuration(
        "RFB-MobileNet-300",
        depths=(512, 256, 256, 128),
        separable=False,
        boxes=(6, 6, 6, 6, 6, 6),
        neck="rfb_mobile",
        head_kernel=1,
    ),
    Configuration(
        "PeleeNet",
        backbone=PELEENET,
        size=304,
        small=("stage3", "stage4"),
        extras=("S", " ", " "),
        depths=(256, 256, 256),
        separable=False,
        boxes=(6, 6, 6, 6, 6, 6),
        sizes=tuple(round(304 * share, 2) for share in (0.07, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05)),
        steps=(16, 16, 30.4, 60.8, 101.33, 304),
        neck="pelee",
        head_kernel=1,
    ),
)
ROWS: Mapping[str, Configuration] = {row.name: row for row in _ROWS}


def find(name: str) -> Configuration:
    """The row of that name.

    Raises:
        RequestError: there is none; the names are listed.
    """
    if name not in ROWS:
        raise RequestError(f"there is no configuration {name!r}. There are: {', '.join(ROWS)}.")
    return ROWS[name]


def described(row: Configuration) -> tuple[str, ...]:
    steps = "geometry" if row.steps is None else _listed(row.steps)
    fed = _listed(row.small) + (f" | {_listed(row.large)} ({row.combine})" if row.large else "")
    return (
        row.name,
        row.backbone,
        str(row.size),
        row.surgery or "",
        fed,
        ",".join(kind if kind.strip() else "-" for kind in row.extras),
        _listed(row.sizes),
        steps,
        f"{row.recipe.learning_rate:g} x {row.recipe.epochs}, {row.recipe.batch} a step",
    )


def _listed(values: Sequence[object]) -> str:
    return ",".join(map(str, values))


def main() -> None:
    header = (
        "row",
        "backbone",
        "size",
        "surgery",
        "taps",
        "extras",
        "box sizes",
        "steps",
        "rate x epochs",
    )
    print(as_table(header, [described(row) for row in ROWS.values()], left=range(len(header))))


if __name__ == "__main__":
    main()
