"""Draw the positions and receptive fields of the cells of a map, over a photograph."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import nn

from stridesurgery._analysis import MapGeometry
from stridesurgery._cost import Row, compare
from stridesurgery._features import TapName
from stridesurgery._hw import HW
from stridesurgery.errors import RequestError
from stridesurgery.plot.marks import COLOURS, STYLE
from stridesurgery.surgery import Surgery

PANEL = 3.0  # inches
KEY = (
    "dots: where cells look; dashed: what the middle one\n"
    "sees; filled: the step from it to its neighbours"
)


def field(
    model: nn.Module,
    tap: TapName,
    surgeries: str | Surgery | Iterable[str | Surgery] = (),
    input_size: int | HW[int] | None = None,
    *,
    image: npt.ArrayLike | None = None,
) -> Figure:
    """Draw the positions of the cells of a map over a photograph, before and after surgeries.

    Args:
        model: a torchvision or timm model, or any module whose forward takes an image batch
            (N, C, H, W).
        tap: the map, as for `features`: a layer number or a module path.
        surgeries: names such as "S1L0", or `Surgery` values where they need options.
        input_size: pixels, one number or (h, w); by default the size of the image, else the size
            the model was made for.
        image: the input image, (h, w, 3) or (h, w), as `imshow` takes it; None: a drawn scene.

    Returns:
        A panel for each network. A dot is the centre of the receptive field of one cell. The
        rectangles belong to the cell in the middle: its receptive field (dashed) and the step to
        its neighbours (filled).

    Raises:
        SurgeryError: a surgery or a tap is refused, as by `eliminate` and `features`.
        RequestError: the image has another size than the input.
        GridError: the cells are not evenly spaced, or the network hides their positions.

    Example:
        >>> import timm
        >>> from stridesurgery import plot
        >>> figure = plot.field(timm.create_model("resnet18"), "layer4", "S1L16", input_size=64)
        >>> [axes.get_title().splitlines()[0] for axes in figure.axes]
        ['as is: 2x2 cells', 'S1L16: 4x4 cells']
    """
    pixels = None if image is None else np.asarray(image)
    if pixels is not None and pixels.ndim not in (2, 3):
        raise RequestError(
            f"image is an array (h, w, 3) or (h, w), got one of shape {pixels.shape}"
        )
    size = pixels.shape[:2] if input_size is None and pixels is not None else input_size
    rows = [
        row
        for row in compare(model, surgeries, size, taps=[tap])
        if row.surgery or row.name == "as is"
    ]
    h, w = rows[0].input_size
    if pixels is not None and pixels.shape[:2] != (h, w):
        raise RequestError(
            f"the image has {pixels.shape[0]}x{pixels.shape[1]} pixels and the input {h}x{w}"
        )
    top, bottom, left, right = _view(rows)
    height = PANEL * (bottom - top) / (right - left)
    with rc_context({**STYLE, "axes.spines.left": False, "axes.spines.bottom": False}):
        figure = Figure(figsize=(PANEL * len(rows), height + 0.8), layout="compressed")
        for row, axes in zip(rows, figure.subplots(1, len(rows), squeeze=False)[0], strict=True):
            axes.imshow(scene(h, w) if pixels is None else pixels, cmap="gray", alpha=0.75)
            _draw(axes, row, points=PANEL * 72 / (right - left))
            axes.set(
                xticks=[], yticks=[], xlim=(left, right), ylim=(bottom, top), title=_title(row)
            )
        figure.supxlabel(KEY, fontsize=8)
    return figure


def _view(rows: Sequence[Row]) -> tuple[float, float, float, float]:
    """Return the top, bottom, left and right of the view.

    The view is the image, with a margin where a receptive field reaches beyond it. The margin is at
    most half the size of the image.
    """
    edges: list[float] = []
    for axis, pixels in enumerate(rows[0].input_size):
        spans = [
            (_middle(row)[axis], row.maps[0].geometry.receptive_field[axis] / 2) for row in rows
        ]
        beyond = max(
            0.0, *(side for at, reach in spans for side in (reach - at, at + reach - pixels))
        )
        margin = min(beyond * 1.1, pixels / 2) if math.isfinite(beyond) else 0
        edges += [-0.5 - margin, pixels - 0.5 + margin]
    return edges[0], edges[1], edges[2], edges[3]


def _centres(row: Row) -> list[npt.NDArray[np.floating]]:
    """Return the rows and columns of the centres of cells, in the coordinates of `imshow`.

    The first pixel has its centre at 0.
    """
    return [centres.numpy() - 0.5 for centres in row.maps[0].geometry.centres(row.grids[0])]


def _middle(row: Row) -> tuple[float, float]:
    """Return the centre (row, column) of the cell in the middle, in pixels."""
    y, x = (float(centres[len(centres) // 2]) for centres in _centres(row))
    return y, x


def _draw(axes: Axes, row: Row, points: float) -> None:
    """Draw the dots, the step and the receptive field. One pixel is `points` points of the page."""
    geometry, (y, x) = row.maps[0].geometry, _centres(row)
    dot = min(0.25 * min(geometry.step) * points, 3)
    x_all, y_all = (a.ravel() for a in np.meshgrid(x, y))
    axes.scatter(
        x_all, y_all, s=dot**2, c="white", edgecolors="black", linewidths=dot / 5, zorder=2
    )
    _rectangle(
        axes, _middle(row), geometry.step, facecolor=COLOURS[1], edgecolor="black", linewidth=0.8
    )
    if math.isfinite(max(geometry.receptive_field)):
        seen = geometry.receptive_field
        _rectangle(axes, _middle(row), seen, facecolor="none", edgecolor="white", linewidth=3.5)
        _rectangle(
            axes,
            _middle(row),
            seen,
            facecolor="none",
            edgecolor=COLOURS[0],
            linewidth=2,
            linestyle=(0, (5, 2)),
        )


def _rectangle(axes: Axes, centre: tuple[float, float], sides: Any, **style: Any) -> None:
    corner = centre[1] - sides[1] / 2, centre[0] - sides[0] / 2
    axes.add_patch(Rectangle(corner, sides[1], sides[0], zorder=3, **style))


def _title(row: Row) -> str:
    grid, geometry = row.grids[0], row.maps[0].geometry
    return f"{row.name}: {grid[0]}x{grid[1]} cells\n{_words(geometry)}"


def _words(geometry: MapGeometry) -> str:
    def by(sides: tuple[float, float]) -> str:
        if math.isinf(max(sides)):
            return "everything"
        return f"{sides[0]:g}" if sides[0] == sides[1] else f"{sides[0]:g}x{sides[1]:g}"

    return f"{by(geometry.step)} pixels apart, each sees {by(geometry.receptive_field)}"


def scene(h: int, w: int) -> npt.NDArray[np.float64]:
    """Return an image of striped discs, large to small, on a gradient: (h, w, 3) in 0..1."""
    rows, columns = np.mgrid[0:h, 0:w] / min(h, w)
    drawn = np.stack(
        [0.55 + 0.2 * rows / rows.max(), 0.7 - 0.15 * rows, 0.65 + 0.2 * columns], axis=-1
    ).clip(0, 1)
    stripes = np.where((columns + rows) * 24 % 1 < 0.5, 0.95, 0.15)[..., None]
    for row, column, radius in (
        (0.62, 0.30, 0.24),
        (0.30, 0.66, 0.12),
        (0.72, 0.76, 0.06),
        (0.48, 0.88, 0.03),
    ):
        inside = np.hypot(rows - row, columns - column * w / min(h, w)) < radius
        drawn = np.where(inside[..., None], stripes, drawn)
    return drawn
