"""Carries out a plan on a model's modules, or on its graph."""

from collections.abc import Sequence

from torch import fx, nn

from stridesurgery._analysis import Analysis
from stridesurgery._rewrite.plan import Change, Plan, changes_of
from stridesurgery._rewrite.records import update_records
from stridesurgery._trace import copied
from stridesurgery.errors import OperatorError
from stridesurgery.ops import FUNCTIONS, MODULES, Operator, arguments


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
    known = {site.node.meta["key"] for site in evaluation.spatial_ops}
    return changes_of(tuple(s for s in analysis.spatial_ops if s.node.meta["key"] in known), planned)


def _module_changes(modes: Sequence[Analysis], changes: Sequence[Sequence[Change]]) -> dict[str, Operator]:
    """What each module becomes; every call of a module must ask for the same.

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
