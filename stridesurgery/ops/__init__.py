"""The library's knowledge of operators."""

from stridesurgery.ops import functions, modules  # noqa: F401  (they fill the operator table
from stridesurgery.ops.across_batch import LONG_BATCH, Watch, across_batch, beyond_numbers
from stridesurgery.ops.fine_functional import conv2d, sample
from stridesurgery.ops.fine_modules import FineConv2d, FineConv2dSame
from stridesurgery.ops.modules import read_conv, set_stride
from stridesurgery.ops.phases import (
    batch_to_space,
    first_phase,
    kept_cells,
    repeat_phases,
    space_to_batch,
)
from stridesurgery.ops.registry import (
    FUNCTIONS,
    MODULES,
    POOLS,
    SAMPLERS,
    FunctionRule,
    Operator,
    arguments,
    coarsened,
    read_module,
    refined,
    register_operator,
)
from stridesurgery.ops.traits import (
    function_traits,
    is_leaf,
    known_result,
    known_sum,
    module_traits,
)
from stridesurgery.ops.window import Window

__all__ = [
    "FUNCTIONS",
    "FineConv2d",
    "FineConv2dSame",
    "FunctionRule",
    "LONG_BATCH",
    "MODULES",
    "Operator",
    "POOLS",
    "SAMPLERS",
    "Watch",
    "Window",
    "across_batch",
    "arguments",
    "coarsened",
    "conv2d",
    "repeat_phases",
    "first_phase",
    "function_traits",
    "batch_to_space",
    "beyond_numbers",
    "is_leaf",
    "kept_cells",
    "known_result",
    "known_sum",
    "module_traits",
    "read_conv",
    "read_module",
    "refined",
    "register_operator",
    "sample",
    "set_stride",
    "space_to_batch",
]
