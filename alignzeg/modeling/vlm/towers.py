"""Image towers: which can be read, and the dense features of those without a class token."""

from __future__ import annotations

import torch
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from timm.models.convnext import ConvNeXt
from torch import Tensor, nn

from alignzeg.modeling.vlm.regions import is_plain

REGION_MODES = ("MaskGuidedTokens", "MaskPooling")
# A model and weights that can be had together, for who must take others.
MEANWHILE = "until it can be, set ALIGNZEG.VLM.MODEL to 'ViT-B-16' with WEIGHTS 'laion2b_s34b_b88k'"
_CONV_STRIDE = 32


def cell_size(visual: nn.Module) -> tuple[int, int]:
    """Rows and columns of pixels behind one place of the dense grid."""
    if isinstance(visual, VisionTransformer):
        return visual.patch_size
    return _CONV_STRIDE, _CONV_STRIDE


def _resnet_dense(visual: ModifiedResNet, image: Tensor) -> Tensor:
    """(B, D, h, w) of an open_clip ResNet: the value path of its attention pooling.

    Source: arXiv:2112.01071 (MaskCLIP).
    """
    maps = visual.layer4(visual.layer3(visual.layer2(visual.layer1(visual.stem(image)))))
    pool = visual.attnpool
    return pool.c_proj(pool.v_proj(maps.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)


def _timm_dense(visual: TimmModel, image: Tensor) -> Tensor:
    """(B, D, h, w) of a timm ConvNet: its head applied at every place, not to the mean."""
    maps = visual.trunk.forward_features(image)
    head = visual.trunk.head
    maps = head.norm(maps) if hasattr(head, "norm") else maps
    places = maps.permute(0, 2, 3, 1)
    return visual.head(getattr(head, "pre_logits", nn.Identity())(places)).permute(0, 3, 1, 2)


def convnet_dense(visual: ModifiedResNet | TimmModel, image: Tensor) -> Tensor:
    """(B, D, h, w) features in the text space of a normalised (B, 3, H, W) image."""
    dense = _resnet_dense if isinstance(visual, ModifiedResNet) else _timm_dense
    return dense(visual, image)


def check_tower(visual: nn.Module, embed_dim: int, model_name: str) -> None:
    """Refuse a tower that no region mode reads; it may be without values, on "meta".

    Raises:
        ValueError: saying what to take meanwhile.
    """
    plain = isinstance(visual, VisionTransformer) and is_plain(visual)
    if not plain and not _is_convnet(visual, embed_dim):
        tower = visual.trunk if isinstance(visual, TimmModel) else visual
        raise ValueError(
            f"the image tower of {model_name!r} ({type(tower).__name__}) cannot be read: it is no "
            "plain ViT with a class token, no ResNet of open_clip and no ConvNeXt; no setting of "
            f"ALIGNZEG.VLM.REGIONS changes that: {MEANWHILE}"
        )


def check_regions(visual: nn.Module, model_name: str, regions: str, blocks: int) -> None:
    """Refuse another region mode, or one that a tower that can be read does not allow.

    Raises:
        ValueError: naming what it does allow.
    """
    if regions not in REGION_MODES:
        raise ValueError(f"ALIGNZEG.VLM.REGIONS is {regions!r}: choose one of {list(REGION_MODES)}")
    if isinstance(visual, VisionTransformer):
        depth = len(visual.transformer.resblocks)
        if not 1 <= blocks <= depth:
            raise ValueError(
                f"ALIGNZEG.VLM.REGION_BLOCKS is {blocks}: {model_name!r} has {depth} blocks, "
                f"choose 1 to {depth}"
            )
    elif regions == "MaskGuidedTokens":
        raise ValueError(
            f"MaskGuidedTokens needs a vision transformer and {model_name!r} is none: set "
            "ALIGNZEG.VLM.REGIONS to MaskPooling, or ALIGNZEG.VLM.MODEL to a ViT such as ViT-B-16"
        )


def _is_convnet(visual: nn.Module, embed_dim: int) -> bool:
    """Whether `convnet_dense` reads a tower, in channels of the text space."""
    if isinstance(visual, ModifiedResNet):
        return True
    if not isinstance(visual, TimmModel) or not isinstance(visual.trunk, ConvNeXt):
        return False
    if "pool" in visual.head._modules:
        return False
    try:
        with torch.no_grad():
            device = next(visual.parameters()).device
            dense = _timm_dense(visual, torch.zeros(1, 3, 64, 64, device=device))
    except (RuntimeError, TypeError, AttributeError):
        return False
    return tuple(dense.shape) == (1, embed_dim, 64 // _CONV_STRIDE, 64 // _CONV_STRIDE)
