"""Biases by offset or distance between positions, and how each follows a finer grid.

The entries are those of timm's relative attention; `register_positions` says how they are called.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from stridesurgery._hw import HW
from stridesurgery.ops.positions import Cells, Growths, register_all, resample, set_buffer


def offset_index(grid: HW[int], prefix: bool = False) -> Tensor:
    """Return (cells, cells) rows in a table by offset, as Swin and BEiT number them.

    With `prefix` a class token stands first: its three rows follow those of the offsets.
    """
    h, w = grid
    y = torch.arange(h).repeat_interleave(w)
    x = torch.arange(w).repeat(h)
    index = (y[:, None] - y + h - 1) * (2 * w - 1) + x[:, None] - x + w - 1
    if not prefix:
        return index
    rows = (2 * h - 1) * (2 * w - 1)
    index = torch.nn.functional.pad(index, (1, 0, 1, 0))
    index[0, :], index[:, 0], index[0, 0] = rows, rows + 1, rows + 2
    return index


def distance_index(grid: HW[int], step: HW[int] = (1, 1)) -> Tensor:
    """Return (queries, cells) rows in a table by distance, as LeViT numbers them."""
    y, x = torch.arange(grid[0]), torch.arange(grid[1])
    rows = (y[:: step[0], None] - y).abs()
    columns = (x[:: step[1], None] - x).abs()
    index = rows[:, None, :, None] * grid[1] + columns[None, :, None, :]
    return index.flatten(2).flatten(0, 1)


# biases by offset


def _beit_bias(module: Any, growth: Growths) -> None:
    if module.relative_position_bias_table is None:
        return
    cells, name = growth("").before, "relative_position_bias_table"
    resample(module, name, cells, axis=0, grid=module.window_size, suffix=3, offsets=True)
    cells.set(module, "window_size")
    new = module.window_size
    module.window_area = math.prod(new)
    set_buffer(module, "relative_position_index", lambda: offset_index(new, prefix=True))


def _window_bias(module: Any, cells: Cells) -> None:
    """Let one of timm's relative position modules follow a window that is the whole grid."""
    if module is None:
        return
    old, name = module.window_size, "relative_position_bias_table"
    cells.set(module, "window_size")
    new = module.window_size
    area = module.window_area = math.prod(new)
    if hasattr(module, "height_lookup"):  # one-hot look-up, as in TensorFlow's models
        resample(module, name, cells, axis=1, grid=old, offsets=True)
        module.bias_shape = (module.bias_shape[0], 2 * new[0] - 1, 2 * new[1] - 1)
        for axis, buffer in enumerate(("height_lookup", "width_lookup")):
            set_buffer(module, buffer, partial(_one_hot_offsets, new[axis]))
        return
    is_table = hasattr(module, name)
    prefix = module.prefix_tokens if is_table else 0
    index = partial(offset_index, new, prefix=prefix > 0)
    set_buffer(module, "relative_position_index", lambda: index().flatten())
    module.bias_shape = (area + prefix,) * 2 + tuple(module.bias_shape[2:])
    if is_table:
        resample(module, name, cells, axis=0, grid=old, suffix=3 * prefix, offsets=True)
    else:
        set_buffer(module, "rel_coords_log", partial(_log_offsets, module, old, cells))


def _one_hot_offsets(n: int) -> Tensor:
    offsets = torch.arange(n) - torch.arange(n)[:, None] + n - 1
    return (offsets[..., None] == torch.arange(2 * n - 1)).float()


def _log_offsets(module: Any, old: HW[int], cells: Cells) -> Tensor:
    """Return the log-spaced offsets (2h - 1, 2w - 1, 2) of finer cells, in the old grid's steps."""
    first, before = getattr(module, "first_window", (old, (1, 1)))
    by = (before[0] * cells.by[0], before[1] * cells.by[1])
    module.first_window = first, by
    axes = []
    for n, m, k, trained in zip(
        first, module.window_size, by, module.pretrained_window_size, strict=True
    ):
        offsets = torch.arange(1 - m, m) / k
        if module.mode == "swin":
            offsets = offsets / ((trained or n) - 1) * 8
        logs = offsets.abs().log1p() / (math.log(8) if module.mode == "swin" else 1)
        axes.append(offsets.sign() * logs)
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)


def _whole_map_attention(module: Any, growth: Growths) -> None:
    _window_bias(module.attn.rel_pos, growth("attn").before)


def _grown_window(module: Any, growth: Growths) -> None:
    """GCViT: a window spans what it spanned, since as many global queries stand in it as cells."""
    cells = growth("norm1").before
    _window_bias(module.attn.rel_pos, cells)
    module.window_size = module.attn.window_size = module.attn.rel_pos.window_size


def _relpos_vit(module: Any, growth: Growths) -> None:
    cells = growth("patch_embed").after
    _window_bias(module.shared_rel_pos, cells)
    for block in module.blocks:
        _window_bias(block.attn.rel_pos, cells)


def _bottleneck_positions(module: Any, growth: Growths) -> None:
    cells, grid = growth("").before, (module.height, module.width)
    for axis, name in enumerate(("height_rel", "width_rel")):
        resample(module, name, cells, axis=0, along=axis, grid=grid, offsets=True)
    module.height, module.width = cells.follow(grid)


def _axis_offsets(module: Any, cells: Cells) -> None:
    """Let rel_pos_h and rel_pos_w follow: offsets along one axis."""
    for axis, name in enumerate(("rel_pos_h", "rel_pos_w")):
        resample(module, name, cells, axis=0, along=axis, offsets=True)


def _sam_block(module: Any, growth: Growths) -> None:
    if module.window_size == 0 and module.attn.use_rel_pos:
        _axis_offsets(module.attn, growth("attn").before)


def _mvit_attention(module: Any, growth: Growths) -> None:
    if module.rel_pos_type == "spatial":  # in steps of the finer one of queries and keys
        pools = [
            getattr(module, name, None) and growth(name).after for name in ("pool_q", "pool_k")
        ]
        grids = [cells or growth("").before for cells in pools]
        old, new = (tuple(map(max, *(g[i] for g in grids))) for i in (0, 1))
        by = tuple(-(-n // o) for n, o in zip(new, old, strict=True))
        _axis_offsets(module, Cells(old, new, by))


# biases by distance


def _distances(module: Any, growth: Growths) -> None:
    """LeViT and its kin: queries stand at every step-th of the keys' cells."""
    cells, queries = growth("q" if hasattr(module, "q") else "").before, growth("q").after
    side = math.isqrt(module.attention_biases.shape[1])
    old = getattr(module, "resolution", (side, side))
    resample(module, "attention_biases", cells, axis=1, grid=old)
    new = module.resolution = cells.follow(old)
    step = [-(-n // q) for n, q in zip(new, queries.new, strict=True)]
    follow_steps(module, step)
    set_buffer(module, "attention_bias_idxs", lambda: distance_index(new, (step[0], step[1])))
    module.attention_bias_cache = {}
    if hasattr(module, "resolution2"):
        module.resolution2, module.N2 = queries.new, math.prod(queries.new)
    if hasattr(module, "N"):
        module.N = math.prod(new)


def _subsample(module: Any, growth: Growths) -> None:
    cells, ends = growth("").before, growth("").after
    module.resolution = cells.follow(module.resolution)
    follow_steps(module, [-(-n // q) for n, q in zip(module.resolution, ends.new, strict=True)])


def follow_steps(module: Any, step: Sequence[int]) -> None:
    """Set the stride by which LeViT's forward code takes its queries."""
    if hasattr(module, "stride"):
        if step[0] != step[1]:
            raise NotImplementedError("has one stride for both axes")
        module.stride = step[0]


register_all(
    {
        "timm.models.beit.Attention timm.models.beit.RelativePositionBias": _beit_bias,
        "timm.models.maxxvit.TransformerBlock2d": _whole_map_attention,
        "timm.models.gcvit.GlobalContextVitBlock": _grown_window,
        "timm.models.vision_transformer_relpos.VisionTransformerRelPos": _relpos_vit,
        "timm.layers.bottleneck_attn.PosEmbedRel": _bottleneck_positions,
        "timm.models.vision_transformer_sam.Block": _sam_block,
        "timm.models.mvitv2.MultiScaleAttention timm.models.mvitv2.MultiScaleAttentionPoolFirst": (
            _mvit_attention
        ),
        "timm.models.levit.Attention timm.models.levit.AttentionDownsample "
        "timm.models.efficientformer.Attention timm.models.efficientformer_v2.Attention2d "
        "timm.models.efficientformer_v2.Attention2dDownsample": _distances,
        "timm.models.levit.Downsample": _subsample,
    }
)
