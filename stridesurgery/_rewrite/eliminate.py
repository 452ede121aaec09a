"""From a request to an operated model."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from torch import nn

from stridesurgery._analysis import Analysis, Part, analyse, kind_of, part_of
from stridesurgery._hw import HW
from stridesurgery._rewrite.check_modes import check_same_maps
from stridesurgery._rewrite.check_phases import check_phases
from stridesurgery._rewrite.check_shapes import GridCheck, check_grid
from stridesurgery._rewrite.edit import Draft, finish, is_graph, make_draft
from stridesurgery._rewrite.plan import Plan, plan
from stridesurgery._rewrite.recipe import attach
from stridesurgery._rewrite.records import check_intermediates
from stridesurgery._rewrite.refusals import not_possible, way_out
from stridesurgery._rewrite.request import bound, requested
from stridesurgery._trace import Numbers, copied_model, copy_to_meta, record
from stridesurgery.errors import GridError, RequestError, SurgeryError, TraceError
from stridesurgery.surgery import Axis, Form, Options, Pool, Positions, Surgery

M = TypeVar("M", bound=nn.Module)


def eliminate(
    model: M,
    S: int | str | Surgery | None = None,
    L: int | str | Sequence[int | str] | None = None,
    *,
    stride: int = Options.stride,
    axis: Axis = Options.axis,
    pool: Pool = Options.pool,
    dilate: bool = Options.dilate,
    restore_at: int | str | None = Options.restore_at,
    form: Form = Options.form,
    at: str | None = Options.at,
    sizes: str = Options.sizes,
    centres: str = Options.centres,
    positions: Positions = Options.positions,
    forward_kwargs: dict[str, Any] | None = Options.forward_kwargs,
    output_stride: int | None = None,
    input_size: int | HW[int] | None = None,
    inplace: bool = False,
) -> M:
    """Eliminate strides of a model and keep every weight; later maps become k times larger.

    Args:
        model: a torchvision or timm model, or any module whose forward takes an image batch (N, C,
            H, W). Or a detector of a kind that is known (see `detection`): its backbone is
            operated, and its anchors, strides and pooling scales follow.
        S: how many strides (transitions) to eliminate; alone, the first S. Or a name such as
            "S2L4-6", or a `Surgery`, carried out with all those that it follows.
        L: at which layers: numbers as `inspect` shows them, or module names; one layer of each
            transition.
        stride: what remains of each stride; must divide it.
        axis: rows ("h"), columns ("w") or both ("hw").
        pool: whether a pool whose stride goes is removed ("remove", as in the paper) or runs at
            stride 1 ("keep").
        dilate: keep the pretrained features: every later map sampled `[::k, ::k]` is the
            original's, and so is the answer. Where no later map is made from more than windows and
            pooled maps, the later convolutions are dilated; what pools whole maps (squeeze-excite,
            the head) is then given the original's cells, in a rewritten graph. Else the finer map's
            phases go through the unchanged later layers, in a rewritten graph; their cells are
            evenly spaced up to the next stride that stays. `features` takes the finer maps out.
            Pools run at stride 1.
        restore_at: a later strided layer whose transition takes the eliminated strides on (a
            convolution its stride, a pool its stride and window), so that the maps after it keep
            their sizes.
        form: "module" returns a copy of the model with its modules edited (a rewritten graph where
            the stride is written in the forward code, the code computes its padding from it, or
            `forward_intermediates` would give maps of the old grid); "graph" returns the rewritten
            `torch.fx.GraphModule` for any model.
        positions: what becomes of what fixes the size of a grid, such as a vision transformer's
            table of positions: "refuse", or "resample" it where the finer cells look, each time
            that it is read. It keeps its key and its values. "resample-timm" takes the centres that
            timm's resampling has.
        forward_kwargs: arguments that `forward` gets besides the image, by name, such as
            `{"interpolate_pos_encoding": True}`. They are bound in the result, and part of its
            recipe.
        output_stride: in place of S and L: the last strides go that have to, for the last map to
            have this reduction.
        at: the path of the submodule to operate, such as "backbone.body"; layers are numbered in
            it. The result is a copy of the whole model. None: all of the model, or what is operated
            of a detector.
        sizes: whether a detector's boxes stay as many cells large ("follow"; for trained
            predictors) or as many pixels ("stay").
        centres: whether its boxes stand where cells look ("looks"), or as far from there as they
            did ("carried").
        input_size: pixels at which the maps are checked, one number or (h, w); by default the
            model's own. It is the size of the whole model's input; a submodule is checked at the
            size that it gets.
        inplace: edit `model` itself and return it; it is untouched if this raises.

    Returns:
        The operated model in the mode of the original, with the same state_dict keys and values,
        and the `Surgery` attached as `.surgery`.

    Raises:
        RequestError: the request does not fit the model.
        OperatorError: an operator that would have to change is not understood.
        GridError: a map would leave the grid, or a parameter fixes its size.
        ModelError: not a plain module: wrapped, compiled, scripted.
        TraceError: the forward pass cannot be recorded at this size.

    Example:
        >>> import timm, torch, stridesurgery as ss
        >>> model = timm.create_model("resnet18", num_classes=0, global_pool="").eval()
        >>> fine = ss.eliminate(model, S=1, L="layer4.0.conv1", input_size=64)
        >>> model(torch.rand(1, 3, 64, 64)).shape, fine(torch.rand(1, 3, 64, 64)).shape
        (torch.Size([1, 512, 2, 2]), torch.Size([1, 512, 4, 4]))
        >>> fine.surgery
        Surgery(S=1, L=(16,), input_size=(64, 64))
    """
    options = Options(
        stride=stride,
        axis=axis,
        pool=pool,
        dilate=dilate,
        restore_at=restore_at,
        form=form,
        at=at,
        sizes=sizes,
        centres=centres,
        positions=positions,
        forward_kwargs=forward_kwargs,
    )
    if isinstance(S, Surgery) and S.after is not None:
        # tried without weights first: the model is untouched if a later surgery is refused
        if inplace:
            eliminate(copy_to_meta(model), S, L, input_size=input_size, **options.options)
        model = eliminate(model, S.after, input_size=input_size, inplace=inplace)
        S = replace(S, after=None)
    if isinstance(S, Surgery):
        at, input_size = S.at if at is None else at, input_size or S.input_size
    unbound, model = model, bound(model, S if isinstance(S, Surgery) else options)
    part = part_of(model, at, input_size)
    if model is not unbound and (inplace or part.at):
        raise RequestError(
            "forward_kwargs are bound in a copy of the whole model; leave inplace and at out, or "
            "bind them before: model.forward = functools.partial(model.forward, ...)"
        )
    surgery, analysis = requested(part.module, S, L, part.size, options, output_stride)
    return operate(  # type: ignore[return-value]  # a graph has the attributes of its class
        model, surgery, analysis=analysis, inplace=inplace, part=part
    )


def operate(
    model: nn.Module,
    surgery: Surgery,
    *,
    analysis: Analysis | None = None,
    inplace: bool = False,
    part: Part | None = None,
) -> nn.Module:
    """Carry out a surgery; see `eliminate`. An analysis given is of this model or part."""
    part = part or part_of(model, surgery.at, surgery.input_size)
    analysis = analysis or analyse(part.module, part.size)
    planned = plan(analysis, replace(surgery, at=None))
    _check_result(model, planned, inplace, part)
    draft = _checked_draft(part.module, analysis, planned, inplace and not part.at)
    whole = model if inplace else copied_model(model)
    operated = finish(whole.get_submodule(part.at), analysis, planned, draft)
    if part.at:
        holder, _, name = part.at.rpartition(".")
        setattr(whole.get_submodule(holder), name, operated)
        before = getattr(model, "surgery", None)
        attach(whole, replace(part.outside(planned.surgery), after=before))
    else:
        whole = operated
    if part.detector is not None:
        followed(model, whole, part, planned)
    return whole


def followed(model: nn.Module, whole: nn.Module, part: Part, planned: Plan) -> None:
    """Give an operated detector what must follow its strides."""
    before, after = (m.get_submodule(part.detector or "") for m in (model, whole))
    kind = kind_of(before)
    assert kind is not None
    with Numbers():  # a draft without weights has its strides
        kind.follow(before, after, planned.surgery, planned.reduction)


def _checked_draft(model: nn.Module, analysis: Analysis, planned: Plan, inplace: bool) -> Draft:
    """Make the first draft that passes all checks.

    Raises:
        SurgeryError: that of the first way, if none passes.
    """
    refusal: GridError | None = None
    for how in _ways(planned)[: 1 if inplace else None]:
        try:
            draft = make_draft(copy_to_meta(model), analysis, planned, how)
            for check in CHECKS:
                check(analysis, planned, draft)
            return draft
        except TraceError as problem:
            refusal = refusal or not_possible(planned, problem, analysis)
        except GridError as problem:
            refusal = refusal or problem
        except SurgeryError:
            if refusal is None:
                raise
    assert refusal is not None
    raise GridError(f"{refusal}{way_out(model, planned, refusal)}") from refusal.__cause__


def _ways(planned: Plan) -> list[str]:
    """Return the forms of a draft to try, in turn; see `make_draft`.

    If edited modules do not pass, a graph is tried. Forward code that computes its padding from a
    stride (TensorFlow's) needs the original's, edited. A stride in the forward code may follow an
    attribute that is set along with the positions. `forward_intermediates` may fix a size that
    `forward` does not: a graph is without it.
    """
    ways = ["graph"] if is_graph(planned) else ["module", "as recorded"]
    if planned.surgery.positions != "refuse" and planned.surgery.form != "graph":
        ways = list(dict.fromkeys(["module", "graph", *ways]))
    return ways


def _check_result(model: nn.Module, planned: Plan, inplace: bool, part: Part) -> None:
    """Refuse a result that cannot be given in the way that was asked for.

    Raises:
        RequestError: the recipe has no place in the model, or a graph is needed in place.
    """
    if not isinstance(getattr(model, "surgery", None), (Surgery, type(None))):
        raise RequestError(
            "the model has an attribute .surgery of its own, where the recipe would go; rename it"
        )
    if inplace and part.detector is not None:
        raise RequestError("what follows a detector's strides is set in a copy; leave inplace out")
    if part.detector == part.at and is_graph(planned):
        raise RequestError(
            "a rewritten graph is no detector any more; its strides would not follow"
        )
    if inplace and not part.at and is_graph(planned):
        why = (
            "dilation gives"
            if planned.phases or planned.samples
            else "a stride that is written in the forward code needs"
        )
        raise RequestError(f"{why} a rewritten graph, which is not possible in place")


def check_values(analysis: Analysis, planned: Plan, draft: Draft) -> GridCheck:
    """Check the grid (of a dilated network, the batch) of every value in eval mode.

    Raises:
        GridError: a value is off the grid, or a parameter fixes the size of one.
    """
    recording = draft.recordings[False]
    if planned.phases:
        return GridCheck(check_phases(analysis, recording, planned), exact=True, reference=True)
    return check_grid(analysis, recording, planned)


CHECKS: tuple[Callable[[Analysis, Plan, Draft], object], ...] = (
    check_same_maps,
    check_values,
    check_intermediates,
)


def check_operated(analysis: Analysis, planned: Plan, meta_model: nn.Module) -> GridCheck:
    """Run an operated model without its weights and check every value, as `check_values` does.

    Raises:
        GridError: a value is off the grid, or a parameter fixes the size of one.
    """
    try:
        recording = record(meta_model, analysis.recording.size)
    except TraceError as problem:
        raise not_possible(planned, problem, analysis) from problem
    return check_values(analysis, planned, Draft(meta_model, {False: recording}))
