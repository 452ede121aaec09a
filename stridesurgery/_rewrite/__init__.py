"""From a request to an operated model."""

from stridesurgery._rewrite.check_modes import check_alike
from stridesurgery._rewrite.dilate import dilated_graph
from stridesurgery._rewrite.eliminate import check_operated, eliminate, operate
from stridesurgery._rewrite.plan import Change, Plan, changes_of, plan
from stridesurgery._rewrite.positions import enlarged, knows_positions
from stridesurgery._rewrite.rearrange import rearranged, reassembled_map, with_samples
from stridesurgery._rewrite.recalibrate import recalibrate
from stridesurgery._rewrite.records import (
    described,
    intermediates,
    larger_by,
    records_of,
    refreshed,
)
from stridesurgery._rewrite.request import bound, check_one_path, requested
from stridesurgery._rewrite.saving import fill, load, read, save, written_whole

__all__ = [
    "Change",
    "Plan",
    "bound",
    "changes_of",
    "check_alike",
    "check_one_path",
    "check_operated",
    "described",
    "dilated_graph",
    "eliminate",
    "enlarged",
    "fill",
    "intermediates",
    "larger_by",
    "knows_positions",
    "load",
    "operate",
    "plan",
    "read",
    "rearranged",
    "reassembled_map",
    "recalibrate",
    "records_of",
    "refreshed",
    "requested",
    "save",
    "with_samples",
    "written_whole",
]
