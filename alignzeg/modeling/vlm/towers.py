"""Image towers: which can be read, and the dense features of those without a class token."""

from __future__ import annotations

from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

from alignzeg.modeling.vlm.regions import check_tower

REGION_MODES = ("MaskGuidedTokens", "MaskPooling")
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


def check_visual(visual: nn.Module, model_name: str, regions: str, blocks: int) -> None:
    """Refuse what cannot be read as asked.

    Raises:
        ValueError: for another region mode, too many blocks, or a tower without dense features.
    """
    if regions not in REGION_MODES:
        raise ValueError(f"ALIGNZEG.VLM.REGIONS is {regions!r}: choose one of {list(REGION_MODES)}")
    if isinstance(visual, VisionTransformer):
        check_tower(visual)
        depth = len(visual.transformer.resblocks)
        if not 1 <= blocks <= depth:
            raise ValueError(
                f"ALIGNZEG.VLM.REGION_BLOCKS is {blocks}: {model_name!r} has {depth} blocks, "
                f"choose 1 to {depth}"
            )
        return
    if regions == "MaskGuidedTokens":
        raise ValueError(
            f"MaskGuidedTokens needs a vision transformer and {model_name!r} is none: set "
            "ALIGNZEG.VLM.REGIONS to "
            "MaskPooling, or ALIGNZEG.VLM.MODEL to a ViT such as ViT-B-16"
        )
    convnet = (
        isinstance(visual, TimmModel)
        and hasattr(visual.trunk, "stages")
        and "pool" not in visual.head._modules
    )
    if not convnet and not isinstance(visual, ModifiedResNet):
        raise ValueError(
            f"the image tower of {model_name!r} ({type(visual).__name__}) has no dense features "
            "this project can read: "
            "set ALIGNZEG.VLM.MODEL to a ViT, an open_clip ResNet (RN50, ...) or a ConvNeXt"
        )
