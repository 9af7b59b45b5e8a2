"""AlignZeg's extractor: queries and pixel features refine each other, beside the frozen VLM."""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from torch import Tensor, nn

from alignzeg.modeling.layers import MASK_STRIDE, AttentionBlock, resize, sine_position
from alignzeg.modeling.proposals.plain import Pixels, PlainExtractor
from alignzeg.registries import PROPOSAL_EXTRACTOR_REGISTRY


@PROPOSAL_EXTRACTOR_REGISTRY.register()
class MutuallyRefinedExtractor(PlainExtractor):
    """AlignZeg's extractor: queries and pixel features refine each other.

    Pixel features are Conv1x1(image features) + Conv1x1(VLM features) at every stride [ours:
    additive fusion]. After the queries have read a level, the level reads the queries [paper], and
    the change it went through is added to the features that the masks are cut from [ours].

    Source: AlignZeg (arXiv 2404.05667), section 3.2.
    """

    @configurable
    def __init__(
        self,
        *,
        dense_dim: int,
        use_vlm: bool = True,
        refine_features: bool = True,
        **plain: Any,
    ) -> None:
        """Builds the extractor.

        Args:
            dense_dim: D, channels of the VLM's dense features.
            use_vlm: fuse the VLM's dense features.
            refine_features: let pixel features attend to the queries.
            plain: what `PlainExtractor` takes.

        Raises:
            ValueError: as `PlainExtractor`.
        """
        super().__init__(**plain)
        hidden_dim, layers, heads = (plain[key] for key in ("hidden_dim", "layers", "heads"))
        self.project_vlm = (
            nn.ModuleDict({name: nn.Conv2d(dense_dim, hidden_dim, 1) for name in self.project})
            if use_vlm
            else None
        )
        # The layer after the last refinement would change nothing that is read again except the
        # mask features, so every layer has its own block.
        self.refiners = (
            nn.ModuleList(
                AttentionBlock(hidden_dim, heads, 2 * hidden_dim, cross=True) for _ in range(layers)
            )
            if refine_features
            else None
        )
        self._extend(plain["num_queries"], hidden_dim)
        self.merge = nn.ModuleList(
            nn.Conv2d(hidden_dim, hidden_dim, 1) for _ in range(layers if refine_features else 0)
        )

    def _extend(self, num_queries: int, hidden_dim: int) -> None:
        """Makes what a subclass adds; here, since the order decides the weights of a seed."""

    @classmethod
    def from_config(
        cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec], dense_dim: int
    ) -> dict[str, object]:
        """Reads ALIGNZEG.EXTRACTOR."""
        return super().from_config(cfg, input_shape, dense_dim) | {
            "dense_dim": dense_dim,
            "use_vlm": cfg.ALIGNZEG.EXTRACTOR.USE_VLM,
            "refine_features": cfg.ALIGNZEG.EXTRACTOR.REFINE_FEATURES,
        }

    def pyramid(self, features: dict[str, Tensor], dense: Tensor) -> Pixels:
        """Fused pixel features for every stride."""
        levels = super().pyramid(features, dense).levels
        if self.project_vlm is None:
            return Pixels(levels)
        return Pixels(
            {
                stride: level + resize(self.project_vlm[str(stride)](dense), level.shape[-2:])
                for stride, level in levels.items()
            }
        )

    def refine(
        self,
        index: int,
        stride: int,
        pixels: Pixels,
        queries: Tensor,
        position: Tensor,
    ) -> Pixels:
        """Lets the level at `stride` attend to the queries and passes the change on to stride 4."""
        if self.refiners is None:
            return pixels
        level = pixels.levels[stride]
        tokens = level.flatten(2).transpose(1, 2)
        _, channels, height, width = level.shape
        grid = sine_position(height, width, channels, level.device)
        refined = self.refiners[index](tokens, queries, position=grid, key_position=position)
        refined = refined.transpose(1, 2).reshape(level.shape)
        finest = pixels.levels[MASK_STRIDE]
        change = resize(self.merge[index](refined - level), finest.shape[-2:])
        levels = pixels.levels | {stride: refined, MASK_STRIDE: finest + change}
        return Pixels(levels, pixels.frozen)
