"""Compare every returned map with that of the network it comes from, on random images."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stridesurgery._analysis import Feature, Source, analyse
from stridesurgery._features import Tap, tapped
from stridesurgery._node import Key, info
from stridesurgery._rewrite import refreshed
from stridesurgery._trace import RewrittenModel, copied_model, rewritten
from stridesurgery._verify.operators import difference
from stridesurgery._verify.runs import check_buffers, run, run_operated
from stridesurgery._verify.tiles import WholeMap, check_tiles
from stridesurgery.errors import GridError, RequestError, SurgeryError
from stridesurgery.ops import sample


@dataclass(frozen=True)
class MapCheck:
    """The result for one returned map, or for one part of a concatenated map."""

    name: str
    what: str  #: the finding, in words
    error: float | None  #: largest relative difference; None if nothing was compared


def check_maps(
    original: nn.Module,
    fine: nn.Module,
    returning: RewrittenModel,
    image: Tensor,
    *,
    dilated: bool = False,
) -> tuple[MapCheck, ...]:
    """Compare the maps that a model returns in eval mode with those of their source networks.

    Args:
        original: the model before the surgery.
        fine: the model that `eliminate` returns.
        returning: the model that `features` or `dual_path` returned.
        image: (N, C, h, w); copies of all three models are run on it.
        dilated: True to require that a finer map, sampled on the old grid, is the original's.

    Raises:
        SurgeryError: a map has another name or other values than expected.
        GridError: a map has another size, reduction, geometry or number of channels than expected.
        RequestError: the maps come from yet another network.
    """
    features = returning.feature_info.features
    sources = [source for feature in features for source in feature.sources]
    result = run_operated(returning, image)
    check_buffers(result, run(original, image))
    returned = result.value
    with torch.no_grad():
        before, after = _maps(original, sources, image), _maps(fine, sources, image)
    tiled = hasattr(returning, "tiling")
    if list(returned) != [feature.name for feature in features] + ["tiles"] * tiled:
        raise SurgeryError(
            f"the maps that are returned are {', '.join(returned)}, which feature_info does not say"
        )
    if tiled:
        small = [feature for feature in features if feature.name.startswith("small.")]
        whole = {f.name: after[f.sources[0].key] for f in small}
        in_tiles = tuple(MapCheck(*found) for found in check_tiles(returning, whole, image))
        features = tuple(feature for feature in features if feature not in small)
        sources = [source for feature in features for source in feature.sources]
    parts = [part for feature in features for part in _split(returned[feature.name], feature)]
    claimed = [feature.reduction for feature in features for _ in feature.sources]
    found = tuple(
        _check(*each, before, after, dilated) for each in zip(sources, parts, claimed, strict=True)
    )
    if tiled:
        return (*in_tiles, *found)
    _check_geometry(returning, image)
    return found


def _check_geometry(returning: RewrittenModel, image: Tensor) -> None:
    """Compare the geometry in `feature_info` with the one computed from the graph."""
    info = returning.feature_info
    for old, new in zip(
        info.features,
        refreshed(info, returning, (image.shape[2], image.shape[3])).features,
        strict=True,
    ):
        if repr(old.geometry) != repr(new.geometry):  # compared as text, where nan equals nan
            raise GridError(
                f"feature_info says of map {old.name} {old.geometry}, and it is {new.geometry}"
            )


def _split(value: Tensor, feature: Feature) -> Sequence[Tensor]:
    """Split a map into the parts that were concatenated."""
    axis = feature.sources[0].channel_axis
    if value.shape[axis] != feature.channels:
        raise GridError(
            f"map {feature.name} has {value.shape[axis]} channels instead of {feature.channels}"
        )
    return value.split([source.channels for source in feature.sources], axis)


def _maps(network: nn.Module, sources: Sequence[Source], image: Tensor) -> dict[Key, WholeMap]:
    """Compute the maps of a network at those sources that it contains."""
    analysis = analyse(network, (image.shape[2], image.shape[3]))
    nodes = {info(node).key: node for node in analysis.grid_of}
    taps = {
        s.key: Tap(
            str(s.key),
            "",
            nodes[s.key],
            analysis.grid_of[nodes[s.key]],
            s.channels,
            s.channel_axis,
            s.tokens,
        )
        for s in sources
        if s.key in nodes
    }
    graph = tapped(analysis, list(taps.values()))
    values = rewritten(copied_model(network, apart=True), graph, graph, None).eval()(image.clone())
    return {
        key: WholeMap(values[tap.name], tap.place.reassembled.reduction)
        for key, tap in taps.items()
    }


def _check(
    source: Source,
    found: Tensor,
    claimed: tuple[float, float],
    before: dict[Key, WholeMap],
    after: dict[Key, WholeMap],
    dilated: bool,
) -> MapCheck:
    if source.network == "sliced":
        way_out = "sampler='original' makes it the original's"
        return MapCheck(
            source.name, f"not compared: it is a slice where the original pools; {way_out}", None
        )
    operated = source.network == "operated"
    whose = "eliminate's" if operated else "the original's"
    wanted = (after if operated else before).get(source.key)
    if wanted is None:
        raise RequestError(
            f"map {source.name} is not one of the network that this surgery gives: verify what "
            "`features` or `dual_path` made of the model that `eliminate` took or gave"
        )
    if claimed != tuple(map(float, wanted.reduction)):
        has = tuple(map(float, wanted.reduction))
        raise GridError(
            f"feature_info gives map {source.name} the reduction {claimed}, and it has {has}"
        )
    error, what = _error(source.name, found, wanted.value, whose), f"equals {whose}"
    if operated and dilated and source.key in before:
        old = before[source.key]
        rows, columns = (int(a / b) for a, b in zip(old.reduction, wanted.reduction, strict=True))
        last = -1 if source.channel_axis == 1 else -2
        sampled = sample(found, (rows, columns), last)
        error = max(error, _error(source.name, sampled, old.value, "the original's on its grid"))
        what += f", [::{rows}, ::{columns}] the original's"
    return MapCheck(source.name, f"{what}, largest relative difference {error:.1g}", error)


def _error(name: str, found: Tensor, wanted: Tensor, whose: str) -> float:
    """Return the largest relative difference of two maps.

    Raises:
        GridError: the maps differ in size.
        SurgeryError: the maps differ in value by more than rounding.
    """
    if found.shape != wanted.shape:
        raise GridError(
            f"map {name} is {tuple(found.shape)} where {whose} is {tuple(wanted.shape)}"
        )
    error = difference(found, wanted)
    if not error <= (1e-4 if wanted.dtype in (torch.float32, torch.float64) else 5e-2):
        raise SurgeryError(f"map {name} differs from {whose} by {error:.2g} (relative)")
    return error
