"""Analyse a model: its recording with its spatial operators and transitions."""

from dataclasses import dataclass
from functools import cached_property
from operator import index
from typing import SupportsIndex

from torch import fx, nn

from stridesurgery._analysis.grid import GridInfo, SpatialOp
from stridesurgery._analysis.propagate import propagate
from stridesurgery._analysis.transitions import ReductionStep, find_transitions
from stridesurgery._hw import HW
from stridesurgery._node import shape_of
from stridesurgery._trace import Recording, copy_to_meta, default_size, is_fixed_size, record
from stridesurgery.errors import RequestError


@dataclass(frozen=True)
class Analysis:
    """A model's recorded graph with its spatial operators and transitions.

    Planning and checking start from it.
    """

    recording: Recording
    spatial_ops: tuple[SpatialOp, ...]
    grid_of: dict[fx.Node, GridInfo]  # for every value that is computed from the image
    model: nn.Module  # the model that was analysed

    @cached_property
    def training(self) -> "Analysis":
        """The analysis of the same model in train mode."""
        return analyse(self.model, self.recording.size, training=True)

    @cached_property
    def fixed_size(self) -> bool:
        """Tell whether a graph of the model would hold the sizes of this input as constants.

        Raises:
            OperatorError: the forward code does something that a graph cannot hold.
            GridError: the forward code computes with the batch size as a constant.
        """
        return is_fixed_size(self.recording)

    @cached_property
    def layers(self) -> tuple[SpatialOp, ...]:
        """The numbered spatial operators; the position in the tuple is L."""
        return tuple(s for s in self.spatial_ops if s.is_layer)

    @cached_property
    def transitions(self) -> tuple[ReductionStep, ...]:
        """The steps of the chain of reductions; a transition's number is its position."""
        return find_transitions(self.spatial_ops)

    def is_in_head(self, name: str) -> bool:
        """Tell whether a parameter or module, by name, takes part behind all layers and tokens."""
        nodes = list(self.recording.graph.nodes)
        users = [i for i, n in enumerate(nodes) if f"{name}.".startswith(f"{n.target}.")]
        tokens = [node for node in self.grid_of if len(shape_of(node) or ()) == 3]
        before = {site.node for site in self.layers}.union(tokens)
        last = max((i for i, n in enumerate(nodes) if n in before), default=0)
        return bool(users) and users[0] > last

    def transitions_of(self, layer: int) -> tuple[int, ...]:
        """Return the numbers of the transitions of a layer, none if it has no stride."""
        site = self.spatial_ops.index(self.layers[layer])
        return tuple(i for i, level in enumerate(self.transitions) if site in level.spatial_ops)


def analyse(
    model: nn.Module, input_size: int | HW[int] | None = None, *, training: bool = False
) -> Analysis:
    """Record a model at an input size and find its spatial operators.

    The model is not run and not changed.
    """
    meta_model = copy_to_meta(model)
    recording = record(meta_model, read_size(model, input_size), training=training)
    return Analysis(recording, *propagate(recording), model)


def read_size(model: nn.Module, input_size: int | HW[int] | None) -> HW[int]:
    """Return an input size argument as (h, w) in pixels.

    Raises:
        RequestError: the size is neither a positive int nor a pair of them.
    """
    if input_size is None:
        return default_size(model)
    sides = tuple(input_size) if isinstance(input_size, (tuple, list)) else (input_size, input_size)
    plain = all(isinstance(s, SupportsIndex) and not isinstance(s, bool) for s in sides)
    if len(sides) != 2 or not plain or min(index(s) for s in sides) < 1:
        raise RequestError(f"input_size is a number of pixels or (h, w), got {input_size!r}")
    return index(sides[0]), index(sides[1])
