"""Cost of a network, counted on its graph with weightless tensors: nothing is run or allocated."""

from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import fx, nn

from stridesurgery._analysis import Analysis, analyse, part_of
from stridesurgery._cost.memory import MemoryEvent, peak
from stridesurgery._cost.meter import Inference, Meter, NodeCost
from stridesurgery._hw import HW, hw_short
from stridesurgery._node import info, shape_of
from stridesurgery._tables import Shown, Table, gmac, mib, plain
from stridesurgery._trace import Recording, one_image, state_of
from stridesurgery.errors import TraceError

T = TypeVar("T", bound=Hashable)


@dataclass(frozen=True)
class Part:
    """Cost of some calls of a network, for one image.

    Example:
        >>> import timm, stridesurgery as ss
        >>> part = ss.cost(timm.create_model("resnet18"), 64).parts[0]
        >>> part.name, part.layer, part.reduction, part.macs
        ('conv1', 0, (2, 2), 9633792)
    """

    name: str  #: of a call: module path, or name of the function; of a sum: the key
    layer: int | None  #: L of its layer, the last one up to it; None before the first
    reduction: HW[float] | None  #: of the output, (rows, columns); None if it is no map
    macs: int  #: multiply-accumulates of convolutions, linear layers and matrix products
    bytes: int  #: of the values that the calls create

    @property
    def flops(self) -> int:
        """Floating-point operations: two per multiply-accumulate, as `flop_counter` of torch."""
        return 2 * self.macs

    def sums(self, by: str) -> dict[str, Any]:
        """Return the cost as plain data, with the field that it is summed by."""
        key = {by: plain(getattr(self, by))}
        return {**key, "macs": self.macs, "flops": self.flops, "bytes": self.bytes}


@dataclass(frozen=True, repr=False)
class Cost(Shown):
    """Cost of a network for one image.

    It shows itself as a table by reduction.

    Example:
        >>> import timm, stridesurgery as ss
        >>> spent = ss.cost(timm.create_model("resnet18"), 64)
        >>> spent.macs, spent.activation_bytes, spent.peak_bytes
        (148557824, 1863072, 573952)
        >>> list(spent.per_reduction())
        [(2, 2), (4, 4), (8, 8), (16, 16), (32, 32), None]
    """

    model: str
    input_size: HW[int]
    parameters: int
    parts: tuple[Part, ...]  #: one part for each call, in running order
    peak_bytes: int  #: maximum of activations held at once in inference, image included
    uncounted: Mapping[str, int]  #: operators without a MAC count, and how often they are called
    _records = "per_layer"

    @property
    def macs(self) -> int:
        """Multiply-accumulates of all parts."""
        return sum(part.macs for part in self.parts)

    @property
    def flops(self) -> int:
        """Floating-point operations: two per multiply-accumulate, as `flop_counter` of torch."""
        return 2 * self.macs

    @property
    def activation_bytes(self) -> int:
        """Bytes of all values that are created. Views create none."""
        return sum(part.bytes for part in self.parts)

    def per_layer(self) -> dict[int | None, Part]:
        """Sum the parts by layer.

        Pointwise operators belong to the layer before them. The key None is for operators before
        the first layer.
        """
        return _summed(self.parts, lambda part: part.layer)

    def per_reduction(self) -> dict[HW[float] | None, Part]:
        """Sum the parts by the reduction of their output.

        The key None is for outputs that are no map (pooled values, class scores).
        """
        return _summed(self.parts, lambda part: part.reduction)

    def totals(self) -> dict[str, Any]:
        """Return the totals as plain data."""
        return {
            "model": self.model,
            "input_size": list(self.input_size),
            "parameters": self.parameters,
            "macs": self.macs,
            "flops": self.flops,
            "activation_bytes": self.activation_bytes,
            "peak_bytes": self.peak_bytes,
        }

    def to_dict(self) -> dict[str, Any]:
        """Return the totals, and the sums by layer and by reduction, as plain data."""
        return {
            **self.totals(),
            "uncounted": dict(self.uncounted),
            "per_layer": [part.sums("layer") for part in self.per_layer().values()],
            "per_reduction": [part.sums("reduction") for part in self.per_reduction().values()],
        }

    def _table(self) -> Table:
        h, w = self.input_size
        title = (
            f"{self.model} at {h}x{w}: {self.parameters / 1e6:.2f} M parameters, {gmac(self.macs)} "
            f"({self.flops / 1e9:.3f} GFLOP), activations {mib(self.activation_bytes)} in all, "
            f"{mib(self.peak_bytes)} at the peak of inference"
        )
        rows = [
            (
                "no map" if reduction is None else hw_short(reduction),
                f"{part.macs / 1e9:.3f}",
                f"{part.macs / self.macs if self.macs else 0:.1%}",
                mib(part.bytes),
            )
            for reduction, part in self.per_reduction().items()
        ]
        names = ", ".join(f"{name} ({calls})" for name, calls in self.uncounted.items())
        notes = [f"without a count: {names}"] if names else []
        return Table(title, ("reduction", "GMAC", "share", "activations"), rows, (), notes)


def _summed(parts: tuple[Part, ...], key: Callable[[Part], T]) -> dict[T, Part]:
    groups: dict[T, list[Part]] = {}
    for part in parts:
        groups.setdefault(key(part), []).append(part)
    return {
        name: Part(
            str(name),
            group[0].layer,
            group[0].reduction,
            sum(p.macs for p in group),
            sum(p.bytes for p in group),
        )
        for name, group in groups.items()
    }


def cost(
    model: nn.Module, input_size: int | HW[int] | None = None, *, at: str | None = None
) -> Cost:
    """Count the cost of inference on one image: parameters, multiply-accumulates and memory.

    Nothing is run or allocated.

    Args:
        model: a torchvision or timm model, any module whose forward takes an image batch, or the
            result of `eliminate`, `features` or `dual_path`.
        input_size: pixels, one number or (h, w); by default what the model was made for, else 224.
        at: the submodule to count, as for `eliminate`; a detector's is known.

    Returns:
        The totals in evaluation mode, and the parts by call, by layer and by reduction.

        Multiply-accumulates are those that `torch.utils.flop_counter` counts. It reports two
        operations for each. Operators that it has no count for (norms, activations, pools, sums)
        are listed in `uncounted`.

        The peak is the maximum that the forward code holds at once, given the order in which Python
        frees values. Memory that a kernel takes for itself during its call is not known here.

    Raises:
        ModelError: the model is not a plain module: wrapped, compiled, scripted.
        TraceError: the forward pass cannot be recorded at this size, or it computes one image in
            another way than two.

    Example:
        >>> import timm, stridesurgery as ss
        >>> print(ss.cost(timm.create_model("resnet18"), 224))
        ResNet at 224x224: 11.69 M parameters, 1.814 GMAC (3.628 GFLOP), activations ...
        >>> ss.cost(timm.create_model("resnet18"), 224).macs
        1814073344
    """
    part = part_of(model, at, input_size)
    return count(analyse(part.module, part.size))


def count(analysis: Analysis) -> Cost:
    """Count the cost of an analysed network."""
    recording = analysis.recording
    spent = Meter(recording.model, recording.graph).meter(one_image(recording))
    events = run_once(recording, sum(s.macs for s in spent.values()))
    uncounted: Counter[str] = Counter()
    for call in spent.values():
        uncounted.update(call.uncounted)
    parameters = sum(p.numel() for p in recording.model.parameters())
    parts = tuple(_parts(analysis, spent))
    return Cost(
        type(recording.model).__name__,
        recording.size,
        parameters,
        parts,
        peak(events),
        dict(uncounted.most_common()),
    )


def run_once(recording: Recording, macs: int) -> list[MemoryEvent]:
    """Run the forward code on one weightless image and list the allocations and releases of memory.

    Raises:
        TraceError: the run spends other multiply-accumulates than `macs`, because the recording
            has the control flow of another batch.
    """
    run, image = Inference(recording.model), one_image(recording)
    run.memory.note([image])
    give_back = state_of(recording.model)
    with run.followed():
        recording.model(image)
    give_back()
    if run.macs != macs:
        raise TraceError(
            f"the model spends {run.macs} multiply-accumulates on one image, but its recorded "
            f"graph {macs}: it computes one image in another way than a batch, so its cost cannot "
            "be told from its graph"
        )
    return run.memory.events


def _parts(analysis: Analysis, spent: Mapping[Any, NodeCost]) -> Iterator[Part]:
    number = {site.node: i for i, site in enumerate(analysis.layers)}
    layer = None
    for node in analysis.recording.graph.nodes:
        layer = number.get(node, layer)
        call = spent.get(info(node).key)
        if call is not None and (call.macs or call.made):
            yield Part(name_of(node), layer, _reduction(analysis, node), call.macs, call.made)


def name_of(node: fx.Node) -> str:
    """Return the name of a call.

    The name of a module call is the module path. The name of a function call is the path of the
    calling module and the node's own name.
    """
    if node.op == "call_module":
        return str(node.target)
    path = info(node).path
    return f"{path}.{node.name}" if path else node.name


def _reduction(analysis: Analysis, node: fx.Node) -> HW[float] | None:
    place = analysis.grid_of.get(node)
    if place is None or place.pooled or place.grid is None or shape_of(node) is None:
        return None
    rows, columns = (
        int(r) if r.denominator == 1 else float(r) for r in place.reassembled.reduction
    )
    return rows, columns
