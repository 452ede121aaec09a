"""A model's recording with its sites and levels: what planning and checking start from."""

from dataclasses import dataclass
from functools import cached_property
from operator import index
from typing import SupportsIndex

from torch import fx, nn

from stridesurgery._analysis.grid import Grid, GridInfo, SpatialOp
from stridesurgery._analysis.propagate import propagate
from stridesurgery._analysis.transitions import ReductionStep, find_transitions
from stridesurgery._hw import Pair
from stridesurgery._trace import Recording, copy_to_meta, default_size, is_fixed_size, record
from stridesurgery.errors import RequestError


@dataclass(frozen=True)
class Analysis:
    """A model's recorded graph with its sites and levels: what planning and checking start from."""

    recording: Recording
    spatial_ops: tuple[SpatialOp, ...]
    grid_of: dict[fx.Node, GridInfo]  # of every value that is computed from the image
    model: nn.Module  # what was analysed

    @cached_property
    def training(self) -> "Analysis":
        """The same model's analysis in train mode."""
        return analyse(self.model, self.recording.size, training=True)

    @cached_property
    def fixed_size(self) -> bool:
        """True if a graph of the model would hold the sizes of this input as constants.

        Raises:
            OperatorError: the forward code does something that a graph cannot hold.
            GridError: it computes with the batch size as a constant.
        """
        return is_fixed_size(self.recording)

    @cached_property
    def layers(self) -> tuple[SpatialOp, ...]:
        """The numbered sites; the position is L."""
        return tuple(s for s in self.spatial_ops if s.is_layer)

    @cached_property
    def transitions(self) -> tuple[ReductionStep, ...]:
        """The steps of the chain of reductions; a transition's number is its position."""
        return find_transitions(self.spatial_ops)

    def transitions_of(self, layer: int) -> tuple[int, ...]:
        """The transitions that a layer belongs to; none if it has no stride."""
        site = self.spatial_ops.index(self.layers[layer])
        return tuple(i for i, level in enumerate(self.transitions) if site in level.spatial_ops)


def analyse(model: nn.Module, input_size: int | Pair | None = None, *, training: bool = False) -> Analysis:
    """Record a model at an input size and find its sites; the model is not run and not changed."""
    meta_model = copy_to_meta(model)
    recording = record(meta_model, read_size(model, input_size), training=training)
    return Analysis(recording, *propagate(recording), model)


def read_size(model: nn.Module, input_size: int | Pair | None) -> Grid:
    """An input size argument as (h, w) pixels.

    Raises:
        RequestError: not a positive int or a pair of them.
    """
    if input_size is None:
        return default_size(model)
    sides = tuple(input_size) if isinstance(input_size, (tuple, list)) else (input_size, input_size)
    plain = all(isinstance(s, SupportsIndex) and not isinstance(s, bool) for s in sides)
    if len(sides) != 2 or not plain or min(index(s) for s in sides) < 1:
        raise RequestError(f"input_size is a number of pixels or (h, w), got {input_size!r}")
    return index(sides[0]), index(sides[1])
