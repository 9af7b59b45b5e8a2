"""The pixel-level branch: DeepLabV3+ features and a linear classifier over them."""

from __future__ import annotations

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.projects.deeplab import DeepLabV3PlusHead
from torch import Tensor, nn


class PixelBranch(nn.Module):
    """Names every pixel by the last 1 x 1 layer of a DeepLabV3+.

    The features before that layer are what a generator imitates, and the layer alone is retrained
    on real and generated features.

    Source: DeepLabV3+ (arXiv 1802.02611), by Detectron2; its use here ZS3Net (arXiv 1906.00817).
    """

    @configurable
    def __init__(
        self, *, decoder: nn.Module, channels: int, num_classes: int, vlm_channels: int = 0
    ) -> None:
        """Takes the parts.

        Args:
            decoder: the image encoder's features -> (B, C, h, w) pixel features.
            channels: C.
            num_classes: K.
            vlm_channels: of a VLM's dense embedding that is appended to the decoder's features; the
                classifier reads both.
        """
        super().__init__()
        self.decoder = decoder
        self.channels = channels + vlm_channels
        self.classifier = nn.Linear(self.channels, num_classes)
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)

    @classmethod
    def from_config(
        cls,
        cfg: CfgNode,
        input_shape: dict[str, ShapeSpec],
        num_classes: int,
        vlm_channels: int = 0,
    ) -> dict[str, object]:
        """Reads MODEL.SEM_SEG_HEAD, as Detectron2's DeepLab project does.

        Raises:
            ValueError: if a feature is named that the image encoder does not give.
        """
        node = cfg.MODEL.SEM_SEG_HEAD
        missing = sorted(set(node.IN_FEATURES) - set(input_shape))
        if missing:
            raise ValueError(
                f"MODEL.SEM_SEG_HEAD.IN_FEATURES names {missing}, but the image encoder "
                f"{cfg.MODEL.BACKBONE.NAME} gives {sorted(input_shape)}"
            )
        # Without a number of classes Detectron2 builds the decoder alone; crops may have any size.
        parts = DeepLabV3PlusHead.from_config(cfg, input_shape)
        decoder = DeepLabV3PlusHead(**{**parts, "num_classes": None, "train_size": None})
        return {
            "decoder": decoder,
            "channels": node.CONVS_DIM,
            "num_classes": num_classes,
            "vlm_channels": vlm_channels,
        }

    def forward(self, features: dict[str, Tensor]) -> Tensor:
        """(B, C, h, w) of the decoder, at the stride of the finest feature that is read."""
        return self.decoder(features)

    def classify(self, pixels: Tensor) -> Tensor:
        """(B, K, h, w) scores of (B, C, h, w) pixel features."""
        return self.classifier(pixels.movedim(1, -1)).movedim(-1, 1)
