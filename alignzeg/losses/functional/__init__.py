"""Losses as pure functions: of masks, of embeddings, and the numerics below both."""

from alignzeg.losses.functional.embeddings import (
    draw_pairs,
    prototype_diversity,
    semantic_ranking,
)
from alignzeg.losses.functional.mask_losses import PairTargets, mask_losses, pairwise_mask_costs
from alignzeg.losses.functional.masks import (
    cell_shares,
    grid_targets,
    logits_at,
    sample_points,
    sample_uncertain_points,
)
from alignzeg.losses.functional.numeric import full_precision, no_loss, softplus

__all__ = [
    "PairTargets",
    "cell_shares",
    "draw_pairs",
    "full_precision",
    "grid_targets",
    "logits_at",
    "mask_losses",
    "no_loss",
    "pairwise_mask_costs",
    "prototype_diversity",
    "sample_points",
    "sample_uncertain_points",
    "semantic_ranking",
    "softplus",
]
