"""The baseline's extractor: queries read the image with masked attention and become masks."""

from __future__ import annotations

from dataclasses import dataclass

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from torch import Tensor, nn

from alignzeg.modeling.layers import (
    MASK_STRIDE,
    MLP,
    REFINED_STRIDES,
    AttentionBlock,
    resize,
    sine_position,
)
from alignzeg.registries import PROPOSAL_EXTRACTOR_REGISTRY
from alignzeg.structures import Proposals


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
    """Queries read the image encoder's features and turn into masks; the VLM is not used.

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
        """Pixel features for every stride; `dense` (B, D, Hv, Wv) is not used here."""
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
        """One `Proposals` for every layer; see `ExtractorContract`."""
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
