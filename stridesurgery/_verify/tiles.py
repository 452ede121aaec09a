"""Compare the maps of a sparse path with those of the whole fine path, in wanted tiles."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import partial

import torch
from torch import Tensor

from stridesurgery._features import Tiling, with_choice
from stridesurgery._hw import HW
from stridesurgery._trace import RewrittenModel
from stridesurgery._verify.operators import difference
from stridesurgery._verify.runs import run_operated
from stridesurgery.errors import SurgeryError


@dataclass(frozen=True)
class WholeMap:
    """A map as a network computes it."""

    value: Tensor
    reduction: HW[Fraction]


def check_tiles(
    sparse: RewrittenModel, whole: Mapping[str, WholeMap], image: Tensor
) -> Iterator[tuple[str, str, float]]:
    """Compare every map of the fine path with all tiles chosen, and with every other one.

    Args:
        sparse: what `sparse_path` returned.
        whole: the maps of the whole fine path, by name.
        image: (N, C, h, w).

    Yields:
        The name, the finding in words, and the largest relative difference.

    Raises:
        SurgeryError: a map differs although the margin is exact.
    """
    tiling: Tiling = sparse.tiling  # type: ignore[assignment]
    for which in ("all tiles", "every other tile"):
        chosen = _pixels(image, tiling.tile, which == "all tiles")
        asked = chosen if tiling.budget is None else chosen.float()
        maps = run_operated(with_choice(sparse, partial(_given, asked)), image).value
        for name, map_ in whole.items():
            inside, wanted = maps["tiles"], map_.value
            for axis, reduction in enumerate(map_.reduction, 1):
                inside = inside.repeat_interleave(int(tiling.tile / reduction), axis)
            inside = inside[:, None, : wanted.shape[2], : wanted.shape[3]].expand_as(wanted)
            error = difference(maps[name][inside], wanted[inside])
            exact = bool(maps["tiles"].all()) or tiling.margin >= tiling.exact_margin
            if exact and not error <= 1e-4:
                raise SurgeryError(f"{name} in tiles differs from the whole one by {error:.2g}")
            margin = f"margin {tiling.margin} px, exact from {tiling.exact_margin:g} px"
            yield name, f"{which}, {margin}: largest relative difference {error:.1g}", error


def _given(chosen: Tensor, maps: dict[str, Tensor]) -> Tensor:
    return chosen


def _pixels(image: Tensor, tile: int, every: bool) -> Tensor:
    """Return the pixels (N, h, w) of all tiles, or of every other one."""
    rows, columns = (torch.arange(side) // tile for side in image.shape[2:])
    chosen = (rows[:, None] + columns) % 2 == 0
    return (chosen | every).expand(image.shape[0], -1, -1)
