"""From a request to an operated model."""

from stridesurgery._rewrite.check_modes import check_alike
from stridesurgery._rewrite.dilate import dilated_graph, rearranged, reassembled_map, with_samples
from stridesurgery._rewrite.eliminate import check_operated, eliminate, operate
from stridesurgery._rewrite.plan import Change, Plan, changes_of, plan
from stridesurgery._rewrite.recipe import ENTRY, recipes_in
from stridesurgery._rewrite.records import (
    described,
    intermediates,
    larger_by,
    records_of,
    refreshed,
)
from stridesurgery._rewrite.request import check_one_path, requested

__all__ = [
    "ENTRY",
    "described",
    "Change",
    "Plan",
    "changes_of",
    "check_alike",
    "check_one_path",
    "eliminate",
    "intermediates",
    "larger_by",
    "operate",
    "dilated_graph",
    "plan",
    "rearranged",
    "recipes_in",
    "records_of",
    "refreshed",
    "check_operated",
    "requested",
    "with_samples",
    "reassembled_map",
]
