"""From a request to an operated model."""

from stridesurgery._rewrite.check_modes import check_alike, holds_sizes
from stridesurgery._rewrite.dilate import phased, rearranged, whole_map
from stridesurgery._rewrite.eliminate import eliminate, operate, rehearse
from stridesurgery._rewrite.plan import Change, Plan, changes_of, plan
from stridesurgery._rewrite.records import described, intermediates, larger_by, recorded, refreshed
from stridesurgery._rewrite.request import check_one_path, requested

__all__ = [
    "described",
    "Change",
    "Plan",
    "changes_of",
    "check_alike",
    "check_one_path",
    "eliminate",
    "holds_sizes",
    "intermediates",
    "larger_by",
    "operate",
    "phased",
    "plan",
    "rearranged",
    "recorded",
    "refreshed",
    "rehearse",
    "requested",
    "whole_map",
]
