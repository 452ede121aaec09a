"""The library's knowledge of operators."""

from stridesurgery.ops import functions, modules  # noqa: F401  (they fill the operator table
from stridesurgery.ops.across_batch import LONG_BATCH, Watch, across_batch, beyond_numbers
from stridesurgery.ops.fine_functional import conv2d, sample
from stridesurgery.ops.fine_modules import FineConv2d, FineConv2dSame
from stridesurgery.ops.modules import DILATABLE, read_conv, set_stride
from stridesurgery.ops.phases import (
    batch_to_space,
    first_phase,
    kept_cells,
    original_cells,
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
    dilated,
    read_module,
    refined,
    register_operator,
)
from stridesurgery.ops.tiles import (
    all_tiles,
    border_cells,
    cut_tiles,
    inside,
    per_tile,
    put_tiles,
    tile_index,
    tile_mask,
    with_border,
)
from stridesurgery.ops.traits import (
    function_traits,
    is_leaf,
    is_per_cell,
    known_result,
    known_sum,
    module_traits,
)
from stridesurgery.ops.window import Window, Windows

__all__ = [
    "DILATABLE",
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
    "Windows",
    "all_tiles",
    "cut_tiles",
    "border_cells",
    "inside",
    "per_tile",
    "put_tiles",
    "tile_index",
    "tile_mask",
    "with_border",
    "across_batch",
    "arguments",
    "coarsened",
    "dilated",
    "conv2d",
    "repeat_phases",
    "first_phase",
    "function_traits",
    "batch_to_space",
    "beyond_numbers",
    "is_leaf",
    "is_per_cell",
    "kept_cells",
    "known_result",
    "known_sum",
    "original_cells",
    "module_traits",
    "read_conv",
    "read_module",
    "refined",
    "register_operator",
    "sample",
    "set_stride",
    "space_to_batch",
]
