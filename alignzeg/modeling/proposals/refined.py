"""AlignZeg's extractor: queries and pixel features refine each other, on top of the VLM."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from torch import Tensor, nn

from alignzeg.modeling.layers import AttentionBlock, resize, sine_position
from alignzeg.modeling.proposals.plain import MASK_STRIDE, Pixels, PlainExtractor
from alignzeg.registries import PROPOSAL_EXTRACTOR_REGISTRY
from alignzeg.structures import Proposals

SEED_STRIDE = 8
# Logits that learning may add to or take from likeness, whose own range is about +-8: only what is
# learned with near certainty overrules it. [ours]
LEARNED_REACH = 12.0
# Likeness is scale * (cosine - threshold): the middle of each, and how far a query moves it. [ours]
SCALE, SCALE_REACH = 12, 4
THRESHOLD, THRESHOLD_REACH = 0.3, 0.15


def at_grid_points(level: Tensor, side: int) -> Tensor:
    """(B, side * side, C) features of (B, C, h, w) at the centres of a square grid, row by row."""
    centers = (torch.arange(side, device=level.device, dtype=level.dtype) * 2 + 1) / side - 1
    points = torch.stack(torch.meshgrid(centers, centers, indexing="xy"), dim=-1)
    points = points.expand(len(level), -1, -1, -1)
    return F.grid_sample(level, points, align_corners=False).flatten(2).transpose(1, 2)


@PROPOSAL_EXTRACTOR_REGISTRY.register()
class MutuallyRefinedExtractor(PlainExtractor):
    """AlignZeg's extractor: queries and pixel features refine each other, on top of the VLM.

    Pixel features are Conv1x1(image features) + Conv1x1(VLM features) at every stride [ours:
    additive fusion]. After the queries have read a level, the level reads the queries [paper], and
    the change it went through is added to the features that the masks are cut from [ours]. Each
    query starts from what lies at its point of a regular grid and not only from what was rewarded
    in training, and likeness in the frozen VLM's feature space draws its mask together, also where
    nothing was ever rewarded [ours].

    Source: AlignZeg (arXiv 2404.05667), section 3.2.
    """

    @configurable
    def __init__(
        self,
        *,
        input_shape: dict[str, ShapeSpec],
        num_queries: int,
        hidden_dim: int,
        layers: int,
        heads: int,
        ffn_dim: int,
        dense_dim: int,
        use_vlm: bool,
        refine_features: bool,
        seed_queries: bool,
        likeness: bool,
    ) -> None:
        """Builds the extractor; arguments as in `PlainExtractor`.

        Args:
            input_shape: the image encoder's outputs.
            num_queries: Q.
            hidden_dim: C.
            layers: refinement layers.
            heads: attention heads.
            ffn_dim: channels inside the queries' feed-forward blocks.
            dense_dim: D, channels of the VLM's dense features.
            use_vlm: fuse the VLM's dense features.
            refine_features: let pixel features attend to the queries.
            seed_queries: start each query from the pixel features at its point of a square grid;
                `num_queries` is then a square number.
            likeness: let the VLM's features say which pixels belong together; needs `use_vlm` and
                `seed_queries`.

        Raises:
            ValueError: as `PlainExtractor`, or if the number of queries is no square, or likeness
                lacks what it needs.
        """
        super().__init__(
            input_shape=input_shape,
            num_queries=num_queries,
            hidden_dim=hidden_dim,
            layers=layers,
            heads=heads,
            ffn_dim=ffn_dim,
        )
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
        self.seed_side = math.isqrt(num_queries) if seed_queries else 0
        if seed_queries and self.seed_side**2 != num_queries:
            raise ValueError(
                "EXTRACTOR.SEED_QUERIES lays the queries on a square grid, so NUM_QUERIES must be "
                f"a square number such as 36, 64 or 100; got {num_queries}"
            )
        self.seed = nn.Linear(hidden_dim, hidden_dim) if seed_queries else None
        if likeness and not (use_vlm and seed_queries):
            raise ValueError("EXTRACTOR.LIKENESS needs USE_VLM and SEED_QUERIES; turn them on too")
        self.likeness = nn.Linear(hidden_dim, 2) if likeness else None
        if self.likeness is not None:
            # Scale and threshold of the cosine, the same for every query at first.
            nn.init.zeros_(self.likeness.weight)
            nn.init.zeros_(self.likeness.bias)
        self.merge = nn.ModuleList(
            nn.Conv2d(hidden_dim, hidden_dim, 1) for _ in range(layers if refine_features else 0)
        )

    @classmethod
    def from_config(
        cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec], dense_dim: int
    ) -> dict[str, object]:
        """Reads ALIGNZEG.EXTRACTOR."""
        return super().from_config(cfg, input_shape, dense_dim) | {
            "dense_dim": dense_dim,
            "use_vlm": cfg.ALIGNZEG.EXTRACTOR.USE_VLM,
            "refine_features": cfg.ALIGNZEG.EXTRACTOR.REFINE_FEATURES,
            "seed_queries": cfg.ALIGNZEG.EXTRACTOR.SEED_QUERIES,
            "likeness": cfg.ALIGNZEG.EXTRACTOR.LIKENESS,
        }

    def first_queries(self, pixels: Pixels) -> tuple[Tensor, Tensor]:
        """Learned queries, each with the feature and the position of its point added."""
        queries, position = super().first_queries(pixels)
        if self.seed is None:
            return queries, position
        level = pixels.levels[SEED_STRIDE]
        queries = queries + self.seed(at_grid_points(level, self.seed_side))
        grid = sine_position(self.seed_side, self.seed_side, level.shape[1], level.device)
        return queries, position + grid

    def predict(self, queries: Tensor, pixels: Pixels, previous: Tensor | None) -> Proposals:
        """Masks of the queries: what was learned, plus likeness in the frozen VLM's eyes.

        A pixel is like a query as far as its VLM feature is like the mean feature of the query's
        mask so far (at first: the feature at its point). Each query says how much that counts. The
        learned part is bounded: it draws the border, but a mask does not spread easily over what
        the VLM holds to be something else, where (on unseen classes) nothing ever corrected it.
        """
        learned = super().predict(queries, pixels, previous)
        if self.likeness is None or pixels.frozen is None:
            return learned
        if previous is None:
            prototypes = at_grid_points(pixels.frozen, self.seed_side)
        else:
            shares = previous.detach().sigmoid().flatten(2)
            prototypes = shares @ pixels.frozen.flatten(2).transpose(1, 2)
        cosines = F.normalize(prototypes, dim=-1) @ pixels.frozen.flatten(2)
        scale, threshold = self.likeness(learned.embeds).tanh().unsqueeze(-1).unbind(2)
        likeness = (SCALE + SCALE_REACH * scale) * (
            cosines - THRESHOLD - THRESHOLD_REACH * threshold
        )
        bounded = LEARNED_REACH * (learned.mask_logits / LEARNED_REACH).tanh()
        return Proposals(learned.embeds, bounded + likeness.reshape(bounded.shape))

    def pyramid(self, features: dict[str, Tensor], dense: Tensor) -> Pixels:
        """Fused pixel features for every stride, and the frozen ones beside them."""
        levels = super().pyramid(features, dense).levels
        if self.project_vlm is None:
            return Pixels(levels)
        levels = {
            stride: level + resize(self.project_vlm[str(stride)](dense), level.shape[-2:])
            for stride, level in levels.items()
        }
        if self.likeness is None:
            return Pixels(levels)
        # What all of the picture has in common says nothing about what belongs together.
        centered = F.normalize(dense - dense.mean(dim=(2, 3), keepdim=True), dim=1)
        frozen = F.normalize(resize(centered, levels[MASK_STRIDE].shape[-2:]), dim=1)
        return Pixels(levels, frozen)

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
        grid = sine_position(*level.shape[-2:], level.shape[1], level.device)
        refined = self.refiners[index](tokens, queries, position=grid, key_position=position)
        refined = refined.transpose(1, 2).reshape(level.shape)
        finest = pixels.levels[MASK_STRIDE]
        change = resize(self.merge[index](refined - level), finest.shape[-2:])
        levels = pixels.levels | {stride: refined, MASK_STRIDE: finest + change}
        return Pixels(levels, pixels.frozen)
