"""Shapes of the original on the larger images that an operated network is compared with."""

from stridesurgery._analysis import Analysis, SpatialOp
from stridesurgery._hw import HW
from stridesurgery._node import Key, Shape, info
from stridesurgery._rewrite.plan import Plan
from stridesurgery._rewrite.positions import enlarged
from stridesurgery._trace import record
from stridesurgery.errors import TraceError


def factors_of(plan: Plan) -> list[HW[int]]:
    """Return the factors by which maps grow, from the first planned transition to the last."""
    factors: list[HW[int]] = [(1, 1)]
    for transition in plan.transitions:
        rows, columns = factors[-1]
        factors.append((int(rows * transition.by[0]), int(columns * transition.by[1])))
    return list(dict.fromkeys(factors))  # restored strides lead back to 1


def factor_of(site: SpatialOp, plan: Plan) -> HW[int]:
    old = site.after.reduction
    new = plan.reduction(old)
    return int(old[0] / new[0]), int(old[1] / new[1])


def reference_shapes(
    original: Analysis, plan: Plan, factor: HW[int], now: dict[Key, Shape]
) -> dict[Key, Shape] | None:
    """Shapes of the original on the input that gives its maps the size they have after the cut."""
    recording = original.recording
    site = next(
        (s for s in original.spatial_ops if s.is_strided and factor_of(s, plan) == factor), None
    )
    if site is None:
        return None
    size = (recording.size[0] * factor[0], recording.size[1] * factor[1])
    key = info(site.node).key
    for _ in range(3):
        if min(size) < 1:
            return None  # the map has fewer cells than the original's at any size
        try:
            twin = enlarged(recording.model, original, size, plan.surgery.positions)
            shapes = record(twin, size, training=recording.training).shapes
        except TraceError:
            return None  # the model refuses other input sizes
        if key not in shapes or key not in now:
            return None
        short = [cells_of(now[key], site)[i] - cells_of(shapes[key], site)[i] for i in range(2)]
        if short == [0, 0]:
            return shapes
        # without padding, k*o cells need an input some pixels off k times the original's
        rows, columns = (
            s + d * int(r) for s, d, r in zip(size, short, site.after.reduction, strict=True)
        )
        size = rows, columns
    return None


def cells_of(shape: Shape, site: SpatialOp) -> HW[int]:
    return shape[site.operator.last - 1], shape[site.operator.last]
