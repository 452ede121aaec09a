"""List the strides of a model: numbered layers and transitions, as a table and as data."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from stridesurgery._analysis.analysis import Analysis, analyse
from stridesurgery._analysis.grid import SpatialOp
from stridesurgery._analysis.part import part_of
from stridesurgery._analysis.transitions import ReductionStep
from stridesurgery._hw import HW, hw_numbers, hw_short, hw_text
from stridesurgery._tables import Shown, Table
from stridesurgery.errors import OperatorError


@dataclass(frozen=True)
class Layer:
    """One operator with spatial extent; every pair is (rows, columns).

    Example:
        >>> import stridesurgery, torchvision
        >>> layer = stridesurgery.inspect(torchvision.models.resnet18(), 64)[0]
        >>> layer.name, layer.kernel, layer.stride
        ('conv1', (7, 7), (2, 2))
    """

    index: int  #: L, in running order
    name: str  #: module path, or the call site of a function
    operator: str
    kernel: HW[int]  #: cells
    stride: HW[int]  #: cells of the incoming grid
    padding: tuple[
        int | str, int | str
    ]  #: cells before the first; "same" where computed from the size
    dilation: HW[int]
    in_grid: HW[int]  #: cells
    out_grid: HW[int]
    channels: int  #: of the output
    reduction: tuple[float, float]  #: input pixels per cell of the output, nominal
    transition: int | None  #: the first transition that the layer belongs to, or None
    step: tuple[float, float]  #: input pixels between neighbouring output cells
    offset: tuple[float, float]  #: input pixel at the centre of the field of output cell 0
    receptive_field: tuple[float, float]  #: input pixels


@dataclass(frozen=True)
class Transition:
    """The layers that lead from one grid to the next and change together.

    Example:
        >>> import stridesurgery, torchvision
        >>> report = stridesurgery.inspect(torchvision.models.resnet18(), 64)
        >>> report.transitions[-1]
        Transition(index=4, level=(16, 16), factor=(2, 2), layers=(16, 18))
    """

    index: int
    level: tuple[float, float]  #: the reduction of the maps before it
    factor: tuple[float, float]  #: the factor by which the reduction grows
    layers: tuple[int, ...]  #: layers that belong to no other transition come first


@dataclass(frozen=True, repr=False)
class Report(Shown):
    """The layers of a model; shows itself as a table, iterates over its layers.

    Example:
        >>> import stridesurgery, torchvision
        >>> report = stridesurgery.inspect(torchvision.models.resnet18(), 64)
        >>> [layer.name for layer in report][:3]
        ['conv1', 'maxpool', 'layer1.0.conv1']
    """

    model: str
    input_size: HW[int]
    layers: tuple[Layer, ...]
    strided: tuple[int, ...]  #: the number L of every layer with a stride
    transitions: tuple[Transition, ...]
    note: str = ""  #: the reason for missing transitions, if the reductions form no chain
    _records = "layers"

    def __iter__(self) -> Iterator[Layer]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, index: int) -> Layer:
        return self.layers[index]

    def _table(self) -> Table:
        header = (
            "L",
            "name",
            "operator",
            "kernel",
            "stride",
            "in",
            "out",
            "channels",
            "reduction",
            "field",
            "transition",
        )
        h, w = self.input_size
        title = (
            f"{self.model} at {h}x{w}: {len(self.layers)} layers, "
            f"{len(self.strided)} strided, {len(self.transitions)} transitions"
        )
        rows = [_row(layer) for layer in self.layers]
        return Table(title, header, rows, left=(1, 2), notes=[self.note] if self.note else [])


def _row(layer: Layer) -> tuple[str, ...]:
    mark = "-" if layer.transition is None else str(layer.transition)
    return (
        str(layer.index),
        layer.name,
        layer.operator,
        hw_text(layer.kernel),
        hw_text(layer.stride) if max(layer.stride) > 1 else "",
        hw_text(layer.in_grid),
        hw_text(layer.out_grid),
        str(layer.channels),
        hw_short(layer.reduction),
        hw_short(layer.receptive_field),
        mark if max(layer.stride) > 1 or layer.transition is not None else "",
    )


def inspect(
    model: nn.Module, input_size: int | HW[int] | None = None, *, at: str | None = None
) -> Report:
    """List every operator with spatial extent in running order, with its grid and geometry.

    Args:
        model: a torchvision or timm model, or any module whose forward takes an image batch (N, C,
            H, W).
        input_size: pixels, one number or (h, w); by default the size that the model was made for,
            else 224.
        at: the submodule to list, as for `eliminate`; a detector's is known.

    Returns:
        A report with `.layers`, `.strided` and `.transitions`; `print` shows it as a table.

    Raises:
        ModelError: the model is not a module, or is wrapped or compiled.
        TraceError: the forward pass cannot be recorded at this size.
        OperatorError: an entry of `register_operator` does not fit what is recorded.

    Example:
        >>> import stridesurgery, torchvision
        >>> report = stridesurgery.inspect(torchvision.models.resnet18(), 64)
        >>> len(report), report.strided
        (21, (0, 1, 6, 8, 11, 13, 16, 18))
    """
    part = part_of(model, at, input_size)
    return make_report(type(part.module).__name__, analyse(part.module, part.size))


def make_report(name: str, analysis: Analysis) -> Report:
    """Return the public report of an analysis."""
    note = ""
    try:
        levels = analysis.transitions
    except OperatorError as problem:
        levels, note = (), str(problem)
    number = {analysis.spatial_ops.index(s): i for i, s in enumerate(analysis.layers)}
    spans = {site: sum(site in lv.spatial_ops for lv in levels) for site in number}
    transitions = tuple(
        Transition(i, hw_numbers(lv.before), hw_numbers(lv.factor), _own_first(lv, number, spans))
        for i, lv in enumerate(levels)
        if lv.spatial_ops  # a dilated stride leaves a step that no layer crosses
    )
    first = {la: t.index for t in reversed(transitions) for la in t.layers}
    layers = tuple(_layer(i, site, first.get(i)) for i, site in enumerate(analysis.layers))
    strided = tuple(i for i, site in enumerate(analysis.layers) if site.is_strided)
    return Report(name, analysis.recording.size, layers, strided, transitions, note)


def _own_first(
    level: ReductionStep, number: dict[int, int], spans: dict[int, int]
) -> tuple[int, ...]:
    """Return the layers of a transition, first those that cross no other transition."""
    crossing = sorted(
        (site for site in level.spatial_ops if site in number), key=lambda site: (spans[site], site)
    )
    return tuple(number[site] for site in crossing)


def _layer(index: int, site: SpatialOp, transition: int | None) -> Layer:
    op, place = site.operator, site.after.reassembled
    rows, columns = place.geometry
    strides = (b / a for a, b in zip(site.before.reduction, site.after.reduction, strict=True))
    return Layer(
        index=index,
        name=site.name,
        operator=op.name,
        kernel=op.kernel,
        stride=tuple(int(s) for s in strides),  # type: ignore[arg-type]
        padding=(op.windows[0].padding, op.windows[1].padding),
        dilation=(op.windows[0].dilation, op.windows[1].dilation),
        in_grid=site.before.reassembled_grid(site.in_grid),
        out_grid=site.after.reassembled_grid(site.out_grid),
        channels=site.channels,
        reduction=hw_numbers(place.reduction),
        transition=transition,
        step=(rows.step, columns.step),
        offset=(rows.offset, columns.offset),
        receptive_field=(rows.receptive_field, columns.receptive_field),
    )
