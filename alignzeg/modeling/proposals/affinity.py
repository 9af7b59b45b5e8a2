"""Our extension of AlignZeg's extractor: masks drawn together by affinity in the VLM's eyes."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alignzeg.modeling.layers import MASK_STRIDE, resize, sine_position
from alignzeg.modeling.proposals.plain import Pixels
from alignzeg.modeling.proposals.refined import MutuallyRefinedExtractor
from alignzeg.registries import PROPOSAL_EXTRACTOR_REGISTRY
from alignzeg.structures import Proposals

SEED_STRIDE = 8
# Logits that learning may add to or take from affinity, whose own range is about +-8: only what is
# learned with near certainty overrules it.
LEARNED_REACH = 12.0
# Affinity is scale * (cosine - threshold): the middle of each, and how far a query moves it.
SCALE, SCALE_REACH = 12, 4
THRESHOLD, THRESHOLD_REACH = 0.3, 0.15


def at_grid_points(level: Tensor, side: int) -> Tensor:
    """(B, side * side, C) features of (B, C, h, w) at the centres of a square grid, row by row."""
    centers = (torch.arange(side, device=level.device, dtype=level.dtype) * 2 + 1) / side - 1
    points = torch.stack(torch.meshgrid(centers, centers, indexing="xy"), dim=-1)
    points = points.expand(len(level), -1, -1, -1)
    return F.grid_sample(level, points, align_corners=False).flatten(2).transpose(1, 2)


@PROPOSAL_EXTRACTOR_REGISTRY.register()
class VLMAffinityExtractor(MutuallyRefinedExtractor):
    """The mutually refined extractor with seeded queries and VLM affinity.

    Each query starts from what lies at its point of a regular grid and not only from what was
    rewarded in training, and affinity in the frozen VLM's feature space draws its mask together,
    also where nothing was ever rewarded. `num_queries` is a square number.

    Made for drawn scenes, where one region is one thing: on zeroshapes it gives nearly all of
    AlignZeg's gain. On photographs, where a region has parts and light, its masks are worse than
    the paper's.

    Source: [ours].
    """

    def _extend(self, num_queries: int, hidden_dim: int) -> None:
        self.seed_side = math.isqrt(num_queries)
        if self.seed_side**2 != num_queries:
            raise ValueError(
                "VLMAffinityExtractor lays the queries on a square grid, so EXTRACTOR.NUM_QUERIES "
                f"must be a square number such as 36, 64 or 100; got {num_queries}"
            )
        if self.project_vlm is None:
            raise ValueError("VLMAffinityExtractor needs EXTRACTOR.USE_VLM; turn it on")
        self.seed = nn.Linear(hidden_dim, hidden_dim)
        self.affinity = nn.Linear(hidden_dim, 2)
        # Scale and threshold of the cosine, the same for every query at first.
        nn.init.zeros_(self.affinity.weight)
        nn.init.zeros_(self.affinity.bias)

    def first_queries(self, pixels: Pixels) -> tuple[Tensor, Tensor]:
        """Learned queries, each with the feature and the position of its point added."""
        queries, position = super().first_queries(pixels)
        level = pixels.levels[SEED_STRIDE]
        queries = queries + self.seed(at_grid_points(level, self.seed_side))
        grid = sine_position(self.seed_side, self.seed_side, level.shape[1], level.device)
        return queries, position + grid

    def predict(self, queries: Tensor, pixels: Pixels, previous: Tensor | None) -> Proposals:
        """Masks of the queries: what was learned, plus affinity in the frozen VLM's eyes.

        A pixel belongs to a query as far as its VLM feature is like the mean feature of the query's
        mask so far (at first: the feature at its point). Each query says how much that counts. The
        learned part is bounded: it draws the border, but a mask does not spread easily over what
        the VLM holds to be something else, where (on unseen classes) nothing ever corrected it.
        """
        learned = super().predict(queries, pixels, previous)
        assert pixels.frozen is not None
        if previous is None:
            prototypes = at_grid_points(pixels.frozen, self.seed_side)
        else:
            shares = previous.detach().sigmoid().flatten(2)
            prototypes = shares @ pixels.frozen.flatten(2).transpose(1, 2)
        cosines = F.normalize(prototypes, dim=-1) @ pixels.frozen.flatten(2)
        scale, threshold = self.affinity(learned.embeds).tanh().unsqueeze(-1).unbind(2)
        affinity = (SCALE + SCALE_REACH * scale) * (
            cosines - THRESHOLD - THRESHOLD_REACH * threshold
        )
        bounded = LEARNED_REACH * (learned.mask_logits / LEARNED_REACH).tanh()
        return Proposals(learned.embeds, bounded + affinity.reshape(bounded.shape))

    def pyramid(self, features: dict[str, Tensor], dense: Tensor) -> Pixels:
        """Fused pixel features for every stride, and the frozen ones beside them."""
        levels = super().pyramid(features, dense).levels
        # What all of the image has in common says nothing about what belongs together.
        centered = F.normalize(dense - dense.mean(dim=(2, 3), keepdim=True), dim=1)
        frozen = F.normalize(resize(centered, levels[MASK_STRIDE].shape[-2:]), dim=1)
        return Pixels(levels, frozen)
