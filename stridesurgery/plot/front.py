"""Draw the result of a search."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby

from matplotlib import rc_context
from matplotlib.figure import Figure

from stridesurgery._cost import Candidate, Search
from stridesurgery._hw import hw_short
from stridesurgery._tables import METRICS
from stridesurgery.errors import RequestError
from stridesurgery.plot.marks import GREY, STYLE, marks

ROW = 0.17  # inches


@dataclass(frozen=True)
class Scale:
    """One kind of cost of the surgeries, as ratios to the untouched model."""

    name: str
    ratios: tuple[float | None, ...]  # None: unknown


def front(found: Search) -> Figure:
    """Draw the surgeries that no other one beats: their maps and their cost.

    Args:
        found: the result of `search`.

    Returns:
        A row for each surgery, in the order of `found.front`, with its reductions at the taps on
        the right. Compute, activations and peak memory are shown as ratios to the untouched model.
        Lines separate the reductions of the last map.

    Raises:
        RequestError: the search found nothing.

    Example:
        >>> import timm, stridesurgery as ss
        >>> from stridesurgery import plot
        >>> found = ss.search(timm.create_model("resnet18"), 3, taps="layer4", input_size=64)
        >>> figure = plot.front(found)
        >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
        ['S1L11', 'S1L16']
    """
    if not found.front:
        raise RequestError("there is nothing to draw: no surgery is within the budget")
    h, w = found.input_size
    with rc_context({**STYLE, "font.size": 8}):
        figure = Figure(figsize=(6.4, 1.3 + ROW * max(len(found), 4)), layout="constrained")
        axes = figure.subplots()
        axes.set_title(
            f"{found.model} at {h}x{w}: {len(found)} of {len(found.candidates)} surgeries, beaten "
            "by no other"
        )
        scales = _scales(found)
        for scale, mark in zip(scales, marks(len(scales)), strict=True):
            points = [(ratio, row) for row, ratio in enumerate(scale.ratios) if ratio is not None]
            axes.plot(
                [ratio for ratio, _ in points],
                [row for _, row in points],
                linestyle="",
                marker=mark.marker,
                color=mark.colour,
                markersize=5,
                label=scale.name,
                clip_on=False,
            )
        axes.axvline(1, color=GREY, linewidth=1)
        for edge in _edges(found.front):
            axes.axhline(edge - 0.5, color=GREY, linewidth=0.6)
        axes.set_yticks(range(len(found)), [candidate.name for candidate in found])
        axes.set_ylim(len(found) - 0.5, -0.5)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(lambda ratio, _: f"{ratio:g}")
        axes.set_xlabel("ratio to the model as it is")
        axes.grid(linewidth=0.3)
        axes.tick_params(left=False)
        right = axes.secondary_yaxis("right")
        right.set_yticks(range(len(found)), [_reductions(candidate) for candidate in found])
        right.tick_params(right=False)
        right.spines["right"].set_visible(False)
        right.set_ylabel(f"input pixels per cell at {', '.join(found.taps)}")
        figure.legend(loc="outside lower center", ncols=len(scales))
    return figure


def _scales(found: Search) -> list[Scale]:
    base = found.original
    titles = {"peak": "peak memory"}
    return [
        Scale(titles.get(m.title, m.title), _ratios([m.of(c) for c in found], m.of(base)))
        for m in METRICS
    ]


def _ratios(values: Iterable[float | None], base: float | None) -> tuple[float | None, ...]:
    return tuple(value / base if value is not None and base else None for value in values)


def _edges(candidates: Iterable[Candidate]) -> list[int]:
    """Return the rows at which another reduction of the last map begins."""
    starts, row = [], 0
    for _, group in groupby(candidates, key=lambda c: c.reductions[-1][0] * c.reductions[-1][1]):
        starts.append(row)
        row += len(list(group))
    return starts[1:]


def _reductions(candidate: Candidate) -> str:
    return " ".join(map(hw_short, candidate.reductions))
