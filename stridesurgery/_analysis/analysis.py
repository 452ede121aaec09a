"""A model's recording with its sites and levels: what planning and checking start from."""

from dataclasses import dataclass
from functools import cached_property
from operator import index
from typing import SupportsIndex

from torch import fx, nn

from stridesurgery._analysis.grid import Grid, Place, Site
from stridesurgery._analysis.propagate import survey
from stridesurgery._analysis.transitions import Level, find_levels
from stridesurgery._hw import Pair
from stridesurgery._trace import Traced, default_size, record, without_weights
from stridesurgery.errors import RequestError


@dataclass(frozen=True)
class Analysis:
    """A model's recorded graph with its sites and levels: what planning and checking start from."""

    traced: Traced
    sites: tuple[Site, ...]
    places: dict[fx.Node, Place]  # of every value that is computed from the image
    model: nn.Module  # what was analysed

    @cached_property
    def training(self) -> "Analysis":
        """The same model's analysis in train mode."""
        return analyse(self.model, self.traced.size, training=True)

    @cached_property
    def layers(self) -> tuple[Site, ...]:
        """The numbered sites; the position is L."""
        return tuple(s for s in self.sites if s.is_layer)

    @cached_property
    def levels(self) -> tuple[Level, ...]:
        """The steps of the chain of reductions; a transition's number is its position."""
        return find_levels(self.sites)

    def transitions_of(self, layer: int) -> tuple[int, ...]:
        """The transitions that a layer belongs to; none if it has no stride."""
        site = self.sites.index(self.layers[layer])
        return tuple(i for i, level in enumerate(self.levels) if site in level.sites)


def analyse(model: nn.Module, input_size: int | Pair | None = None, *, training: bool = False) -> Analysis:
    """Record a model at an input size and find its sites; the model is not run and not changed."""
    skeleton = without_weights(model)
    traced = record(skeleton, read_size(model, input_size), training=training)
    return Analysis(traced, *survey(traced), model)


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
