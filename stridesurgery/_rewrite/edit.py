"""Carries out a plan on a model's modules, or on its graph."""

from collections.abc import Sequence
from dataclasses import replace

from torch import fx, nn

from stridesurgery._analysis import Analysis, FeatureInfo
from stridesurgery._node import info
from stridesurgery._rewrite.check_modes import check_alike, check_output_kind
from stridesurgery._rewrite.dilate import dilated_graph
from stridesurgery._rewrite.plan import Change, Draft, Plan, changes_of
from stridesurgery._rewrite.positions import follow_positions
from stridesurgery._rewrite.rearrange import with_samples
from stridesurgery._rewrite.recipe import attach
from stridesurgery._rewrite.records import refreshed, update_records
from stridesurgery._trace import RewrittenModel, is_fixed_size, record, rewritten
from stridesurgery.errors import OperatorError
from stridesurgery.ops import FUNCTIONS, MODULES, Operator, arguments, read_module


def is_graph(planned: Plan) -> bool:
    """Return True if a plan needs, or asks for, a rewritten graph."""
    asked = planned.surgery.form == "graph"
    return asked or planned.phases or planned.samples or is_in_code(planned)


def is_in_code(planned: Plan) -> bool:
    """Return True if a stride that changes is written in the forward code."""
    return any(c.site.node.op != "call_module" for c in planned.changes)


def make_draft(meta_model: nn.Module, analysis: Analysis, planned: Plan, how: str) -> Draft:
    """Edit a copy without weights and record it.

    Args:
        meta_model: the copy.
        analysis: of the original.
        planned: the changes.
        how: as a "module", a "graph", or the graph "as recorded" of the original, in which paddings
            stay that the forward code computes from a stride.

    Raises:
        OperatorError: an operator cannot be changed as planned.
        TraceError: the edited model does not run.
    """
    graph = how != "module"
    meta_model = _edited(meta_model, planned, [analysis, *([analysis.training] if graph else [])])
    if not graph:
        return Draft(meta_model, {False: record(meta_model, analysis.recording.size)})
    return _as_graph(meta_model, planned, analysis, how == "as recorded")


def finish(model: nn.Module, analysis: Analysis, planned: Plan, draft: Draft) -> nn.Module:
    """Edit a model that has its weights as the draft was, and attach the recipe."""
    before = getattr(model, "surgery", None)
    graph = len(draft.recordings) > 1
    operated = _edited(model, planned, [analysis, *([analysis.training] if graph else [])])
    if graph and isinstance(draft.model, RewrittenModel):
        operated = rewritten(
            operated, draft.model.graphs[True], draft.model.graphs[False], draft.model.only_at
        )
    if isinstance(info := getattr(operated, "feature_info", None), FeatureInfo):
        operated.feature_info = refreshed(info, operated, analysis.recording.size)  # type: ignore[assignment]
    attach(operated, replace(planned.surgery, after=before))
    return operated


def _as_graph(meta_model: nn.Module, planned: Plan, analysis: Analysis, as_recorded: bool) -> Draft:
    """Turn the edited model into a rewritten graph.

    Its graphs are those of the analysed modes, rewritten, or what the edited model records.
    """
    modes = {False: analysis, True: analysis.training}
    for mode in modes.values():
        check_output_kind(mode.recording.graph)
    keys = [info(c.site.node).key for c in planned.changes]
    check_alike(analysis.recording.graph, analysis.training.recording.graph, keys)
    size = analysis.recording.size
    changes = {mode: _known_changes(a, analysis, planned) for mode, a in modes.items()}
    if planned.phases:
        if analysis.recording.adds_to_answer:
            raise OperatorError(
                "a forward hook of the model changes what it returns, and would see maps put "
                "together of phases; remove it, or make the model a part of one that does what the "
                "hook does"
            )
        fixed = analysis.fixed_size
        graphs = {mode: dilated_graph(a, planned) for mode, a in modes.items()}
    elif (
        as_recorded
        or planned.samples
        or planned.surgery.positions == "refuse"
        and any(c.site.node.op == "call_function" for part in changes.values() for c in part)
    ):
        fixed = analysis.fixed_size
        graphs = {
            mode: _rewrite(with_samples(a, planned), changes[mode]) for mode, a in modes.items()
        }
    else:  # the edited model's own graph, whose control flow has seen the larger maps
        recordings = {mode: record(meta_model, size, training=mode) for mode in (True, False)}
        fixed = is_fixed_size(recordings[False])
        graphs = {mode: recording.graph for mode, recording in recordings.items()}
        return Draft(
            rewritten(meta_model, graphs[True], graphs[False], size if fixed else None), recordings
        )
    trial = rewritten(meta_model, graphs[True], graphs[False], size if fixed else None)
    return Draft(trial, {mode: record(trial, size, training=mode) for mode in (True, False)})


def _edited(model: nn.Module, planned: Plan, modes: Sequence[Analysis]) -> nn.Module:
    """Edit a model's modules."""
    for target, operator in _module_changes(
        modes, [_known_changes(a, modes[0], planned) for a in modes]
    ).items():
        module = model.get_submodule(target)
        refine = MODULES[type(module)].refine
        if refine is None:
            raise OperatorError(
                f"{target} ({operator.name}) is registered without `refine`, which would give it a "
                "finer stride"
            )
        try:
            refine(module, operator)
        except NotImplementedError as problem:
            raise OperatorError(
                f"{target} ({operator.name}) cannot take the finer stride: its registered `refine` "
                f"says it {problem}"
            ) from problem
        if read_module(module) is None:
            raise OperatorError(
                f"`refine` of {operator.name} puts a {type(module).__name__} in place, which has "
                "no entry: register_operator it as well"
            )
    if planned.surgery.positions != "refuse" and not planned.surgery.dilate:
        follow_positions(model, modes[0], planned)
    update_records(model, planned)
    return model


def _known_changes(analysis: Analysis, evaluation: Analysis, planned: Plan) -> tuple[Change, ...]:
    """Return the changes in one mode; operators of train mode alone (auxiliary heads) stay."""
    known = {info(site.node).key for site in evaluation.spatial_ops}
    return changes_of(tuple(s for s in analysis.spatial_ops if info(s.node).key in known), planned)


def _module_changes(
    modes: Sequence[Analysis], changes: Sequence[Sequence[Change]]
) -> dict[str, Operator]:
    """Return the operator that each module becomes; every call of a module must ask for the same.

    Raises:
        OperatorError: one module is used at several places that need different strides.
    """
    wanted: dict[str, Operator] = {}
    for analysis, part in zip(modes, changes, strict=True):
        becomes = {change.site.node: change.operator for change in part}
        for site in analysis.spatial_ops:
            if site.node.op != "call_module":
                continue
            operator = becomes.get(site.node, site.operator)
            if wanted.setdefault(str(site.node.target), operator) != operator:
                raise OperatorError(
                    f"module {site.node.target} is called at several reductions, of which only "
                    "some would change; give each place a module of its own (copy.deepcopy of the "
                    "parameter-free ones)"
                )
    changed = {
        str(c.site.node.target) for part in changes for c in part if c.site.node.op == "call_module"
    }
    return {target: operator for target, operator in wanted.items() if target in changed}


def _rewrite(graph: fx.Graph, changes: Sequence[Change]) -> fx.Graph:
    """Replace the changed functions of a graph; modules are edited elsewhere."""
    by_key = {info(change.site.node).key: change for change in changes}
    for node in graph.nodes:
        change = by_key.get(info(node).key)
        if change is not None and node.op == "call_function":
            rule = FUNCTIONS[node.target]
            node.target, node.args, node.kwargs = rule.refine(
                arguments(node, rule), change.operator
            )
    return graph
