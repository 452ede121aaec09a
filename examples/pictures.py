"""Draw the pictures of the README and the documentation from the code as it stands.

python -m examples.pictures            # writes docs/pictures/*.png

No weights and no photographs are needed: costs and grids are told from shapes, and the scene is drawn.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import timm
from matplotlib.figure import Figure

import stridesurgery as ss
from stridesurgery import plot

MODEL = "mobilenetv1_100"
SIZE = 300  # pixels, the paper's
PREDICTED = 11  # the layer that the first predictor of the paper's SSD reads


def profile() -> Figure:
    """What the paper's Figure 3 draws: the base network, one early stride less, two strides less."""
    return plot.profile(timm.create_model(MODEL), ["S1L0", "S2L4-6"], SIZE)


def field() -> Figure:
    return plot.field(timm.create_model(MODEL), PREDICTED, ["S1L0", "S1L6"], SIZE)


def front() -> Figure:
    found = ss.search(
        timm.create_model(MODEL), 16, taps=PREDICTED, reduction=8, input_size=SIZE, dilate=True
    )
    return plot.front(found)


PICTURES: tuple[Callable[[], Figure], ...] = (profile, field, front)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--out", type=Path, default=Path("docs/pictures"), help="a folder (default: %(default)s)"
    )
    folder = parser.parse_args(argv).out
    folder.mkdir(parents=True, exist_ok=True)
    for draw in PICTURES:
        path = folder / f"{draw.__name__}.png"
        draw().savefig(
            path, dpi=100, metadata={"Software": None}
        )  # the same picture is the same file
        print(path)


if __name__ == "__main__":
    main()
