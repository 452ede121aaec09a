"""Two paths through one set of weights: the finer network and the network as it was."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from torch import nn

from stridesurgery._analysis import FeatureInfo, analyse
from stridesurgery._features.dual_outputs import (
    Taps,
    as_sampled,
    concatenated_by_reduction,
    find_outputs,
    joint_feature,
    phase_outputs,
    taps_by_path,
    with_outputs,
)
from stridesurgery._features.extract import (
    finished,
)
from stridesurgery._features.join import join, split_modules
from stridesurgery._hw import HW
from stridesurgery._node import info
from stridesurgery._rewrite import bound, check_alike, operate, plan, requested
from stridesurgery._trace import RewrittenModel
from stridesurgery.errors import RequestError
from stridesurgery.surgery import Axis, Options, Pool, Positions, Surgery


def dual_path(
    model: nn.Module,
    S: int | str | Surgery | None = None,
    L: int | str | Sequence[int | str] | None = None,
    *,
    taps: Taps | Mapping[str, Taps] = None,
    combine: Literal["split", "concat"] = "split",
    sampler: Literal["slice", "original"] = "slice",
    large_norm: Literal["shared", "frozen"] = "shared",
    share: bool = True,
    stride: int = Options.stride,
    axis: Axis = Options.axis,
    pool: Pool = Options.pool,
    dilate: bool = Options.dilate,
    positions: Positions = Options.positions,
    forward_kwargs: dict[str, Any] | None = Options.forward_kwargs,
    input_size: int | HW[int] | None = None,
) -> RewrittenModel:
    """Eliminate strides, and run the later layers again on the maps sampled back to the old grid.

    The small-object path is `eliminate`'s network. At each eliminated layer the large-object path
    samples the old grid and goes through the same modules; up to the first of them, its norm and
    activation included, both are one.

    Args:
        model: as for `eliminate`.
        S: how many strides to eliminate, or a name such as "S1L0", or a `Surgery`; as for
            `eliminate`.
        L: at which layers; as for `eliminate`.
        taps: which maps, as for `features` and numbered as in `model`: the same for both paths, or
            {"small": ..., "large": ...}; None: of each path the last map of every reduction.
        combine: "split" returns the maps of both paths as "small.11", "large.11"; "concat" one map
            per reduction, the maps of equal reduction concatenated over channels, small before
            large, as "small.13+large.11".
        sampler: "slice" takes every k-th cell of the finer map (the paper); "original" runs the
            original operator where that is another thing: at removed pools. With it the large path
            is the pretrained network.
        large_norm: "shared": in train mode both paths normalise by their batch and update the
            running statistics (the paper); "frozen": the large path normalises by the running
            statistics, as the small path has left them, and does not update them. The norm of the
            first eliminated layer runs once, for both paths.
        share: False: the large path runs the first eliminated layer anew, at its old stride, rather
            than sample the finer map. For `sparse_path`, which then makes that map in tiles alone.
        stride: what remains of each stride; must divide it.
        axis: rows ("h"), columns ("w") or both ("hw").
        pool: whether a pool whose stride goes is removed ("remove", as in the paper) or runs at
            stride 1 ("keep").
        dilate: keep the features of the small path, as `eliminate` does; the large path is then a
            part of it (the first phase) and costs nothing. Both paths share one run of every norm.
        positions: what becomes of tables of positions in the small path; as for `eliminate`.
        forward_kwargs: arguments that `forward` gets besides the image; as for `eliminate`.
        input_size: pixels at which the maps are checked, one number or (h, w); by default the
            model's own.

    Returns:
        A graph module in the mode of the original, with its state_dict, as `features` returns it.
        In eval mode convolutions make the large path the original network, whatever the sampler.

    Raises:
        RequestError: the request does not fit the model; taps that are no maps.
        OperatorError: an operator that would have to change is not understood, or a norm cannot be
            frozen.
        GridError: a map would leave the grid; maps to concatenate differ in size.
        ModelError: not a plain module: wrapped, compiled, scripted.
        TraceError: the forward pass cannot be recorded at this size.

    Example:
        >>> import timm, torch, stridesurgery as ss
        >>> model = timm.create_model("resnet18").eval()
        >>> both = ss.dual_path(model, "S1L16", taps="layer4", input_size=64)
        >>> {name: tuple(map_.shape) for name, map_ in both(torch.rand(1, 3, 64, 64)).items()}
        {'small.layer4': (1, 512, 4, 4), 'large.layer4': (1, 512, 2, 2)}
    """
    _check(combine, "combine", ("split", "concat"))
    _check(sampler, "sampler", ("slice", "original"))
    _check(large_norm, "large_norm", ("shared", "frozen"))
    asked = taps_by_path(taps)
    options = Options(
        stride=stride,
        axis=axis,
        pool=pool,
        dilate=dilate,
        positions=positions,
        forward_kwargs=forward_kwargs,
    )
    model = bound(model, S if isinstance(S, Surgery) else options)
    surgery, analysis = requested(model, S, L, input_size, options)
    surgery = replace(surgery, form="graph")
    if surgery.restore_at is not None:
        raise RequestError("a dual path samples the old grid itself; leave restore_at out")
    planned = plan(analysis, surgery)
    fine = operate(model, surgery, analysis=analysis)
    assert isinstance(fine, RewrittenModel)
    small = analyse(fine, analysis.recording.size)
    outputs = find_outputs(asked, analysis, small, planned, sampler)
    check_alike(
        analysis.recording.graph, analysis.training.recording.graph, [out.key for out in outputs]
    )
    if surgery.dilate:
        joined = {mode: phase_outputs(fine, small, mode, outputs) for mode in (True, False)}
    else:
        split_modules(fine, model, planned)
        joined = {
            a.recording.training: join(fine, a, planned, sampler, large_norm, share)
            for a in (analysis.training, analysis)
        }
    groups = (
        concatenated_by_reduction(outputs) if combine == "concat" else [(out,) for out in outputs]
    )
    graphs = {mode: with_outputs(fine, joined[mode], groups) for mode in (True, False)}
    result = finished(
        fine,
        graphs[True],
        graphs[False],
        fine.only_at,
        FeatureInfo(tuple(map(joint_feature, groups))),
    )
    if sampler == "slice" and any(
        window.tap for change in planned.changes for window in change.operator.windows
    ):
        # a sliced map does not see what the original's removed pool sees
        grid_of = {
            info(n).key: place
            for n, place in analyse(result, analysis.recording.size).grid_of.items()
        }
        groups = [
            tuple(as_sampled(out, joined[False], grid_of) for out in group) for group in groups
        ]
        result.feature_info = FeatureInfo(tuple(map(joint_feature, groups)))
    return result


def _check(value: str, name: str, known: Sequence[str]) -> None:
    if value not in known:
        raise RequestError(f"{name} is {' or '.join(map(repr, known))}, got {value!r}")
