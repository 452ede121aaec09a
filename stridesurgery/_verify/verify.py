"""Check an operated model: weights, grid, exactness at every eliminated layer, maps."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx, nn

from stridesurgery._analysis import Analysis, FeatureInfo, analyse, part_of
from stridesurgery._hw import HW
from stridesurgery._rewrite import bound, check_operated, eliminate, operate, plan
from stridesurgery._tables import Shown, Table
from stridesurgery._trace import RewrittenModel, copy_to_meta, number_format, one_image, record
from stridesurgery._verify.maps import MapCheck, check_maps
from stridesurgery._verify.operators import SiteCheck, check_site
from stridesurgery._verify.outputs import check_outputs
from stridesurgery._verify.records import check_followed, check_modes, check_records
from stridesurgery._verify.runs import OutputCheck
from stridesurgery.errors import GridError, ModelError, RequestError, SurgeryError, TraceError
from stridesurgery.ops import own_class
from stridesurgery.surgery import Surgery


@dataclass(frozen=True, repr=False)
class Verification(Shown):
    """The list of what `verify` checked and found right.

    `verify` raises an error if something is wrong, so everything that is listed here holds.

    Example:
        >>> import stridesurgery, torchvision
        >>> model = torchvision.models.resnet18()
        >>> operated = stridesurgery.eliminate(model, L=16, input_size=64)
        >>> found = stridesurgery.verify(model, operated)
        >>> found.exact, found.sites[0].name
        (True, 'layer4.0.conv1')
    """

    surgery: Surgery
    input_size: HW[int]
    tensors: int  #: number of weights and buffers found equal
    values: int  #: number of maps and other values whose shape is on the grid
    exact: bool  #: True if maps after a transition are exactly k times larger, not up to a border
    sites: tuple[SiteCheck, ...]  #: `name`, finding (`what`) and `error` of each changed operator
    maps: tuple[
        MapCheck, ...
    ] = ()  #: the same for each map returned by a model of `features` or `dual_path`
    outputs: tuple[OutputCheck, ...] = ()  #: the same for each tensor that any other model returns
    records: int = 0  #: number of reductions and patch sizes on record that were found right
    modes: str = ""  #: the finding on the modules' modes, in words
    _records = "sites"

    def _table(self) -> Table:
        h, w = self.input_size
        maps = "exactly k times larger" if self.exact else "k times larger up to a border"
        lines = [
            ("weights", f"{self.tensors} tensors equal, same keys"),
            ("grid", f"{self.values} values checked, maps {maps}"),
            *(("site", f"{site.name}: {site.what}") for site in self.sites),
            *(("map", f"{found.name}: {found.what}") for found in self.maps),
            *(("output", line) for line in self._outputs()),
            ("records", f"{self.records} reductions and patch sizes on record are right"),
            ("modes", self.modes),
        ]
        rows = [(f"  {what}", finding) for what, finding in lines]
        return Table(f"{self.surgery.name} verified at {h}x{w}", (), rows, left=(0, 1))

    def _outputs(self) -> list[str]:
        errors = [found.error for found in self.outputs if found.error is not None]
        whose = "the original's" if self.surgery.dilate else "what eliminate gives"
        largest = f"largest relative difference {max(errors, default=0):.1g}"
        equal = [f"{len(errors)} tensors equal {whose}, {largest}"] if errors else []
        return equal + [f"{f.name}: {f.what}" for f in self.outputs if f.error is None]


def verify(
    original: nn.Module, operated: nn.Module, input_size: int | HW[int] | None = None
) -> Verification:
    """Check an operated model against its original; neither is changed.

    - Weights: the state_dict must have the same keys and values.
    - Grid: the shape of every value of the graph must be on the grid. Nothing is run for this.
    - Exactness: every changed operator is run on a small random map. Its output, sampled
      `[::k, ::k]`, is compared with the original operator's.
    - Outputs: copies of both models, and of the model that `eliminate` gives now, are run in eval
      mode on two random images. Everything that they return is compared, and so is the result of
      `forward_intermediates`. If the surgery keeps the features, the values are also compared with
      the original's.
    - Maps: those that `features` or `dual_path` returns are compared with the maps of the network
      that they come from.
    - Records: `feature_info`, `output_stride` and `patch_size` are compared.
    - Modes: the mode of every module is compared.
    - A detector: its backbone is checked in this way, and its anchors, strides and pooling scales
      are compared with those that `eliminate` gives.

    The result names everything that could not be compared.

    Args:
        original: the model that was operated.
        operated: the model that `eliminate` or `dual_path` returned for it, `features` of one of
            those, or a copy with the recipe attached as `.surgery`.
        input_size: pixels, one number or (h, w); by default the size at which the surgery was
            planned. Of an operated submodule (a detector's backbone) it is the size of its own
            input; detectors enlarge images, and a smaller size is faster.

    Returns:
        The list of what was checked; `print` shows it.

    Raises:
        SurgeryError: something is wrong; the message names the first thing found.

    Example:
        >>> import stridesurgery, torchvision
        >>> model = torchvision.models.resnet18()
        >>> operated = stridesurgery.eliminate(model, L=16, input_size=64)
        >>> found = stridesurgery.verify(model, operated)
        >>> found.tensors, found.exact
        (122, True)
    """
    if not isinstance(original, nn.Module) or not isinstance(operated, nn.Module):
        raise ModelError(
            f"verify takes two modules, got {type(original).__name__} and {type(operated).__name__}"
        )
    surgery = getattr(operated, "surgery", None)
    if not isinstance(surgery, Surgery):
        raise RequestError(
            "the second model has no .surgery: it was not made by stridesurgery.eliminate"
        )
    if surgery == getattr(original, "surgery", None):
        raise RequestError(
            f"both models have undergone {surgery.name}; the first must be the one from before it"
        )
    if surgery.after is not None and getattr(original, "surgery", None) != surgery.after:
        between = eliminate(original, surgery.after)
        verify(original, between, input_size)
        original = between
    original = bound(original, surgery)
    for model in (original, operated):
        if any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers())):
            raise ModelError(
                "verify compares numbers, and a model's weights are on the meta device"
            )
    tensors = _check_weights(original, operated)
    part = part_of(original, surgery.at, surgery.input_size)
    if part.at:
        inside = operated.get_submodule(part.at)
        found = verify(part.module, inside, input_size or part.size)
        fine = operate(original, replace(surgery, after=None))
        check_followed(original, fine, operated, f"{part.at}.")
        return replace(found, surgery=surgery, tensors=tensors)
    analysis = analyse(
        original, input_size or getattr(operated, "only_at", None) or surgery.input_size
    )
    planned, size = plan(analysis, surgery), analysis.recording.size
    modes = check_modes(original, operated)
    _check_untouched(original, operated, {str(c.site.node.target) for c in planned.changes})
    fine = operate(original, replace(surgery, after=None), analysis=analysis)
    _check_weights(fine, operated)  # buffers that follow the maps, too
    returns_maps = isinstance(getattr(operated, "feature_info", None), FeatureInfo)
    try:
        grid = check_operated(
            analysis, planned, copy_to_meta(fine if returns_maps else operated).eval()
        )
    except GridError as problem:
        why = str(problem).removeprefix(f"{surgery.name} is not possible: ")
        raise GridError(f"the operated model is not what {surgery.name} gives: {why}") from problem
    _check_train_mode(operated, size)
    sites = tuple(check_site(change, original, operated) for change in planned.changes)
    _check_size(fine, operated, returns_maps)
    records, image = check_records(fine, operated), _image(original, analysis)
    maps, outputs = tuple[MapCheck, ...](), tuple[OutputCheck, ...]()
    if returns_maps and isinstance(operated, RewrittenModel):
        maps = check_maps(original, fine, operated, image, dilated=surgery.dilate)
        check_maps(original, fine, operated, image[:1], dilated=surgery.dilate)
        outputs = (OutputCheck("train mode", "not compared: maps are compared in eval mode", None),)
    else:
        outputs = check_outputs(original, fine, operated, image, planned)
    return Verification(
        surgery, size, tensors, grid.nodes, grid.exact, sites, maps, outputs, records, modes
    )


def _image(model: nn.Module, analysis: Analysis) -> Tensor:
    """Return two random images in the form that the model takes."""
    like, shape = next(model.parameters(), torch.empty(0)), one_image(analysis.recording).shape
    pixels = torch.randn(2, *shape[1:], generator=torch.Generator().manual_seed(0))
    return pixels.to(like.device, number_format(model))


def _check_untouched(original: nn.Module, operated: nn.Module, changed: set[str]) -> None:
    """Check that modules outside the plan have the same type and the same settings."""
    others = dict(operated.named_modules())
    for path, module in original.named_modules():
        if not path or path in changed:
            continue
        other = others.get(path)
        if (
            other is None
            or _kind(other) is not _kind(module)
            or module.extra_repr() != other.extra_repr()
        ):
            raise SurgeryError(f"module {path} is not the original's: {module} became {other}")


def _kind(module: nn.Module) -> type:
    """Return the class of a module.

    For a graph module, which has a derived class of its own, return the class it derives from.
    """
    kind = type(module).__mro__[1] if isinstance(module, fx.GraphModule) else type(module)
    return own_class(kind)


def _check_train_mode(operated: nn.Module, size: HW[int]) -> None:
    try:
        record(copy_to_meta(operated), size, training=True)
    except TraceError as problem:
        raise GridError(f"the operated model does not run in train mode: {problem}") from problem


def _check_weights(original: nn.Module, operated: nn.Module) -> int:
    """Check that parameters and buffers are equal; return how many a state_dict holds."""
    before, after = ({**dict(m.named_buffers()), **m.state_dict()} for m in (original, operated))
    buffers = dict(original.named_buffers())
    odd = sorted(
        {
            *(original.state_dict().keys() ^ operated.state_dict().keys()),
            *(before.keys() - after.keys()),
        }
    )
    if odd:  # the finer of two pools (`dual_path`) may have a buffer of its own, which is not saved
        raise SurgeryError(f"the state_dicts have different keys: {', '.join(odd[:5])}")
    tied = _tied(original) - _tied(operated)
    if tied:
        raise SurgeryError(
            f"{' and '.join(sorted(tied.pop()))} are one weight in the original and no longer one"
        )
    for key, value in before.items():
        if not isinstance(value, Tensor):
            continue
        if value.dtype != after[key].dtype or not torch.equal(value.cpu(), after[key].cpu()):
            raise SurgeryError(
                f"{'buffer' if key in buffers else 'weight'} {key} is not the original's"
            )
    return len(original.state_dict())


def _tied(model: nn.Module) -> set[frozenset[str]]:
    """Return the sets of names of those weights that have several names."""
    names: dict[int, set[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), set()).add(name)
    return {frozenset(found) for found in names.values() if len(found) > 1}


def _check_size(fine: nn.Module, operated: nn.Module, returns_maps: bool) -> None:
    """Compare the only input size that a graph with fixed sizes takes."""
    if isinstance(fine, RewrittenModel) and not isinstance(operated, RewrittenModel):
        raise SurgeryError("the recipe gives a graph, and the operated model is a plain module")
    sizes = [m.only_at for m in (fine, operated) if isinstance(m, RewrittenModel)]
    if len(set(sizes)) > 1 and not returns_maps:
        raise SurgeryError(f"only_at is {sizes[1]} where the surgery makes it {sizes[0]}")
