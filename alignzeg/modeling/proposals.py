"""Mask proposal extractors: the plain baseline and AlignZeg's mutually refined one."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from torch import Tensor, nn

from alignzeg.modeling.layers import MLP, AttentionBlock, resize, sine_position
from alignzeg.registries import PROPOSAL_EXTRACTOR_REGISTRY
from alignzeg.structures import Proposals

MASK_STRIDE = 4
REFINED_STRIDES = (32, 16, 8)
SEED_STRIDE = 8
# Logits that learning may add to or take from likeness, whose own range is about +-8. [ours]
LEARNED_REACH = 6.0


@dataclass(frozen=True)
class Pixels:
    """What masks are read from.

    Attributes:
        levels: pixel features (B, C, H/s, W/s) by stride s.
        frozen: (B, D, H/4, W/4) unit-length features of the frozen VLM, or None if they have no say
            in the masks.
    """

    levels: dict[int, Tensor]
    frozen: Tensor | None = None


class QueryLayer(nn.Module):
    """One refinement of the queries: masked cross-attention, self-attention, feed-forward."""

    def __init__(self, dim: int, heads: int, ffn_dim: int) -> None:
        super().__init__()
        self.cross = AttentionBlock(dim, heads, cross=True)
        self.self = AttentionBlock(dim, heads, ffn_dim)

    def forward(
        self, queries: Tensor, pixels: Tensor, position: Tensor, grid: Tensor, blocked: Tensor
    ) -> Tensor:
        """(B, Q, C) queries and (B, hw, C) pixels to (B, Q, C) queries."""
        queries = self.cross(queries, pixels, position=position, key_position=grid, blocked=blocked)
        return self.self(queries, position=position)


@PROPOSAL_EXTRACTOR_REGISTRY.register()
class PlainExtractor(nn.Module):
    """Queries read the image encoder's features and turn into masks; the VLM has no say.

    The baseline's extractor: MaskFormer's mask classification with Mask2Former's masked attention
    over strides 32, 16, 8 in turn and deep supervision after every layer.

    Source: MaskFormer (arXiv 2107.06278), Mask2Former (arXiv 2112.01527).
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
    ) -> None:
        """Builds the extractor.

        Args:
            input_shape: the image encoder's outputs; strides 4, 8, 16 and 32 are used.
            num_queries: Q.
            hidden_dim: C, a multiple of 4 and of `heads`.
            layers: refinement layers, at least 1.
            heads: attention heads.
            ffn_dim: channels inside the queries' feed-forward blocks.

        Raises:
            ValueError: if a stride is missing or a size does not fit.
        """
        super().__init__()
        self.names = {shape.stride: name for name, shape in input_shape.items()}
        missing = [s for s in (MASK_STRIDE, *REFINED_STRIDES) if s not in self.names]
        if missing:
            raise ValueError(
                f"the image encoder gives strides {sorted(self.names)} but strides {missing} are "
                "needed too; use one of the *_fpn_backbone encoders in MODEL.BACKBONE.NAME"
            )
        if layers < 1 or num_queries < 1 or hidden_dim % 4 or hidden_dim % heads:
            raise ValueError(
                f"EXTRACTOR needs LAYERS >= 1, NUM_QUERIES >= 1 and HIDDEN_DIM a multiple of 4 and "
                f"of HEADS; got {layers}, {num_queries}, {hidden_dim} and HEADS {heads}"
            )
        self.project = nn.ModuleDict(
            {
                str(stride): nn.Conv2d(input_shape[self.names[stride]].channels, hidden_dim, 1)
                for stride in (MASK_STRIDE, *REFINED_STRIDES)
            }
        )
        self.query_embeds = nn.Embedding(num_queries, hidden_dim)
        self.query_position = nn.Embedding(num_queries, hidden_dim)
        self.layers = nn.ModuleList(QueryLayer(hidden_dim, heads, ffn_dim) for _ in range(layers))
        self.norm = nn.LayerNorm(hidden_dim)
        self.mask_embed = MLP(hidden_dim, hidden_dim, hidden_dim, hidden_dim)

    @classmethod
    def from_config(
        cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec], dense_dim: int
    ) -> dict[str, object]:
        """Reads ALIGNZEG.EXTRACTOR."""
        del dense_dim  # the plain extractor does not look at the VLM
        node = cfg.ALIGNZEG.EXTRACTOR
        return {
            "input_shape": input_shape,
            "num_queries": node.NUM_QUERIES,
            "hidden_dim": node.HIDDEN_DIM,
            "layers": node.LAYERS,
            "heads": node.HEADS,
            "ffn_dim": node.FFN_DIM,
        }

    def pyramid(self, features: dict[str, Tensor], dense: Tensor) -> Pixels:
        """Pixel features for every stride; `dense` (B, D, Hv, Wv) has no say here."""
        del dense
        return Pixels(
            {int(s): conv(features[self.names[int(s)]]) for s, conv in self.project.items()}
        )

    def refine(
        self,
        index: int,
        stride: int,
        pixels: Pixels,
        queries: Tensor,
        position: Tensor,
    ) -> Pixels:
        """The pixel features after layer `index` read `stride`; unchanged here."""
        del index, stride, queries, position
        return pixels

    def first_queries(self, pixels: Pixels) -> tuple[Tensor, Tensor]:
        """(B, Q, C) states and positions that the queries start with: learned, alike for all."""
        batch = pixels.levels[MASK_STRIDE].shape[0]
        return (
            self.query_embeds.weight.expand(batch, -1, -1),
            self.query_position.weight.expand(batch, -1, -1),
        )

    def predict(self, queries: Tensor, pixels: Pixels, previous: Tensor | None) -> Proposals:
        """Masks of the queries as they are now.

        Args:
            queries: (B, Q, C).
            pixels: what the masks are cut from.
            previous: (B, Q, H/4, W/4) logits of the layer before; None at first.
        """
        del previous
        states = self.norm(queries)
        mask_features = pixels.levels[MASK_STRIDE]
        # Mean-like scaling keeps the first logits near zero whatever the width.
        kernels = self.mask_embed(states) * states.shape[-1] ** -0.5
        batch, channels, height, width = mask_features.shape
        logits = kernels @ mask_features.reshape(batch, channels, -1)
        return Proposals(states, logits.reshape(batch, -1, height, width))

    def forward(self, features: dict[str, Tensor], dense: Tensor) -> tuple[Proposals, ...]:
        """Extracts proposals.

        Args:
            features: the image encoder's outputs, (B, C_f, H/s, W/s) by name.
            dense: (B, D, Hv, Wv) dense features of the frozen VLM.

        Returns:
            One `Proposals` for every layer; the last is final.
        """
        pixels = self.pyramid(features, dense)
        queries, position = self.first_queries(pixels)
        current = self.predict(queries, pixels, None)
        proposals = []
        for index, layer in enumerate(self.layers):
            stride = REFINED_STRIDES[index % len(REFINED_STRIDES)]
            level = pixels.levels[stride]
            height, width = level.shape[-2:]
            queries = layer(
                queries,
                level.flatten(2).transpose(1, 2),
                position,
                sine_position(height, width, level.shape[1], level.device),
                outside(current.mask_logits, (height, width)),
            )
            pixels = self.refine(index, stride, pixels, queries, position)
            current = self.predict(queries, pixels, current.mask_logits)
            proposals.append(current)
        return tuple(proposals)


def at_grid_points(level: Tensor, side: int) -> Tensor:
    """(B, side * side, C) features of (B, C, h, w) at the centres of a square grid, row by row."""
    centers = (torch.arange(side, device=level.device, dtype=level.dtype) * 2 + 1) / side - 1
    points = torch.stack(torch.meshgrid(centers, centers, indexing="xy"), dim=-1)
    points = points.expand(len(level), -1, -1, -1)
    return F.grid_sample(level, points, align_corners=False).flatten(2).transpose(1, 2)


def outside(mask_logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Where each query may not look: outside its mask, or nowhere if its mask is empty.

    Args:
        mask_logits: (B, Q, h, w).
        size: rows and columns of the level that is read.

    Returns:
        (B, Q, rows * columns) bool without a row that is all true.

    Source: Mask2Former (arXiv 2112.01527), masked attention.
    """
    blocked = resize(mask_logits.detach(), size).flatten(2) < 0
    return blocked & ~blocked.all(dim=-1, keepdim=True)


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
        learned part is bounded: it draws the border, but a mask cannot spread over what the VLM
        holds to be something else, where (on unseen classes) nothing ever corrected it.
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
        likeness = (12 + 4 * scale) * (cosines - 0.3 - 0.15 * threshold)
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
