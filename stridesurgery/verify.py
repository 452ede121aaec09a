"""Whether an operated model keeps its promises: weights, grid, exactness at every eliminated layer, maps."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stridesurgery.errors import GridError, ModelError, RequestError, SurgeryError, TraceError
from stridesurgery.feature_info import FeatureInfo
from stridesurgery.graph import RewrittenModel
from stridesurgery.map_check import MapCheck, check_maps
from stridesurgery.operate import operate, rehearse
from stridesurgery.plan import plan
from stridesurgery.record import record
from stridesurgery.report import Pair, analyse
from stridesurgery.site_check import SiteCheck, check_site
from stridesurgery.skeleton import without_weights
from stridesurgery.surgery import Surgery


@dataclass(frozen=True)
class Verification:
    """What `verify` checked; it raises where something is off, so this is a list of what holds."""

    surgery: Surgery
    input_size: Pair
    tensors: int  #: weights and buffers found equal
    values: int  #: maps and other values whose shape is on the grid
    exact: bool  #: every map after a transition is exactly k times larger, not only up to a border
    sites: tuple[SiteCheck, ...]  #: of each changed operator its `name`, `what` was found, and the `error`
    maps: tuple[
        MapCheck, ...
    ] = ()  #: the same of each map that the model returns, if `features` or `dual_path` made it

    def __str__(self) -> str:
        h, w = self.input_size
        maps = "exactly k times larger" if self.exact else "k times larger up to a border"
        lines = [
            f"{self.surgery.name} verified at {h}x{w}",
            f"  weights  {self.tensors} tensors equal, same keys",
            f"  grid     {self.values} values checked, maps {maps}",
            *(f"  site     {site.name}: {site.what}" for site in self.sites),
            *(f"  map      {found.name}: {found.what}" for found in self.maps),
        ]
        return "\n".join(lines)


def verify(original: nn.Module, operated: nn.Module, input_size: int | Pair | None = None) -> Verification:
    """Check an operated model against its original; neither is changed.

    Weights: the same state_dict keys and values. Grid: every value of the graph, by shape, nothing is run.
    Exactness: every changed operator is run on a small random map, and its output sampled `[::k, ::k]` compared
    with the original operator's. Maps, where the model returns some: copies are run on two random images, and the
    maps compared with those of the network that `eliminate` gives (whose grid is the one that is checked), those of
    the large path with the original's.

    Args:
        original: the model that was operated.
        operated: what `eliminate` or `dual_path` returned for it, `features` of one of those, or a copy with the
            recipe attached as `.surgery`.
        input_size: pixels, one number or (h, w); by default the size at which the surgery was planned.

    Returns:
        What was checked; `print` shows it.

    Raises:
        SurgeryError: naming the first thing that is off.
    """
    if not isinstance(original, nn.Module) or not isinstance(operated, nn.Module):
        raise ModelError(f"verify takes two modules, got {type(original).__name__} and {type(operated).__name__}")
    surgery = getattr(operated, "surgery", None)
    if not isinstance(surgery, Surgery):
        raise RequestError("the second model has no .surgery: it was not made by stridesurgery.eliminate")
    if surgery == getattr(original, "surgery", None):
        raise RequestError(f"both models have undergone {surgery.name}; the first must be the one from before it")
    if surgery.after is not None and getattr(original, "surgery", None) != surgery.after:
        between = surgery.after.apply(original)
        verify(original, between, input_size)
        original = between
    tensors = _check_weights(original, operated)
    if any(p.is_meta for p in original.parameters()):
        raise ModelError("verify compares numbers, and the model's weights are on the meta device")
    analysis = analyse(original, input_size or getattr(operated, "only_at", None) or surgery.input_size)
    planned, size = plan(analysis, surgery), analysis.traced.size
    _check_untouched(original, operated, {str(c.site.node.target) for c in planned.changes})
    fine, maps = operated, tuple[MapCheck, ...]()
    if isinstance(operated, RewrittenModel) and isinstance(getattr(operated, "feature_info", None), FeatureInfo):
        fine = operate(original, surgery, analysis=analysis)
        maps = check_maps(original, fine, operated, size, dilated=surgery.dilate)
    grid = rehearse(analysis, planned, without_weights(fine).eval())
    _check_train_mode(operated, size)
    checks = tuple(check_site(change, original, operated) for change in planned.changes)
    return Verification(surgery, size, tensors, grid.nodes, grid.exact, checks, maps)


def _check_untouched(original: nn.Module, operated: nn.Module, changed: set[str]) -> None:
    """Modules that the plan does not change must be of the same type with the same settings."""
    others = dict(operated.named_modules())
    for path, module in original.named_modules():
        if not path or path in changed:
            continue
        other = others.get(path)
        if other is None or type(other) is not type(module) or module.extra_repr() != other.extra_repr():
            raise SurgeryError(f"module {path} is not the original's: {module} became {other}")


def _check_train_mode(operated: nn.Module, size: Pair) -> None:
    try:
        record(without_weights(operated), size, training=True)
    except TraceError as problem:
        raise GridError(f"the operated model does not run in train mode: {problem}") from problem


def _check_weights(original: nn.Module, operated: nn.Module) -> int:
    before, after = original.state_dict(), operated.state_dict()
    if before.keys() != after.keys():
        odd = sorted(set(before) ^ set(after))
        raise SurgeryError(f"the state_dicts have different keys: {', '.join(odd[:5])}")
    for key, value in before.items():
        if not isinstance(value, Tensor):
            continue
        if value.dtype != after[key].dtype or not torch.equal(value.cpu(), after[key].cpu()):
            raise SurgeryError(f"weight {key} is not the original's")
    return len(before)
