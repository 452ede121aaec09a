"""A network that returns its maps: the same modules, cut down to what the maps need."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import fx, nn

from stridesurgery._analysis import (
    Analysis,
    Feature,
    FeatureInfo,
    Source,
    analyse,
    geometry_of,
    reduction_of,
)
from stridesurgery._features.taps import Tap, TapName, find_taps
from stridesurgery._features.tokens import as_map
from stridesurgery._hw import HW
from stridesurgery._node import Key, info
from stridesurgery._rewrite import check_alike, check_one_path, reassembled_map
from stridesurgery._trace import (
    RewrittenModel,
    copied,
    copied_model,
    is_overwritten,
    lasting_memory,
    rewritten,
)
from stridesurgery.errors import GridError


def features(
    model: nn.Module,
    taps: Sequence[TapName] | TapName | None = None,
    *,
    input_size: int | HW[int] | None = None,
) -> RewrittenModel:
    """Return a copy of a model that returns maps instead of its answer, and computes nothing else.

    Args:
        model: a torchvision or timm model, any module whose forward takes an image batch, or one
            that was operated.
        taps: which maps: layer numbers (the last map before the next layer, so with the pointwise
            operators that follow), module paths (what the module returns), or both; None: one map
            per reduction, which is what the last stage or block before each transition returns, the
            last map of all, and of a transformer also what its last block returns. Tokens (N, L, C)
            whose cells lie row by row become a map (N, C, H, W) without the tokens before them
            (class, registers).
        input_size: pixels at which the model is recorded, one number or (h, w); by default the
            model's own.

    Returns:
        A graph module in the mode of the original, with its state_dict. `forward(x)` gives a dict
        of maps in the order of `taps`, under their names. It has `feature_info` (`channels()`,
        `reduction()`, `module_name()`, `geometry()`) and `out_indices`. Maps have the layout that
        the model gives them. Parameters that no map needs are kept, with requires_grad False.

    Raises:
        RequestError: a tap that is no layer and no module, is not one map, or is inside a block; a
            dual path.
        ModelError: not a plain module: wrapped, compiled, scripted.
        TraceError: the forward pass cannot be recorded at this size.

    Example:
        >>> import timm, torch, stridesurgery as ss
        >>> net = timm.create_model("resnet18").eval()
        >>> maps = ss.features(net, ["layer2", "layer4"], input_size=64)
        >>> {name: tuple(map_.shape) for name, map_ in maps(torch.rand(1, 3, 64, 64)).items()}
        {'layer2': (1, 128, 8, 8), 'layer4': (1, 512, 2, 2)}
    """
    analysis = analyse(model, input_size)
    check_one_path(analysis, "choose its maps by the `taps` of dual_path")
    found = find_taps(analysis, taps)
    check_alike(
        analysis.recording.graph,
        analysis.training.recording.graph,
        [info(tap.node).key for tap in found],
    )
    graphs = [tapped(a, found) for a in (analysis.training, analysis)]
    fixed = analysis.recording.size if analysis.fixed_size else None
    return finished(
        copied_model(model), graphs[0], graphs[1], fixed, FeatureInfo(tuple(map(feature_of, found)))
    )


def feature_of(tap: Tap) -> Feature:
    """Return the `Feature` of a map that is taken out."""
    reduction, geometry = reduction_of(tap.place), geometry_of(*tap.place.reassembled.geometry)
    return Feature(
        tap.name, tap.module, tap.channels, reduction, geometry, (source_of(tap, "operated"),)
    )


def source_of(tap: Tap, network: str) -> Source:
    """Return the `Source` of a map that is taken out."""
    key = info(tap.node).key
    return Source(tap.name, network, key, tap.channels, tap.channel_axis, tap.tokens)


def tapped(analysis: Analysis, taps: Sequence[Tap]) -> fx.Graph:
    """Return the recorded graph with these maps as its output, by name.

    Raises:
        GridError: a map that is not in it.
    """
    keys = {tap.name: info(tap.node).key for tap in taps}
    graph = copied(analysis.recording.graph)
    by_key = {info(n).key: n for n in graph.nodes}
    missing = [name for name, key in keys.items() if key not in by_key]
    if missing:
        raise GridError(
            f"tap {missing[0]!r} is not found in train mode: the forward code differs between the "
            "modes there; tap a module by its path"
        )
    values = {tap.name: reassembled(by_key[info(tap.node).key], tap, by_key) for tap in taps}
    return with_output(graph, values)


def reassembled(node: fx.Node, tap: Tap, by_key: Mapping[Key, fx.Node]) -> fx.Node:
    """Return a tapped value as one map.

    Tokens are laid out, and the phases of a dilated network, which are in the batch, put together.
    """
    if tap.tokens is not None:
        node = as_map(node, tap.tokens, by_key[tap.tokens.made])
    if not tap.place.phases:
        return node
    return reassembled_map(node, tap.place.reduction, tap.place.phases, tap.channel_axis)


def with_output(graph: fx.Graph, values: Mapping[str, fx.Node]) -> fx.Graph:
    """Make a graph return these values as a dict, and drop what they do not need."""
    old = next(n for n in graph.nodes if n.op == "output")
    old.args = ({},)
    drop_unused(graph, set(values.values()))  # what is dropped overwrites nothing
    given: dict[str, fx.Node] = {}
    for name, node in values.items():
        given[name] = node
        if is_overwritten(node):
            with graph.inserting_after(node):
                given[name] = graph.call_method("clone", (node,))
            info(given[name]).take(
                node, key=(*info(node).key[:2], "clone", name), memory=given[name].name, writes=()
            )
    old.args = (given,)
    return graph


def drop_unused(graph: fx.Graph, needed: set[fx.Node]) -> None:
    """Erase what the needed values do not depend on.

    A write into memory that is read after it stays, and one into a buffer of a module that runs
    (running statistics).
    """
    lasting = lasting_memory(graph)
    kept = ancestors(graph, needed, set())
    modules = {info(n).path for n in kept if n.op != "placeholder"}
    statistics = {
        n for n in graph.nodes if set(info(n).writes) & lasting and info(n).path in modules
    }
    kept = ancestors(graph, needed, statistics)
    for node in reversed(list(graph.nodes)):
        if node not in kept:
            graph.erase_node(node)


def ancestors(graph: fx.Graph, needed: set[fx.Node], effects: set[fx.Node]) -> set[fx.Node]:
    """Return all nodes that values and effects depend on, writes into memory they read included."""
    wanted, kept, read = needed | effects, set[fx.Node](), set[object]()
    for node in reversed(graph.nodes):
        if node.op == "output":
            kept.add(node)
        elif node.op == "placeholder" or node in wanted or not read.isdisjoint(info(node).writes):
            kept.add(node)
            wanted.update(node.all_input_nodes)
            read.update(info(source).memory for source in node.all_input_nodes)
    return kept


def finished(
    model: nn.Module,
    train_graph: fx.Graph,
    eval_graph: fx.Graph,
    only_at: HW[int] | None,
    info: FeatureInfo,
) -> RewrittenModel:
    """Return the model that runs these graphs over the modules of `model`, which it takes over."""
    result = rewritten(model, train_graph, eval_graph, only_at)
    result.feature_info = info
    result.out_indices = info.out_indices  # type: ignore[assignment]
    used = _parameters_of(result)
    for parameter in result.parameters():
        if id(parameter) not in used:
            parameter.requires_grad_(False)
    return result


def _parameters_of(model: RewrittenModel) -> set[int]:
    """Return the ids of the parameters that a graph reads."""
    found: set[int] = set()
    for node in (n for graph in model.graphs.values() for n in graph.nodes):
        if node.op == "call_module":
            found.update(id(p) for p in model.get_submodule(str(node.target)).parameters())
        elif node.op == "get_attr":
            owner, _, name = str(node.target).rpartition(".")
            value: Any = getattr(model.get_submodule(owner), name)
            found.add(id(value))
    return found
