"""Record a model without its weights as a graph."""

from stridesurgery._trace.graph_model import RewrittenModel, copied, rewritten
from stridesurgery._trace.leftovers import state_of
from stridesurgery._trace.meta_copy import (
    check_plain,
    copied_model,
    copy_to_meta,
    default_size,
    input_channels,
    number_format,
)
from stridesurgery._trace.numbers import Numbers
from stridesurgery._trace.record import image_for, is_fixed_size, one_image, record
from stridesurgery._trace.recording import (
    Recording,
    is_overwritten,
    lasting_memory,
    tensors_returned,
)

__all__ = [
    "Numbers",
    "Recording",
    "RewrittenModel",
    "check_plain",
    "copied",
    "copied_model",
    "copy_to_meta",
    "default_size",
    "image_for",
    "input_channels",
    "is_fixed_size",
    "is_overwritten",
    "lasting_memory",
    "number_format",
    "one_image",
    "record",
    "rewritten",
    "state_of",
    "tensors_returned",
]
