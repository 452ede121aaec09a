"""Draw the resolution of a network's maps over its depth, and the compute of each layer."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import sqrt

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, NullFormatter, NullLocator
from torch import nn

from stridesurgery._analysis import Report, inspect
from stridesurgery._cost import cost, describe
from stridesurgery._hw import HW
from stridesurgery._rewrite import eliminate, requested
from stridesurgery._trace import copy_to_meta
from stridesurgery.plot.marks import AS_IS, GREY, STYLE, Mark, marks
from stridesurgery.surgery import Surgery


@dataclass(frozen=True)
class Line:
    """Values of one network over its depth."""

    name: str
    sides: Mapping[int, float]  # by L of the original: sqrt(rows x columns) of the map after it
    macs: Mapping[int, int]  # by L of the original: the layer and the pointwise operators after it


def profile(
    model: nn.Module,
    surgeries: str | Surgery | Iterable[str | Surgery] = (),
    input_size: int | HW[int] | None = None,
) -> Figure:
    """Draw the size of a network's maps and its compute over depth, before and after surgeries.

    Args:
        model: a torchvision or timm model, or any module whose forward takes an image batch
            (N, C, H, W).
        surgeries: names such as "S1L0", or `Surgery` values where they need options.
        input_size: pixels, one number or (h, w); by default what the model was made for, else 224.

    Returns:
        Two panels over the layers, numbered as `inspect` numbers them in the given model. The upper
        one shows the side of the map after each layer. For a map that is not square, it is the side
        of the square with as many cells. The lower one shows the multiply-accumulates of each layer
        with the pointwise operators that follow it. Dotted lines mark the layers with a stride.

    Raises:
        SurgeryError: a surgery is refused, as by `eliminate`.

    Example:
        >>> import timm
        >>> from stridesurgery import plot
        >>> figure = plot.profile(timm.create_model("resnet18"), ["S1L0", "S1L16"], input_size=64)
        >>> [axes.get_ylabel() for axes in figure.axes]
        ['side of the map, cells', 'GMAC of the layer']
    """
    asked = [surgeries] if isinstance(surgeries, (str, Surgery)) else list(surgeries)
    meta_model = copy_to_meta(model)
    before = inspect(meta_model, input_size)
    layer_of = {part.name: part.layer for part in cost(meta_model, before.input_size).parts}
    lines = [_line("as is", meta_model, before, layer_of)]
    for item in asked:
        surgery = requested(meta_model, item, None, before.input_size)[0]
        lines.append(_line(describe(surgery), eliminate(meta_model, surgery), before, layer_of))
    h, w = before.input_size
    with rc_context(STYLE):
        figure = Figure(figsize=(6.4, 4.6), layout="constrained")
        upper, lower = figure.subplots(2, sharex=True)
        figure.suptitle(f"{before.model} at {h}x{w}")
        for line, mark in zip(lines, [AS_IS, *marks(len(asked))], strict=True):
            total = sum(line.macs.values())
            ratio = f", {total / sum(lines[0].macs.values()):.2f} x" if line is not lines[0] else ""
            _draw(upper, line.sides, mark, line.name)
            _draw(
                lower,
                {i: macs / 1e9 for i, macs in line.macs.items()},
                mark,
                f"{total / 1e9:.2f} GMAC{ratio}",
            )
        for axes in (upper, lower):
            for strided in before.strided:
                axes.axvline(strided, color=GREY, linewidth=0.6, linestyle=":", zorder=0)
            axes.legend()
        _sizes(upper, {side for line in lines for side in line.sides.values()})
        upper.set_ylabel("side of the map, cells")
        lower.set_ylabel("GMAC of the layer")
        lower.set_ylim(bottom=0)
        lower.set_xlabel("layer L (dotted: with a stride)")
        lower.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def _line(
    name: str, network: nn.Module, before: Report, layer_of: Mapping[str, int | None]
) -> Line:
    """Return the values of one network over the layers of the original.

    `layer_of` gives, for the name of a call, its layer in the original.
    """
    numbers = {layer.name: layer.index for layer in before}
    report = inspect(network, before.input_size)
    sides = {numbers[layer.name]: sqrt(layer.out_grid[0] * layer.out_grid[1]) for layer in report}
    macs = dict.fromkeys(sides, 0)
    for part in cost(network, before.input_size).parts:
        own = None if part.layer is None else numbers[report[part.layer].name]
        layer = layer_of.get(part.name, own) or 0  # calls before the first layer are drawn with it
        # an eliminated 1x1 convolution is no longer a layer
        macs[layer] = macs.get(layer, 0) + part.macs
    return Line(name, sides, dict(sorted(macs.items())))


def _draw(axes: Axes, values: Mapping[int, float], mark: Mark, label: str) -> None:
    wide = mark is AS_IS  # the other lines lie on it where they are equal
    axes.plot(
        list(values),
        list(values.values()),
        color=mark.colour,
        linestyle=mark.dash,
        linewidth=3 if wide else 1.2,
        marker=mark.marker,
        markersize=6 if wide else 3.5,
        alpha=0.6 if wide else 1,
        label=label,
    )


def _sizes(axes: Axes, sides: set[float]) -> None:
    """Set ticks at the sizes that occur, without those that would overlap."""
    axes.set_yscale("log", base=2)
    ticks: list[float] = []
    for side in sorted(sides, reverse=True):
        if not ticks or side < ticks[-1] / 1.2:
            ticks.append(side)
    axes.yaxis.set_major_locator(FixedLocator(ticks))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(lambda side, _: f"{side:.3g}")
