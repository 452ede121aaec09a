"""Decides where dilated convolutions can stand for phases: where maps are made of windows alone."""

from collections.abc import Callable

from torch import fx

from stridesurgery._analysis import Analysis, GridInfo
from stridesurgery._node import called, info, shape_of, tensors_in
from stridesurgery.ops import DILATABLE, MODULES, dilated, is_per_cell

IsFiner = Callable[[GridInfo], bool]


def reading_whole_maps(analysis: Analysis, is_finer: IsFiner) -> list[fx.Node] | None:
    """Return the operators that read whole finer maps and pool them (squeeze-excite, the head).

    Given the original's cells they compute what they did, in the original.
    None: a finer map is made by an operator without a dilated form, such as attention.

    Args:
        analysis: of the original.
        is_finer: tells whether a value at a place lies beyond the first eliminated stride.
    """
    recording = analysis.recording
    if recording.adds_to_answer or recording.compares:
        return None
    by_window, reading = _Windowed(analysis, is_finer), list[fx.Node]()
    for node in recording.graph.nodes:
        reads_map = any(source in by_window.nodes for source in node.all_input_nodes)
        place = analysis.grid_of.get(node)
        if place is not None and is_finer(place) and not place.pooled:
            if not by_window.add(node):
                return None
        elif reads_map and node.op != "output":
            if place is None or not place.pooled:  # it reads a size, or writes into the map
                return None
            reading.append(node)
    return reading


class _Windowed:
    """The finer maps of which every cell is made from a cell, or a window, of maps like it."""

    def __init__(self, analysis: Analysis, is_finer: IsFiner) -> None:
        self.analysis, self.is_finer = analysis, is_finer
        self.sites = {site.node: site for site in analysis.spatial_ops}
        self.nodes: set[fx.Node] = set()

    def add(self, node: fx.Node) -> bool:
        """Add a finer map; return False if it is none of these."""
        site = self.sites.get(node)
        if site is not None and not self.is_finer(site.before):  # the first eliminated one
            found = not site.local
        else:
            found = not info(node).hooked and self._sources_fit(node) and self._fits(node)
        if found:
            self.nodes.add(node)
        return found

    def _sources_fit(self, node: fx.Node) -> bool:
        """Return True if a node reads only such maps, values before them, and channel numbers."""
        for source in tensors_in([node.args, node.kwargs]):
            place, shape = self.analysis.grid_of.get(source), shape_of(source) or ()
            if place is None and len(shape) > 1 and max(shape[-2:]) > 1:
                return False
            if place is not None and source not in self.nodes:
                # what is pooled from finer maps is the original's (squeeze-excite's gate)
                if not place.pooled or (self.is_finer(place) and not _is_of_channels(shape)):
                    return False
        return True

    def _fits(self, node: fx.Node) -> bool:
        site = self.sites.get(node)
        if node.op != "call_module":
            if called(node) in ("cat", "concat"):
                sides = {(shape_of(s) or ())[-2:] for s in (node, *tensors_in(node.args))}
                return len(sides) == 1
            return site is None and is_per_cell(node, None)
        module = self.analysis.recording.module(node)
        if type(module) in DILATABLE:
            operator = site.operator if site else MODULES[type(module)].read(module)
            zeros = getattr(module, "padding_mode", "zeros") == "zeros"
            return (
                zeros and (site is None or not site.local) and dilated(operator, (2, 2)) is not None
            )
        return site is None and is_per_cell(node, module)


def _is_of_channels(shape: tuple[int, ...]) -> bool:
    """Return True if a value has one number a channel, as a gate has."""
    return len(shape) == 4 and sorted(shape[1:])[:2] == [1, 1]
