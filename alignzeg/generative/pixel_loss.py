"""The loss of a classifier that names every pixel, as a pure function."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from alignzeg.losses.functional import full_precision, grid_targets, no_loss
from alignzeg.structures import Targets


def pixel_cross_entropy(logits: Tensor, targets: Sequence[Targets], balance: float = 0.0) -> Tensor:
    """Softmax cross-entropy on the grid of the predictions, over labelled pixels only.

    A cell's target is the share of each class among its labelled pixels; it weighs as much as the
    share of its pixels that are labelled. A cell without any has exactly no influence.

    Args:
        logits: (B, K, h, w) scores of K classes.
        targets: one for each of the B images, with masks of the padded size, a multiple of h, w.
        balance: a pixel weighs area^-balance, with the area of its class in the batch: 0 weighs
            all pixels alike, 1 all classes of the batch. [ours]

    Returns:
        Scalar, the weighted mean over all labelled pixels of the batch; 0 if there are none.

    Raises:
        ValueError: if the sizes do not divide.
    """
    count = logits.shape[1]
    losses, areas = no_loss(logits).expand(count), logits.new_zeros(count, dtype=torch.float32)
    for scores, target in zip(full_precision(logits), targets, strict=True):
        shares, weight = grid_targets(target.masks, target.valid, tuple(scores.shape[-2:]))
        known = weight > 0
        area = shares[:, known] * weight[known]
        log_probs = F.log_softmax(scores[:, known], dim=0)[target.labels]
        losses = losses.index_add(0, target.labels, -(log_probs * area).sum(dim=1))
        areas = areas.index_add(0, target.labels, area.sum(dim=1))
    weights = torch.where(areas > 0, areas.clamp(min=1e-6) ** -balance, 0)
    return (losses * weights).sum() / (areas * weights).sum().clamp(min=1e-6)
