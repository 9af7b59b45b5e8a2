"""Our models with ResNet-50 and random weights, and what they are given."""

from __future__ import annotations

import contextlib
import tempfile
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import Tensor, nn

from alignzeg.data.labels import get_vocabulary
from alignzeg.engine import setup_config
from alignzeg.modeling.vlm.encoding import EncodedImage
from alignzeg.registries import VLM_REGISTRY
from alignzeg.structures import Targets
from bench.losses import scenes
from bench.measure import REPOSITORY
from bench.peers import MEAN, STD, random_clip

TOY = [
    *("MODEL.RESNETS.RES2_OUT_CHANNELS", "16", "MODEL.RESNETS.WIDTH_PER_GROUP", "4"),
    *("MODEL.RESNETS.STEM_OUT_CHANNELS", "8", "MODEL.FPN.OUT_CHANNELS", "32"),
    *("ALIGNZEG.EXTRACTOR.HIDDEN_DIM", "32", "ALIGNZEG.EXTRACTOR.FFN_DIM", "32"),
    *("ALIGNZEG.EXTRACTOR.NUM_QUERIES", "16", "ALIGNZEG.EXTRACTOR.LAYERS", "2"),
    *("ALIGNZEG.LOSS.NUM_POINTS", "64"),
]


@VLM_REGISTRY.register()
class NoVLM(nn.Module):
    """Stands for the frozen VLM, at no cost, where only what the peers have too is measured."""

    embed_dim, logit_scale, id, hash = 512, 100.0, "none", "none"

    def __init__(self, cfg: CfgNode) -> None:
        super().__init__()
        del cfg

    def embed_text(self, names: list[str]) -> Tensor:
        """(K, D) random unit-length prototypes, the same for the same number of names."""
        rng = torch.Generator().manual_seed(0)
        return F.normalize(torch.randn(len(names), self.embed_dim, generator=rng), dim=-1)

    def encode_image(self, image: Tensor) -> EncodedImage:
        """One place of zeros."""
        return EncodedImage(image.new_zeros(len(image), self.embed_dim, 1, 1))

    def embed_dense(self, image: EncodedImage) -> Tensor:
        """(B, D, 1, 1) zeros."""
        return image.dense

    def embed_regions(self, image: EncodedImage, mask_logits: Tensor) -> Tensor:
        """(B, Q, D) the same direction for every region."""
        del image
        shape = (*mask_logits.shape[:2], self.embed_dim)
        return mask_logits.new_full(shape, self.embed_dim**-0.5)


def ours(
    method: str, quick: bool, vlm: bool, opts: tuple[str, ...] = (), device: str = "cpu"
) -> nn.Module:
    """A model of configs/coco_stuff with ResNet-50 and random weights.

    Without the VLM, proposals are classified by their query state, as MaskFormer does.
    """
    words = ["MODEL.DEVICE", device, "MODEL.WEIGHTS", "", *(TOY if quick else ()), *opts]
    words += ["ALIGNZEG.VLM.TEMPLATES", "['single']"]
    words += ["ALIGNZEG.VLM.CACHE_DIR", tempfile.mkdtemp(prefix="bench-text-")]
    if not vlm:
        words += ["ALIGNZEG.VLM.NAME", "NoVLM", "ALIGNZEG.CLASSIFIER.EMBEDDING", "query"]
        words += ["ALIGNZEG.EXTRACTOR.USE_VLM", "False"]
    elif quick:
        words += ["ALIGNZEG.VLM.MODEL", "alignzeg-tiny", "ALIGNZEG.VLM.WEIGHTS", ""]
    cfg = setup_config(REPOSITORY / "configs" / "coco_stuff" / f"{method}_R50.yaml", words)
    torch.manual_seed(0)
    with random_clip() if vlm and not quick else contextlib.nullcontext():
        return build_model(cfg)


def batch(size: int, images: int = 2, masks: int = 8) -> list[dict[str, Any]]:
    """Random images with ground truth of `masks` seen classes."""
    rng = torch.Generator().manual_seed(3)
    vocabulary = get_vocabulary("coco_stuff_train").seen_part()
    found = []
    for target in scenes(masks, size)[:images]:
        image = torch.randint(0, 256, (3, size, size), generator=rng, dtype=torch.uint8)
        labels = target.labels % len(vocabulary)
        target = Targets(labels, target.masks, target.valid, "random")
        found.append({"image": image, "targets": target, "vocabulary": vocabulary})
    return found


def normalized(images: list[Tensor]) -> Tensor:
    """(B, 3, H, W) as the peers take them."""
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    return (torch.stack([image.float() for image in images]) - mean) / std
