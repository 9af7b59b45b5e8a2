"""Image encoders with an FPN-style pixel decoder, all built from Detectron2's own modules.

Each returns p2..p5 at strides 4, 8, 16, 32. Detectron2's `build_resnet_fpn_backbone` is the fourth
of them and needs nothing from here.
"""

from __future__ import annotations

import logging
from functools import partial
from itertools import pairwise

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone, build_backbone
from detectron2.modeling.backbone import FPN, ResNet, SimpleFeaturePyramid, SwinTransformer, ViT
from detectron2.modeling.backbone.resnet import BasicBlock, BasicStem
from torch import nn

from alignzeg.modeling.freezing import KEY, freeze, validate_freezing

logger = logging.getLogger(__name__)

# Channels, blocks per stage and heads per stage; table 7 of arXiv 2103.14030.
SWIN_SIZES = {
    "tiny": {"embed_dim": 96, "depths": (2, 2, 6, 2), "num_heads": (3, 6, 12, 24)},
    "small": {"embed_dim": 96, "depths": (2, 2, 18, 2), "num_heads": (3, 6, 12, 24)},
    "base": {"embed_dim": 128, "depths": (2, 2, 18, 2), "num_heads": (4, 8, 16, 32)},
    "large": {"embed_dim": 192, "depths": (2, 2, 18, 2), "num_heads": (6, 12, 24, 48)},
}
# Channels, blocks, heads and the blocks with windowed attention; arXiv 2203.16527.
VIT_SIZES = {
    "base": {
        "embed_dim": 768,
        "depth": 12,
        "num_heads": 12,
        "window_block_indexes": (0, 1, 3, 4, 6, 7, 9, 10),
    },
    "large": {
        "embed_dim": 1024,
        "depth": 24,
        "num_heads": 16,
        "window_block_indexes": tuple(i for i in range(24) if i % 6 != 5),
    },
}


def _pick(sizes: dict[str, dict], size: str, key: str) -> dict:
    if size not in sizes:
        raise ValueError(f"{key} is {size!r}; choose one of {sorted(sizes)}")
    return sizes[size]


def build_image_encoder(cfg: CfgNode) -> Backbone:
    """The encoder of MODEL.BACKBONE.NAME; a warning is logged if it ignores FREEZE_AT.

    With ALIGNZEG.ENCODER.CHANNELS_LAST its kernels have their channels last in memory, and so has
    all that is convolved by them; see `layers.pointwise_by_onednn`.
    """
    name = cfg.MODEL.BACKBONE.NAME
    if BACKBONE_REGISTRY.get(name).__module__.startswith("detectron2."):
        validate_freezing(cfg)
    encoder = build_backbone(cfg)
    if cfg.MODEL.BACKBONE.FREEZE_AT and all(p.requires_grad for p in encoder.parameters()):
        logger.warning(
            "%s is %d, but %s freezes nothing", *(KEY, cfg.MODEL.BACKBONE.FREEZE_AT, name)
        )
    if cfg.ALIGNZEG.ENCODER.CHANNELS_LAST:
        encoder.to(memory_format=torch.channels_last)
    return encoder


@BACKBONE_REGISTRY.register()
def build_small_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> Backbone:
    """A narrow residual network with FPN, for small images such as those of zeroshapes."""
    widths = cfg.ALIGNZEG.ENCODER.SMALL_CHANNELS
    if len(widths) != 4 or any(a >= b for a, b in pairwise(widths)) or any(w % 8 for w in widths):
        raise ValueError(
            "ALIGNZEG.ENCODER.SMALL_CHANNELS needs four growing multiples of 8, for example "
            f"[32, 64, 96, 128]; got {list(widths)}"
        )
    # Group norm, so that neither the batch size nor the number of processes changes the result.
    norm = partial(nn.GroupNorm, 8)
    stages = []
    inside = widths[0]
    for index, width in enumerate(widths):
        stages.append(
            ResNet.make_stage(
                BasicBlock,
                2,
                in_channels=inside,
                out_channels=width,
                stride_per_block=[1 if index == 0 else 2, 1],
                norm=norm,
            )
        )
        inside = width
    names = [f"res{i + 2}" for i in range(len(widths))]
    stem = BasicStem(input_shape.channels, widths[0], norm=norm)
    bottom_up = ResNet(stem, stages, out_features=names)
    freeze([part.parameters() for part in (stem, *bottom_up.stages)], validate_freezing(cfg))
    return FPN(bottom_up, names, cfg.MODEL.FPN.OUT_CHANNELS, norm=norm)


@BACKBONE_REGISTRY.register()
def build_swin_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> Backbone:
    """Swin Transformer (ALIGNZEG.ENCODER.SWIN_SIZE) with FPN."""
    size = _pick(SWIN_SIZES, cfg.ALIGNZEG.ENCODER.SWIN_SIZE, "ALIGNZEG.ENCODER.SWIN_SIZE")
    bottom_up = SwinTransformer(in_chans=input_shape.channels, drop_path_rate=0.0, **size)
    parts = (bottom_up.patch_embed, *bottom_up.layers)
    freeze([part.parameters() for part in parts], validate_freezing(cfg))
    return FPN(
        bottom_up, ["p0", "p1", "p2", "p3"], cfg.MODEL.FPN.OUT_CHANNELS, norm=cfg.MODEL.FPN.NORM
    )


@BACKBONE_REGISTRY.register()
def build_vit_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> Backbone:
    """Plain ViT (ALIGNZEG.ENCODER.VIT_SIZE) with ViTDet's simple feature pyramid.

    It has no stages: MODEL.BACKBONE.FREEZE_AT counts patches and positions, then quarters of the
    blocks.
    """
    size = _pick(VIT_SIZES, cfg.ALIGNZEG.ENCODER.VIT_SIZE, "ALIGNZEG.ENCODER.VIT_SIZE")
    net = ViT(
        in_chans=input_shape.channels,
        window_size=14,
        use_rel_pos=True,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        **size,
    )
    quarter = len(net.blocks) // 4
    quarters = [net.blocks[i * quarter : (i + 1) * quarter].parameters() for i in range(4)]
    freeze([(net.pos_embed, *net.patch_embed.parameters()), *quarters], validate_freezing(cfg))
    return SimpleFeaturePyramid(
        net, "last_feat", cfg.MODEL.FPN.OUT_CHANNELS, scale_factors=(4.0, 2.0, 1.0, 0.5)
    )
