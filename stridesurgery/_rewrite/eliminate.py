"""The one place that edits: a plan goes in, an operated copy of the model comes out."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from stridesurgery._analysis import Analysis, FeatureInfo, analyse
from stridesurgery._hw import Pair
from stridesurgery._rewrite.check_modes import _check_modes, _check_output_kind, check_alike, is_fixed_size
from stridesurgery._rewrite.check_shapes import GridCheck, check_grid
from stridesurgery._rewrite.dilate import check_phases, phased
from stridesurgery._rewrite.edit import _edited, _known_changes, _rewrite
from stridesurgery._rewrite.plan import Plan, plan
from stridesurgery._rewrite.records import check_intermediates, refreshed
from stridesurgery._rewrite.request import requested
from stridesurgery._trace import Recording, RewrittenModel, copied_model, copy_to_meta, record, rewritten
from stridesurgery.errors import GridError, OperatorError, RequestError, TraceError
from stridesurgery.surgery import Surgery


def eliminate(
    model: nn.Module,
    S: int | str | Surgery | None = None,
    L: int | str | Sequence[int | str] | None = None,
    *,
    stride: int = 1,
    axis: str = "hw",
    pool: str = "remove",
    dilate: bool = False,
    restore_at: int | str | None = None,
    form: str = "module",
    input_size: int | Pair | None = None,
    inplace: bool = False,
) -> nn.Module:
    """Eliminate strides of a model and keep every weight; all maps after an eliminated stride become k times larger.

    Args:
        model: a torchvision or timm model, or any module whose forward takes an image batch (N, C, H, W).
        S: how many strides (transitions) to eliminate; alone, the first S. Or a name such as "S2L4-6", or a `Surgery`,
            carried out with all those that it follows.
        L: at which layers: numbers as `inspect` shows them, or module names; one layer of each transition.
        stride: what remains of each stride; must divide it.
        axis: rows ("h"), columns ("w") or both ("hw").
        pool: whether a pool whose stride goes is removed ("remove", as in the paper) or runs at stride 1 ("keep").
        dilate: keep the pretrained features: the finer map's phases go through the unchanged later layers, so that
            every later map sampled `[::k, ::k]` is the original's, and so is the answer. Returns a rewritten graph;
            `features` takes its finer maps out. Pools run at stride 1. The cells are evenly spaced up to the next
            stride that stays: dilate the last strides before the maps that are wanted.
        restore_at: a later strided layer whose transition takes the eliminated strides on (a convolution its stride, a
            pool its stride and window), so that the maps after it keep their sizes.
        form: "module" returns a copy of the model with its modules edited (a rewritten graph where the stride is
            written in the forward code); "graph" returns the rewritten `torch.fx.GraphModule` for any model.
        input_size: pixels at which the maps are checked, one number or (h, w); by default the model's own.
        inplace: edit `model` itself and return it; it is untouched if this raises.

    Returns:
        The operated model in the mode of the original, with the same state_dict keys and values, and the
        `Surgery` attached as `.surgery`.

    Raises:
        RequestError: the request does not fit the model.
        OperatorError: an operator that would have to change is not understood.
        GridError: a map would leave the grid, or a parameter fixes its size.
        ModelError: not a plain module: wrapped, compiled, scripted.
        TraceError: the forward pass cannot be recorded at this size.
    """
    options: dict[str, Any] = {
        "stride": stride,
        "axis": axis,
        "pool": pool,
        "dilate": dilate,
        "restore_at": restore_at,
        "form": form,
    }
    if isinstance(S, Surgery) and S.after is not None:
        if inplace:  # tried without weights first: the model is untouched if a later surgery is refused
            eliminate(copy_to_meta(model), S, L, input_size=input_size, **options)
        model = eliminate(model, S.after, input_size=input_size, inplace=inplace)
        S = replace(S, after=None)
    surgery, analysis = requested(model, S, L, input_size, **options)
    return operate(model, surgery, analysis=analysis, inplace=inplace)


def operate(
    model: nn.Module, surgery: Surgery, *, analysis: Analysis | None = None, inplace: bool = False
) -> nn.Module:
    """Carry out a surgery; see `eliminate`. The analysis, where there is one already, is of this model."""
    before = getattr(model, "surgery", None)
    if before is not None and not isinstance(before, Surgery):
        raise RequestError("the model has an attribute .surgery of its own, where the recipe would go; rename it")
    analysis = analysis or analyse(model, surgery.input_size)
    planned = plan(analysis, surgery)
    as_graph = (
        surgery.form == "graph" or surgery.dilate or any(c.site.node.op != "call_module" for c in planned.changes)
    )
    if as_graph and inplace:
        why = "dilation gives" if surgery.dilate else "a stride that is written in the forward code needs"
        raise RequestError(f"{why} a rewritten graph, which is not possible in place")
    modes = [analysis, *([analysis.training] if as_graph else [])]
    try:
        trial = _edited(copy_to_meta(model), planned, modes)
        if as_graph:
            trial, recorded = _as_graph(trial, planned, modes)
            _check_modes(*(recorded[mode].shapes for mode in (True, False)))
        else:
            recorded = {False: record(trial, analysis.recording.size)}
    except TraceError as problem:
        raise _impossible(planned, problem) from problem
    _check(analysis, planned, recorded[False])
    check_intermediates(analysis, planned, trial.eval())
    operated = _edited(model if inplace else copied_model(model), planned, modes)
    if isinstance(trial, RewrittenModel) and as_graph:
        operated = rewritten(operated, trial.graphs[True], trial.graphs[False], trial.only_at)
    if isinstance(info := getattr(operated, "feature_info", None), FeatureInfo):
        operated.feature_info = refreshed(info, operated, analysis.recording.size)  # type: ignore[assignment]
    operated.surgery = replace(surgery, after=before)  # type: ignore[assignment]
    return operated


def check_operated(analysis: Analysis, planned: Plan, meta_model: nn.Module) -> GridCheck:
    """Run the operated model without its weights and check the grid (of a dilated one, the batch) of every value.

    Raises:
        GridError: a value is off the grid, or a parameter fixes the size of one.
    """
    try:
        recorded = record(meta_model, analysis.recording.size)
    except TraceError as problem:
        raise _impossible(planned, problem) from problem
    return _check(analysis, planned, recorded)


def _check(analysis: Analysis, planned: Plan, recorded: Recording) -> GridCheck:
    if planned.surgery.dilate:
        return GridCheck(check_phases(analysis, recorded, planned), exact=True, reference=True)
    return check_grid(analysis, recorded, planned)


def _impossible(planned: Plan, problem: TraceError) -> GridError:
    if problem.fixed:
        why = f"a size is fixed by {', '.join(problem.fixed)}"
    else:
        why = f"the model does not run on the {'phases as its batch' if planned.surgery.dilate else 'larger maps'}"
    return GridError(f"{planned.surgery.name} is not possible: {why}. {problem}")


def _as_graph(
    meta_model: nn.Module, planned: Plan, modes: Sequence[Analysis]
) -> tuple[RewrittenModel, dict[bool, Recording]]:
    """The edited model as a rewritten graph, and what that does in train and eval mode.

    Its graphs are those of the analysed modes, rewritten, or what the edited model records.
    """
    for analysis in modes:
        _check_output_kind(analysis.recording.graph)
    check_alike(modes[0].recording.graph, modes[1].recording.graph, [c.site.node.meta["key"] for c in planned.changes])
    original, size = modes[0].recording.model, modes[0].recording.size
    if planned.surgery.dilate:
        if modes[0].recording.adds_to_answer:
            raise OperatorError(
                "a forward hook of the model changes what it returns, and would see maps put together of phases; "
                "remove it, or make the model a part of one that does what the hook does"
            )
        fixed = is_fixed_size(original, modes[0].recording)
        evaluation, training = (phased(a, planned) for a in modes)
    elif any(c.site.node.op == "call_function" for a in modes for c in _known_changes(a, modes[0], planned)):
        fixed = is_fixed_size(original, modes[0].recording)
        evaluation, training = (_rewrite(a.recording.graph, _known_changes(a, modes[0], planned)) for a in modes)
    else:  # the edited model's own graph, whose control flow has seen the larger maps
        recorded = {mode: record(meta_model, size, training=mode) for mode in (True, False)}
        fixed = is_fixed_size(meta_model, recorded[False])
        graphs = recorded[True].graph, recorded[False].graph
        return rewritten(meta_model, *graphs, size if fixed else None), recorded
    trial = rewritten(meta_model, training, evaluation, size if fixed else None)
    return trial, {mode: record(trial, size, training=mode) for mode in (True, False)}
