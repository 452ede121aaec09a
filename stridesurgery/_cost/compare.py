"""Compare surgeries with each other, and with the larger input of equal cost."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, SupportsIndex

from torch import nn

from stridesurgery._analysis import Analysis, Feature, analyse, part_of
from stridesurgery._cost.cost import Cost, count
from stridesurgery._cost.latency import Timing, in_turn, inference, training_step
from stridesurgery._features import Tap, TapName, feature_of, find_taps
from stridesurgery._hw import HW, hw_short, hw_text
from stridesurgery._node import info
from stridesurgery._rewrite import eliminate, enlarged, knows_positions, requested
from stridesurgery._tables import METRICS, Shown, Table, gmac, mib, plain, ratio
from stridesurgery._trace import copy_to_meta, one_image
from stridesurgery.errors import RequestError, SurgeryError
from stridesurgery.surgery import AXES, Surgery

MENDINGS = 8  # corrections of the equal-cost input size, at most


@dataclass(frozen=True)
class Row:
    """One network at one input size.

    Example:
        >>> import timm, stridesurgery as ss
        >>> rows = ss.compare(timm.create_model("resnet18"), "S1L16", taps="layer4", input_size=64)
        >>> row = rows["S1L16"]
        >>> row.grids, row.maps[0].reduction, row.cost.macs
        (((4, 4),), (16, 16), 249221120)
    """

    name: str  #: "as is", the surgery, or the input size of the untouched network
    surgery: Surgery | None
    input_size: HW[int]
    maps: tuple[Feature, ...]  #: channels, reduction and receptive field at the taps
    grids: tuple[HW[int], ...]  #: cells of these maps, (rows, columns)
    cost: Cost
    latency: Timing | None = None  #: measured on one image
    training_step: Timing | None = None  #: measured, forward and backward on two images

    def to_dict(self) -> dict[str, Any]:
        """Return the row as plain data, the cost in its totals."""
        maps = zip(self.maps, self.grids, strict=True)
        return {
            "name": self.name,
            "surgery": plain(self.surgery),
            **self.cost.totals(),
            "maps": [{**plain(feature), "grid": list(grid)} for feature, grid in maps],
            "latency": plain(self.latency),
            "training_step": plain(self.training_step),
        }


@dataclass(frozen=True, repr=False)
class Comparison(Shown):
    """Rows of the compared networks, the untouched one first.

    It shows itself as a table of ratios to the untouched network. A row is found by number or by
    name.

    Example:
        >>> import timm, stridesurgery as ss
        >>> rows = ss.compare(timm.create_model("resnet18"), "S1L16", taps="layer4", input_size=64)
        >>> print(rows)
        ResNet at 64x64: 11.69 M parameters, 0.149 GMAC, activations ...
        >>> rows["S1L16"].cost.macs / rows[0].cost.macs
        1.67...
    """

    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()  #: the comparisons that could not be made, and why
    _records = "rows"

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, name: SupportsIndex | str) -> Row:
        if not isinstance(name, str):
            return self.rows[name]
        found = [row for row in self.rows if row.name == name]
        if not found:
            raise KeyError(f"{name!r}; the rows are {', '.join(row.name for row in self.rows)}")
        return found[0]

    def _table(self) -> Table:
        base = self.rows[0]
        columns: list[tuple[str, Callable[[Row], str]]] = [
            ("", lambda row: row.name),
            ("maps", lambda row: " ".join(hw_text(grid) for grid in row.grids)),
            ("reduction", lambda row: " ".join(hw_short(m.reduction) for m in row.maps)),
            ("field", lambda row: " ".join(hw_short(m.geometry.receptive_field) for m in row.maps)),
            *(
                (
                    title,
                    lambda row, name=name: ratio(getattr(row.cost, name), getattr(base.cost, name)),
                )
                for name, title in (
                    ("parameters", "parameters"),
                    *((m.name, m.title) for m in METRICS),
                )
            ),
        ]
        if base.latency is not None:
            columns += [
                ("latency", lambda row: _timed(row.latency, base.latency)),
                ("training step", lambda row: _timed(row.training_step, base.training_step)),
            ]
        header = [title for title, _ in columns]
        cells = [[text(row) for _, text in columns] for row in self.rows]
        cost = base.cost
        title = (
            f"{cost.model} at {hw_text(base.input_size)}: {cost.parameters / 1e6:.2f} M "
            f"parameters, {gmac(cost.macs)}, activations {mib(cost.activation_bytes)}, peak "
            f"{mib(cost.peak_bytes)}; the rest as ratios"
        )
        return Table(title, header, cells, left=range(4), notes=self.notes)


def _timed(timing: Timing | None, base: Timing | None) -> str:
    if timing is None or base is None:
        return "-"
    first, third = timing.spread
    times = f"{1000 * timing.median:.1f} ms, {1000 * first:.1f} to {1000 * third:.1f}"
    return f"{timing.ratio(base):.2f} ({times})"


def compare(
    model: nn.Module,
    surgeries: str | Surgery | Iterable[str | Surgery],
    input_size: int | HW[int] | None = None,
    *,
    taps: Sequence[TapName] | TapName | None = None,
    measure: bool = False,
    rounds: int = 20,
    at: str | None = None,
) -> Comparison:
    """Compare surgeries of a model, each with its equal-cost rival.

    The rival is the untouched model on a larger input, at about the compute of the surgery.

    Args:
        model: a torchvision or timm model, or any module whose forward takes an image batch
            (N, C, H, W).
        surgeries: names such as "S1L0", or `Surgery` values where they need options.
        input_size: pixels, one number or (h, w); by default what the model was made for, else 224.
        taps: the maps of the untouched model to compare, as for `features`; None: the last of every
            reduction.
        measure: also time inference on one image and a training step on two images. The networks
            take turns, on the model's own device. The training step trains all parameters.
        rounds: number of timings of each network.
        at: the submodule to compare, as for `eliminate`; a detector's is known.

    Returns:
        One row each for the untouched model, every surgery, and every larger input. The larger
        input is the size whose compute is closest to the surgery's. Only sizes are considered that
        the total stride divides as well as it divides `input_size`, or its whole multiples where
        positions have to follow, as the surgery says. Nothing is run unless `measure` is set.

    Raises:
        SurgeryError: a surgery or a tap is refused, as by `eliminate` and `features`.

    Example:
        >>> import timm, stridesurgery as ss
        >>> rows = ss.compare(timm.create_model("resnet18"), "S1L16", taps="layer4", input_size=64)
        >>> [(row.name, row.grids) for row in rows]
        [('as is', ((2, 2),)), ('S1L16', ((4, 4),)), ('input 96x96', ((3, 3),))]
    """
    if isinstance(rounds, bool) or not isinstance(rounds, int) or rounds < 1:
        raise RequestError(
            f"rounds, how often to time each network, is a positive int, got {rounds!r}"
        )
    part = part_of(model, at, input_size)
    if part.at:
        asked = [part.inside(item) for item in _asked(surgeries)]
        found = compare(part.module, asked, part.size, taps=taps, measure=measure, rounds=rounds)
        outside = (replace(r, surgery=r.surgery and part.outside(r.surgery)) for r in found)
        return replace(found, rows=tuple(outside))
    meta_model = copy_to_meta(model)
    base = analyse(meta_model, input_size)
    size = base.recording.size
    tapped = find_taps(base, taps)
    plans = dict.fromkeys(requested(meta_model, item, None, size)[0] for item in _asked(surgeries))
    rows, networks = [_row("as is", None, base, tapped)], [model]
    for surgery in plans:
        operated = eliminate(model if measure else meta_model, surgery)
        rows.append(_row(describe(surgery), surgery, analyse(operated, size), tapped))
        networks.append(operated)
    notes: list[str] = []
    for surgery, row in zip(plans, rows[1:], strict=True):
        try:
            rival = _rival(row, base, tapped)
        except SurgeryError as refusal:
            notes.append(
                f"the untouched model has no larger input to stand beside {row.name}: {refusal}"
            )
            continue
        if all(rival.input_size != other.input_size for other in rows):
            rows.append(rival)
            networks.append(enlarged(model, base, rival.input_size, surgery.positions))
    return Comparison(
        tuple(_timed_rows(rows, networks, base, rounds) if measure else rows), tuple(notes)
    )


def _asked(surgeries: Any) -> list[str | Surgery]:
    asked = [surgeries] if isinstance(surgeries, (str, Surgery)) else surgeries
    listed = (
        list(asked) if isinstance(asked, Iterable) and not isinstance(asked, bytes) else [asked]
    )
    for item in listed:
        if not isinstance(item, (str, Surgery)):
            raise RequestError(
                f"surgeries are names such as 'S1L0' or Surgery values, got {item!r}"
            )
    return listed


def describe(surgery: Surgery) -> str:
    """Describe a surgery in a few words: its name and the options that are not default."""
    words = [surgery.name]
    if surgery.stride != 1:
        words.append(f"to stride {surgery.stride}")
    if surgery.axis != "hw":
        words.append({"h": "rows only", "w": "columns only"}[surgery.axis])
    if surgery.pool != "remove":
        words.append("pools kept")
    if surgery.dilate:
        words.append("dilated")
    if surgery.restore_at is not None:
        words.append(f"restored at {surgery.restore_at}")
    if surgery.form == "graph":
        words.append("as a graph")
    return ", ".join(words)


def _row(name: str, surgery: Surgery | None, analysis: Analysis, taps: Sequence[Tap]) -> Row:
    now = {info(node).key: node for node in analysis.grid_of}
    maps, grids = [], []
    for tap in taps:
        place = analysis.grid_of[now[info(tap.node).key]]
        maps.append(feature_of(replace(tap, place=place)))
        assert place.grid is not None
        grids.append(place.reassembled_grid(place.grid))
    return Row(name, surgery, analysis.recording.size, tuple(maps), tuple(grids), count(analysis))


def _rival(row: Row, base: Analysis, taps: Sequence[Tap]) -> Row:
    """Find the input size at which the untouched network's compute is closest to a surgery's.

    The input grows along the same axes as the surgery. Compute grows with the area, except in
    attention (faster) and classifiers (not at all). So the size is corrected until it no longer
    changes. What follows the grid, as the surgery asks, does so on whole multiples of the size.
    """
    assert row.surgery is not None
    along, start = AXES[row.surgery.axis], base.recording.size
    total = [max(int(place.reduction[i]) for place in base.grid_of.values()) for i in (0, 1)]
    if row.surgery.positions != "refuse" and knows_positions(base.model):
        total = list(start)
    steps = [math.gcd(side, stride) for side, stride in zip(start, total, strict=True)]
    tried: dict[HW[int], Row] = {}
    factor = (row.cost.macs / (count(base).macs or 1)) ** (1 / sum(along))
    while True:
        rows, columns = (
            max(side, round(side * factor / step) * step) if grows else side
            for side, step, grows in zip(start, steps, along, strict=True)
        )
        if (rows, columns) in tried or len(tried) == MENDINGS:
            return min(
                tried.values(),
                key=lambda r: abs(math.log(max(r.cost.macs, 1) / max(row.cost.macs, 1))),
            )
        larger = enlarged(base.recording.model, base, (rows, columns), row.surgery.positions)
        analysis = analyse(larger, (rows, columns))
        tried[rows, columns] = _row(f"input {hw_text((rows, columns))}", None, analysis, taps)
        factor *= (row.cost.macs / (tried[rows, columns].cost.macs or 1)) ** (1 / sum(along))


def _timed_rows(
    rows: Sequence[Row], networks: Sequence[nn.Module], base: Analysis, rounds: int
) -> list[Row]:
    channels = one_image(base.recording).shape[1]
    pairs = list(zip(rows, networks, strict=True))
    once = in_turn([inference(net, (1, channels, *row.input_size)) for row, net in pairs], rounds)
    steps = in_turn(
        [training_step(net, (2, channels, *row.input_size)) for row, net in pairs], rounds
    )
    return [
        replace(r, latency=one, training_step=two)
        for r, one, two in zip(rows, once, steps, strict=True)
    ]
