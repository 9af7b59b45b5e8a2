"""Meta-architectures of the pixel-level family: every pixel is named on its own, without masks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, Backbone, build_backbone
from detectron2.structures import ImageList
from torch import Tensor, nn

from alignzeg.data.labels import training_vocabulary
from alignzeg.losses.pixels import pixel_cross_entropy
from alignzeg.modeling.layers import PixelNormalizer
from alignzeg.modeling.pixel_branch import PixelBranch
from alignzeg.modeling.prompts import shared_vocabulary
from alignzeg.structures import IGNORE_LABEL, Vocabulary


@META_ARCH_REGISTRY.register()
class PixelSegmenter(nn.Module):
    """A DeepLabV3+ trained on the pixels of seen classes; it never answers an unseen one.

    The first step of ZS3Net: its features are what the generator learns to imitate.

    Source: ZS3Net (arXiv 1906.00817), step 0.
    """

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        branch: PixelBranch,
        seen: Vocabulary,
        names: Sequence[str],
        normalizer: PixelNormalizer,
        balance: float = 0.0,
    ) -> None:
        """Takes the parts.

        Args:
            backbone: Detectron2 image encoder.
            branch: features and classifier.
            seen: the classes that have training masks.
            names: what the classifier's K scores stand for, the seen ones first.
            normalizer: RGB images in 0..255 -> the image encoder's input.
            balance: of the loss, see `pixel_cross_entropy`.
        """
        super().__init__()
        self.backbone = backbone
        self.branch = branch
        self.seen = seen
        self.names = tuple(names)
        self.normalizer = normalizer
        self.balance = balance

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, object]:
        """Builds the parts that the config names.

        Raises:
            ValueError: if windows or several scales are asked for, which only proposals know.
        """
        if cfg.TEST.AUG.ENABLED or cfg.ALIGNZEG.TEST.WINDOW:
            raise ValueError(
                f"{cfg.MODEL.META_ARCHITECTURE} looks at an image once: set TEST.AUG.ENABLED to "
                "False and ALIGNZEG.TEST.WINDOW to 0"
            )
        backbone = build_backbone(cfg)
        seen = training_vocabulary(cfg)
        return {
            "backbone": backbone,
            "branch": PixelBranch(cfg, backbone.output_shape(), len(seen)),
            "seen": seen,
            "names": seen.names,
            "normalizer": PixelNormalizer(
                cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD, cfg.INPUT.FORMAT
            ),
            "balance": cfg.ALIGNZEG.LOSS.PIXEL_BALANCE,
        }

    @property
    def device(self) -> torch.device:
        """Where the model lives."""
        return self.normalizer.mean.device

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        """Detectron2's interface.

        Args:
            batched_inputs: one dict per image with "image" (3, H, W) uint8 RGB, "vocabulary", and
                "targets" in training or "height" and "width" of the wanted label map otherwise.

        Returns:
            {"loss_pixel": scalar} in training, else for each image {"sem_seg": (height, width)
            uint8, or uint16 for more than 255 names}.

        Raises:
            ValueError: if the images of a batch do not share one vocabulary, or it has no class
                that the classifier knows.
        """
        vocabulary = shared_vocabulary(batched_inputs)
        if not self.training and len(batched_inputs) > 1:
            # The network sees padding: an answer must not depend on the sizes of other images.
            return [self([item])[0] for item in batched_inputs]
        images = self.pad([item["image"] for item in batched_inputs])
        logits = self.branch.classify(self.pixels(images))
        if self.training:
            targets = [item["targets"].to(self.device) for item in batched_inputs]
            size = tuple(images.tensor.shape[-2:])
            targets = [target.padded(size) for target in targets]
            return {"loss_pixel": pixel_cross_entropy(logits, targets, self.balance)}
        known = self.scores_of(vocabulary)
        return [
            {
                "sem_seg": self.label_map(
                    scores[known.clamp(min=0)],
                    known < 0,
                    images,
                    size,
                    (item.get("height", size[0]), item.get("width", size[1])),
                )
            }
            for item, scores, size in zip(batched_inputs, logits, images.image_sizes, strict=True)
        ]

    def pad(self, images: Sequence[Tensor]) -> ImageList:
        """A batch of padded RGB images in 0..255."""
        return ImageList.from_tensors(
            [image.to(self.device).float() for image in images],
            # The coarsest feature, at stride 32, must divide the image.
            max(self.backbone.size_divisibility, 32),
            padding_constraints=self.backbone.padding_constraints,
        )

    def pixels(self, images: ImageList) -> Tensor:
        """(B, C, h, w) pixel features of a padded batch."""
        return self.branch(self.backbone(self.normalizer(images.tensor)))

    def scores_of(self, vocabulary: Vocabulary) -> Tensor:
        """(K,) which of the classifier's scores each asked class has, -1 for none.

        Raises:
            ValueError: if none of the classes has one.
        """
        places = {name: place for place, name in enumerate(self.names)}
        known = [places.get(name, -1) for name in vocabulary.names]
        if max(known) < 0:
            raise ValueError(
                f"this pixel classifier knows none of {list(vocabulary.names)}; it was trained "
                f"for {list(self.names)}, and unlike AlignZeg it can name no other classes"
            )
        return torch.tensor(known, device=self.device)

    @staticmethod
    def label_map(
        logits: Tensor,
        never: Tensor,
        images: ImageList,
        image_size: tuple[int, int],
        output_size: tuple[int, int],
    ) -> Tensor:
        """Names every pixel.

        Args:
            logits: (K, h, w) scores over a padded image.
            never: (K,) bool, classes that are no answer.
            images: the padded batch.
            image_size: height and width of the image inside it.
            output_size: height and width of the label map.

        Returns:
            output_size, uint8 or uint16.
        """
        padded = tuple(images.tensor.shape[-2:])
        full = F.interpolate(logits[None].float(), padded, mode="bilinear", align_corners=False)
        full = full[..., : image_size[0], : image_size[1]]
        if tuple(full.shape[-2:]) != tuple(output_size):
            full = F.interpolate(full, output_size, mode="bilinear", align_corners=False)
        labels = full[0].masked_fill(never[:, None, None], -torch.inf).argmax(dim=0)
        return labels.to(torch.uint8 if len(logits) <= IGNORE_LABEL else torch.uint16).cpu()
