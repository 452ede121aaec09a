"""The one place that edits: a plan goes in, an operated copy of the model comes out."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from torch import fx, nn

from stridesurgery.errors import GridError, ModelError, OperatorError, RequestError, TraceError
from stridesurgery.feature_info import FeatureInfo
from stridesurgery.graph import RewrittenModel, copied, rewritten
from stridesurgery.grid import GridCheck, check_grid
from stridesurgery.operators import FUNCTIONS, MODULES, Operator, arguments
from stridesurgery.phases import check_phases, phased
from stridesurgery.plan import Change, Plan, changes_of, plan
from stridesurgery.record import record
from stridesurgery.records import check_intermediates, refreshed, update_records
from stridesurgery.report import Analysis, Pair, analyse
from stridesurgery.request import requested
from stridesurgery.skeleton import duplicate, without_weights
from stridesurgery.surgery import Surgery
from stridesurgery.traced import BATCH, Key, Shape, Traced


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
        S: how many strides (transitions) to eliminate; alone, the first S. Or a name such as "S2L4-6", or a `Surgery`.
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
    surgery, analysis = requested(
        model, S, L, input_size, stride=stride, axis=axis, pool=pool, dilate=dilate, restore_at=restore_at, form=form
    )
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
    modes = [analysis, *([analyse(model, analysis.traced.size, training=True)] if as_graph else [])]
    try:
        trial = _edited(without_weights(model), planned, modes)
        if as_graph:
            trial = _as_graph(trial, planned, modes)
            _check_modes(*(record(trial, analysis.traced.size, training=mode).shapes for mode in (True, False)))
    except TraceError as problem:
        raise _impossible(planned, problem) from problem
    rehearse(analysis, planned, trial.eval())
    check_intermediates(analysis, planned, trial)
    operated = _edited(model if inplace else copied_model(model), planned, modes)
    if isinstance(trial, RewrittenModel) and as_graph:
        operated = rewritten(operated, trial.graphs[True], trial.graphs[False], trial.only_at)
    if isinstance(info := getattr(operated, "feature_info", None), FeatureInfo):
        operated.feature_info = refreshed(info, operated, analysis.traced.size)  # type: ignore[assignment]
    operated.surgery = replace(surgery, after=before)  # type: ignore[assignment]
    return operated


def copied_model(model: nn.Module) -> nn.Module:
    """A deep copy of a model.

    Raises:
        ModelError: the model cannot be copied.
    """
    try:
        return duplicate(model, {})
    except Exception as problem:
        raise ModelError(
            f"{type(model).__name__} cannot be copied ({problem}); make copy.deepcopy(model) work (for old-style "
            "weight_norm: use torch.nn.utils.parametrizations), or pass inplace=True"
        ) from problem


def rehearse(analysis: Analysis, planned: Plan, skeleton: nn.Module) -> GridCheck:
    """Run the operated model without its weights and check the grid (of a dilated one, the batch) of every value.

    Raises:
        GridError: a value is off the grid, or a parameter fixes the size of one.
    """
    try:
        recorded = record(skeleton, analysis.traced.size)
    except TraceError as problem:
        raise _impossible(planned, problem) from problem
    if planned.surgery.dilate:
        return GridCheck(check_phases(analysis, recorded, planned), exact=True, reference=True)
    return check_grid(analysis, recorded, planned)


def _check_modes(train: dict[Key, Shape], evaluation: dict[Key, Shape]) -> None:
    """Both graphs must give every module the same map: calls were matched between them by their order."""
    for key, shape in evaluation.items():
        if key[1] == "call_module" and train.get(key, shape) != shape:
            raise GridError(
                f"{key[2]} gets another map in train mode than in eval mode: the forward code differs between the "
                "modes in a way that a graph cannot follow. Make the strides modules"
            )


def _impossible(planned: Plan, problem: TraceError) -> GridError:
    if problem.fixed:
        why = f"a size is fixed by {', '.join(problem.fixed)}"
    else:
        why = f"the model does not run on the {'phases as its batch' if planned.surgery.dilate else 'larger maps'}"
    return GridError(f"{planned.surgery.name} is not possible: {why}. {problem}")


def _edited(model: nn.Module, planned: Plan, modes: Sequence[Analysis]) -> nn.Module:
    """The model with its modules edited."""
    for target, operator in _module_changes(modes, [_known_changes(a, modes[0], planned) for a in modes]).items():
        module = model.get_submodule(target)
        refine = MODULES[type(module)].refine
        if refine is None:
            raise OperatorError(
                f"{target} ({operator.name}) is registered without `refine`, which would give it a finer stride"
            )
        try:
            refine(module, operator)
        except NotImplementedError as problem:
            raise OperatorError(
                f"{target} ({operator.name}) cannot take the finer stride: its registered `refine` says it {problem}"
            ) from problem
    update_records(model, planned)
    return model


def _known_changes(analysis: Analysis, evaluation: Analysis, planned: Plan) -> tuple[Change, ...]:
    """What changes in a mode; what only train mode runs (auxiliary heads) joins nothing and stays as it is."""
    known = {site.node.meta["key"] for site in evaluation.sites}
    return changes_of(tuple(s for s in analysis.sites if s.node.meta["key"] in known), planned)


def _as_graph(skeleton: nn.Module, planned: Plan, modes: Sequence[Analysis]) -> RewrittenModel:
    """The edited model as a rewritten graph: what the analysed modes recorded, or the edited model does."""
    for analysis in modes:
        _check_output_kind(analysis.traced.graph)
    check_alike(modes[0].traced.graph, modes[1].traced.graph, [c.site.node.meta["key"] for c in planned.changes])
    original, size = modes[0].traced.model, modes[0].traced.size
    if planned.surgery.dilate:
        fixed = holds_sizes(original, modes[0].traced)
        evaluation, training = (phased(a, planned) for a in modes)
    elif any(c.site.node.op == "call_function" for a in modes for c in _known_changes(a, modes[0], planned)):
        fixed = holds_sizes(original, modes[0].traced)
        evaluation, training = (_rewrite(a.traced.graph, _known_changes(a, modes[0], planned)) for a in modes)
    else:  # the edited model's own graph, whose control flow has seen the larger maps
        training = record(skeleton, size, training=True).graph
        traced = record(skeleton, size)
        evaluation, fixed = traced.graph, holds_sizes(skeleton, traced)
    return rewritten(skeleton, training, evaluation, size if fixed else None)


def check_alike(evaluation: fx.Graph, training: fx.Graph, keys: Iterable[Key]) -> None:
    """Functions are matched between the modes by the number of their call, so both must call them as often.

    Raises:
        GridError: naming the place where they do not.
    """
    counts = [Counter(n.meta["key"][:3] for n in graph.nodes) for graph in (evaluation, training)]
    for path, op, target, _ in keys:
        family = (path, op, target)
        if op != "call_module" and counts[0][family] != counts[1][family]:
            raise GridError(
                f"{path or 'the forward code'} calls {target} {counts[0][family]} times in eval mode and "
                f"{counts[1][family]} times in train mode, which no graph can tell apart. Make them "
                "modules"
            )


def _check_output_kind(graph: fx.Graph) -> None:
    """A graph can return tensors and numbers in tuples, lists and dicts."""

    def check(value: Any) -> None:
        if not isinstance(value, (fx.Node, int, float, str, type(None))):
            raise OperatorError(f"the model returns a {type(value).__name__}, which a graph cannot build")

    output = next(n for n in graph.nodes if n.op == "output")
    fx.node.map_aggregate(output.args[0], check)


def _module_changes(modes: Sequence[Analysis], changes: Sequence[Sequence[Change]]) -> dict[str, Operator]:
    """What each module becomes; every call of a module must ask for the same.

    Raises:
        OperatorError: one module is used at several places that need different strides.
    """
    wanted: dict[str, Operator] = {}
    for analysis, part in zip(modes, changes, strict=True):
        becomes = {change.site.node: change.operator for change in part}
        for site in analysis.sites:
            if site.node.op != "call_module":
                continue
            operator = becomes.get(site.node, site.operator)
            if wanted.setdefault(str(site.node.target), operator) != operator:
                raise OperatorError(
                    f"module {site.node.target} is called at several reductions, of which only some would change; "
                    "give each place a module of its own (copy.deepcopy of the parameter-free ones)"
                )
    changed = {str(c.site.node.target) for part in changes for c in part if c.site.node.op == "call_module"}
    return {target: operator for target, operator in wanted.items() if target in changed}


def _rewrite(graph: fx.Graph, changes: Sequence[Change]) -> fx.Graph:
    """A copy of a graph with the changed functions replaced; modules are edited elsewhere."""
    by_key = {change.site.node.meta["key"]: change for change in changes}
    result = copied(graph)
    for node in result.nodes:
        change = by_key.get(node.meta["key"])
        if change is not None and node.op == "call_function":
            rule = FUNCTIONS[node.target]
            node.target, node.args, node.kwargs = rule.refine(arguments(node, rule), change.operator)
    return result


def holds_sizes(bare: nn.Module, traced: Traced) -> bool:
    """Whether a graph holds sizes as constants: whether it would be another one at other input sizes."""
    if traced.missed:
        raise OperatorError(
            f"a forward hook of {traced.missed[0]} needs numbers, so that no graph can do what it does; remove the hook"
        )
    if str(record(bare, traced.size, batch=BATCH + 2).graph) != str(traced.graph):
        raise GridError(
            "the model computes with the batch size as a constant (len(x), int(x.shape[0])), which no graph can "
            "follow; use x.shape[0] as it is"
        )
    h, w = traced.size
    same = []
    for size in ((h + 64, w), (h + 65, w + 67), (h // 2, w // 2)):  # not square, odd, smaller
        try:
            other = record(bare, size)
        except TraceError:
            continue  # the model itself does not take this size
        same.append(str(other.graph) == str(traced.graph))
    return not same or not all(same)
