"""Module types that know the size of their grid, and how each follows a finer one.

Every entry is called with a module and `growth`, as `register_positions` says. The names are those
of timm's and torchvision's classes; none of them is imported, since versions differ in what they
have.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from stridesurgery.ops.positions import Cells, Growths, register_all, resample, set_buffer

# absolute positions


def _patch_embed(module: Any, growth: Growths) -> None:
    growth("").before.set(module, "img_size")
    growth("").after.set(module, "grid_size", "height", "width")
    if getattr(module, "grid_size", None) is not None:
        module.num_patches = math.prod(module.grid_size)


def _hybrid_embed(module: Any, growth: Growths) -> None:
    growth("backbone").after.set(module, "feature_size")
    _patch_embed(module, growth)
    sides = zip(module.img_size, module.feature_size, strict=True)
    module.feature_ratio = tuple(image // cells for image, cells in sides)


def _tokens(module: Any, growth: Growths) -> None:
    cells = growth("patch_embed").after
    if module.pos_embed is not None:
        prefix = module.pos_embed.shape[1] - math.prod(cells.old)
        resample(module, "pos_embed", cells, axis=1, prefix=prefix)
    _rotary(getattr(module, "rope", None), cells)


def _rotary(rope: Any, cells: Cells) -> None:
    """Let a rotary embedding span what it spanned, in finer steps."""
    old = getattr(rope, "feat_shape", None)
    if old is None:
        return
    if hasattr(rope, "ref_feat_shape"):
        rope.ref_feat_shape = rope.ref_feat_shape or list(old)
    rope.update_feat_shape(list(cells.follow(tuple(old))))
    if getattr(rope, "t_x", None) is not None:  # mixed: coordinates in cells
        down, right = cells.by if getattr(rope, "grid_indexing", "ij") == "xy" else cells.by[::-1]
        set_buffer(rope, "t_x", lambda: rope.t_x / right)
        set_buffer(rope, "t_y", lambda: rope.t_y / down)


def _torchvision_vit(module: Any, growth: Growths) -> None:
    cells = growth("conv_proj").after
    growth("conv_proj").before.set(module, "image_size")
    prefix = module.encoder.pos_embedding.shape[1] - math.prod(cells.old)
    resample(module.encoder, "pos_embedding", cells, axis=1, prefix=prefix)
    module.seq_length = math.prod(cells.new) + prefix


def _transformers_vit(module: Any, growth: Growths) -> None:
    cells = growth("patch_embeddings").after
    prefix = module.position_embeddings.shape[1] - math.prod(cells.old)
    resample(module, "position_embeddings", cells, axis=1, prefix=prefix)
    module.patch_embeddings.num_patches = math.prod(cells.new)


def _map_positions(*tables: tuple[str, str, int]) -> Callable[[Any, Growths], None]:
    """Return the entry of tables that are maps: (name, the submodule whose map they join, axis)."""

    def follow_maps(module: Any, growth: Growths) -> None:
        for name, source, axis in tables:
            if (table := getattr(module, name, None)) is not None:
                grid = table.shape[axis : axis + 2]
                resample(module, name, growth(source).after, axis=axis, grid=grid)

    return follow_maps


def _nest_level(module: Any, growth: Growths) -> None:
    cells, side = growth("transformer_encoder").before, module.block_size
    resample(module, "pos_embed", cells, axis=2, grid=(side, side))
    cells.set(module, "block_size")


def _hiera(module: Any, growth: Growths) -> None:
    cells = growth("patch_embed").after
    if module.pos_embed_win is None and module.pos_embed is not None:
        resample(module, "pos_embed", cells, axis=1)
    cells.set(module, "tokens_spatial_shape", "mask_spatial_shape")
    cells.set(module.unroll, "size")
    cells.set(module.reroll, "size")
    schedule = module.reroll.schedule
    module.reroll.schedule = {i: (steps, cells.follow(n)) for i, (steps, n) in schedule.items()}


def _attention_pool(module: Any, growth: Growths) -> None:
    cells = growth("").before
    resample(module, "pos_embed", cells, axis=0, grid=module.feat_size, prefix=1)
    cells.set(module, "feat_size")
    module.seq_len = math.prod(module.feat_size)


def _convit(module: Any, growth: Growths) -> None:
    _tokens(module, growth)
    cells = growth("patch_embed").after
    for block in module.blocks:
        if hasattr(block.attn, "rel_indices"):
            set_buffer(block.attn, "rel_indices", partial(_plain_offsets, block.attn, cells))


def _plain_offsets(module: Any, cells: Cells) -> Tensor:
    """Return (1, N, N, 3): the offsets (x, y, squared distance) of finer cells, in old cells."""
    before = getattr(module, "finer_by", (1, 1))
    module.finer_by = down, right = before[0] * cells.by[0], before[1] * cells.by[1]
    h, w = cells.new
    y = torch.arange(h).repeat_interleave(w) / down
    x = torch.arange(w).repeat(h) / right
    dy, dx = y - y[:, None], x - x[:, None]
    return torch.stack([dx, dy, dx**2 + dy**2], -1)[None]


# windows


def _swin_block(module: Any, growth: Growths) -> None:
    name = "feat_size" if hasattr(module, "feat_size") else "input_resolution"
    module.set_input_size(
        growth("").before.follow(tuple(getattr(module, name))), module.window_size
    )


def _stage(module: Any, growth: Growths) -> None:
    growth("").before.set(module, "input_resolution")
    growth("").after.set(module, "output_resolution", "feat_size")


def _pooled_window(module: Any, growth: Growths) -> None:
    """SAM 2's Hiera: behind the pool a window is smaller by the stride that stays."""
    if module.q_stride is not None:
        ends = zip(module.q_stride, growth("").before.by, growth("").after.by, strict=True)
        module.q_stride = tuple(s * before // after for s, before, after in ends)
        module.pools_in_windows = True  # which the check of shapes must know


def _fusion(module: Any, growth: Growths) -> None:
    growth("norm").before.set(module, "output_resolution")


def _partition(module: Any, growth: Growths) -> None:
    cells = growth("").before
    cells.set(module, "grid_size", "n_partitions")
    cells.set(module, "g" if module.partition_type == "window" else "p")


register_all(
    {
        "timm.layers.patch_embed.PatchEmbed timm.models.pit.ConvEmbedding "
        "timm.models.swin_transformer_v2_cr.PatchEmbed": _patch_embed,
        "timm.layers.hybrid_embed.HybridEmbed": _hybrid_embed,
        "timm.models.vision_transformer.VisionTransformer timm.models.eva.Eva "
        "timm.models.beit.Beit timm.models.cait.Cait": _tokens,
        "timm.models.convit.ConVit": _convit,
        "torchvision.models.vision_transformer.VisionTransformer": _torchvision_vit,
        "transformers.models.vit.modeling_vit.ViTEmbeddings "
        "transformers.models.deit.modeling_deit.DeiTEmbeddings "
        "transformers.models.vit_msn.modeling_vit_msn.ViTMSNEmbeddings": _transformers_vit,
        "timm.models.pit.PoolingVisionTransformer": _map_positions(("pos_embed", "patch_embed", 2)),
        "timm.models.volo.VOLO": _map_positions(("pos_embed", "network.1", 1)),
        "timm.models.vision_transformer_sam.VisionTransformerSAM": _map_positions(
            ("pos_embed", "patch_embed", 1)
        ),
        "timm.models.visformer.Visformer": _map_positions(
            *((f"pos_embed{i}", f"patch_embed{i}", 2) for i in (1, 2, 3))
        ),
        "timm.models.nest.NestLevel": _nest_level,
        "timm.models.hiera.Hiera": _hiera,
        "timm.layers.attention_pool2d.AttentionPool2d": _attention_pool,
        "timm.models.swin_transformer.SwinTransformerBlock "
        "timm.models.swin_transformer_v2.SwinTransformerV2Block "
        "timm.models.swin_transformer_v2_cr.SwinTransformerV2CrBlock": _swin_block,
        "timm.models.swin_transformer.SwinTransformerStage "
        "timm.models.swin_transformer_v2.SwinTransformerV2Stage "
        "timm.models.swin_transformer_v2_cr.SwinTransformerV2CrStage": _stage,
        "timm.models.hieradet_sam2.MultiScaleBlock": _pooled_window,
        "timm.models.mobilenetv5.MobileNetV5MultiScaleFusionAdapter": _fusion,
        "torchvision.models.maxvit.PartitionAttentionLayer": _partition,
    }
)
