"""A model without its weights, as a graph."""

from stridesurgery._trace.graph_model import RewrittenModel, copied, rewritten
from stridesurgery._trace.meta_copy import copied_model, default_size, number_format, without_weights
from stridesurgery._trace.record import image_for, one_image, record
from stridesurgery._trace.recording import Traced, is_overwritten, lasting_memory, tensors_returned

__all__ = [
    "RewrittenModel",
    "Traced",
    "copied",
    "copied_model",
    "default_size",
    "image_for",
    "is_overwritten",
    "lasting_memory",
    "number_format",
    "one_image",
    "record",
    "rewritten",
    "tensors_returned",
    "without_weights",
]
