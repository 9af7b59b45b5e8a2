"""Mask losses as pure functions; a pixel without a label has exactly no influence on them.

Predictions live on a grid of stride 4, labels on pixels. Two ways lead from one to the other, and
both leave hidden pixels out rather than multiply them away:

- the whole grid: a cell's target is the mask's share of the cell's labelled pixels, and the cell
  weighs as much as the share of its pixels that are labelled (`grid_targets`);
- sampled points: each lies in a labelled pixel and takes that pixel's label; the prediction there
  is interpolated between cells that hold labelled pixels only (`sample_points`, `logits_at`).

Shapes as in `alignzeg.structures`; n rows of masks, P places (cells or points).
"""

from __future__ import annotations

import torch
from detectron2.projects.point_rend.point_features import point_sample
from torch import Tensor
from torch.nn import functional as F

from alignzeg.losses.functional.numeric import full_precision, softplus

# Elements of one tile of a cost matrix's temporaries: 4 MiB in float32.
_TILE_ELEMENTS = 2**20
# Masks brought to the prediction grid at once, which bounds the full-size float temporary.
_MASKS_AT_ONCE = 8


def _stride(area: Tensor, size: tuple[int, int]) -> tuple[int, int]:
    (height, width), (rows, columns) = area.shape, size
    if not rows or not columns or height % rows or width % columns:
        raise ValueError(
            f"targets of {height} x {width} pixels do not divide into the {rows} x {columns} cells "
            "of the mask logits; pad the targets to the size of the padded images"
        )
    return height // rows, width // columns


def cell_shares(area: Tensor, size: tuple[int, int]) -> Tensor:
    """(h, w) share in [0, 1] of each cell's pixels in the area (H, W), bool or weights in [0, 1].

    Raises:
        ValueError: if H, W are not multiples of h, w.
    """
    return F.avg_pool2d(area[None].float(), _stride(area, size))[0]


def grid_targets(masks: Tensor, area: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Brings masks to the grid of the predictions, counting supervised pixels only.

    Args:
        masks: (G, H, W) bool.
        area: (H, W) bool, the supervised pixels, or their weights in [0, 1].
        size: h, w of the grid.

    Returns:
        (G, h, w) targets in [0, 1], a mask's share of the cell's supervised pixels, 0 in cells
        without any; (h, w) weights in [0, 1], the share of the cell's pixels that are supervised.
        With weights, a pixel counts as much as it weighs.

    Raises:
        ValueError: if H, W are not multiples of h, w.
    """
    weights = cell_shares(area, size)
    if not len(masks):
        return weights.new_zeros((0, *size)), weights
    stride = _stride(area, size)
    inside = [F.avg_pool2d(part * area.float(), stride) for part in masks.split(_MASKS_AT_ONCE)]
    return torch.cat(inside) / weights.masked_fill(weights == 0, 1), weights


def mask_losses(
    logits: Tensor, targets: Tensor, weights: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Binary cross-entropy and dice loss of each row.

    Args:
        logits: (n, P) predictions.
        targets: (n, P) in [0, 1].
        weights: (P,) or (n, P), >= 0; None weighs all places 1. Where a weight is 0, neither
            logit nor target has any influence, NaN included.

    Returns:
        (n,) weighted mean of the cross-entropy over the places, 0 where all weights are 0;
        (n,) dice loss in [0, 1), 1 - (2 sum(w p t) + 1) / (sum(w p) + sum(w t) + 1).

    Source: V-Net (arXiv 1606.04797) with the smoothing of MaskFormer (arXiv 2107.06278).
    """
    logits = full_precision(logits)
    targets = targets.to(logits.dtype)
    if weights is None:
        weights = logits.new_ones(logits.shape[-1])
    weights = weights.to(logits.dtype).expand_as(logits)
    hidden = weights <= 0
    logits = logits.masked_fill(hidden, 0)
    weighted = (targets * weights).masked_fill(hidden, 0)
    total = weights.sum(1)
    entropy = (softplus(logits) * weights - logits * weighted).sum(1)
    # Weights are shares or ones, hence the sum is 0 or far from this floor.
    bce = entropy / total.clamp(min=1e-6)
    probs = logits.sigmoid()
    overlap = 2 * (probs * weighted).sum(1) + 1
    dice = 1 - overlap / ((probs * weights).sum(1) + weighted.sum(1) + 1)
    return bce, dice


def pairwise_mask_costs(
    logits: Tensor, targets: Tensor, weights: Tensor, tile: int | None = None
) -> tuple[Tensor, Tensor]:
    """`mask_losses` of every proposal with every mask, without anything of shape (Q, G, P).

    The cross-entropy is softplus(x) - x t: its first half does not depend on the mask, its second
    half and the dice overlap are matrix products, made in one go and in tiles of places.

    Args:
        logits: (Q, P) predictions.
        targets: (G, P) in [0, 1].
        weights: (P,) >= 0; places of weight 0 have no influence.
        tile: places per tile; None: as many as keep a temporary at 4 MiB.

    Returns:
        (Q, G) mean cross-entropy and (Q, G) dice loss.
    """
    queries, count = len(logits), len(targets)
    dtype = full_precision(logits).dtype
    weights = weights.to(dtype)
    weighted = targets.to(dtype) * weights
    places = weights.nonzero()[:, 0]
    everywhere = len(places) == len(weights)
    tile = tile or max(1, _TILE_ELEMENTS // max(1, queries))
    entropy = weights.new_zeros(queries)
    products = weights.new_zeros(2 * queries, count + 1)
    # The last column sums the weights, so that one product gives sum(w p) as well.
    right = torch.cat([weighted, weights[None]])
    for start in range(0, len(places), tile):
        part = places[start : start + tile]
        where = slice(start, start + tile) if everywhere else part
        x = logits[:, where].to(dtype)
        columns = right[:, where]
        entropy += softplus(x) @ columns[-1]
        products += torch.cat([x, x.sigmoid()]) @ columns.T
    linear, overlap = products[:queries, :count], products[queries:, :count]
    area = products[queries:, count:]
    bce = (entropy[:, None] - linear) / weights.sum().clamp(min=1e-6)
    masses = weighted.masked_fill(weights <= 0, 0).sum(1)
    return bce, 1 - (2 * overlap + 1) / (area + masses + 1)


def sample_points(area: Tensor, rows: int, points: int) -> tuple[Tensor, Tensor]:
    """Draws points uniformly from the supervised pixels.

    Args:
        area: (H, W) bool with at least one true pixel.
        rows: independent draws.
        points: points per draw, with replacement.

    Returns:
        (rows, points, 2) coordinates (x, y) in [0, 1] of the image;
        (rows, points) int64 flat index y * W + x of the pixel each point lies in.
    """
    height, width = area.shape
    inside = area.flatten().nonzero()[:, 0]
    pixels = inside[torch.randint(len(inside), (rows, points), device=area.device)]
    corners = torch.stack([pixels % width, pixels // width], dim=-1)
    size = torch.tensor([width, height], device=area.device)
    return (corners + torch.rand(corners.shape, device=area.device)) / size, pixels


def logits_at(logits: Tensor, known: Tensor, coords: Tensor) -> Tensor:
    """Interpolates logits at points, between cells that hold supervised pixels only.

    Args:
        logits: (n, h, w).
        known: (h, w) bool, cells with a supervised pixel; the others have no influence.
        coords: (n, P, 2) points (x, y) in [0, 1], each in a known cell.

    Returns:
        (n, P). The bilinear weights of unknown cells, and of places outside the image, are
        shared among the known ones.
    """
    coords = coords.to(logits.dtype)
    values = point_sample(logits.masked_fill(~known, 0)[:, None], coords, align_corners=False)
    shares = known.to(logits.dtype).expand(len(logits), 1, *known.shape)
    # A point's own cell has a bilinear weight of at least 1/4.
    return values[:, 0] / point_sample(shares, coords, align_corners=False)[:, 0]


@torch.no_grad()
def sample_uncertain_points(
    logits: Tensor, area: Tensor, points: int, oversample: float, importance: float
) -> tuple[Tensor, Tensor]:
    """Draws points from the supervised pixels, most of them where the prediction is undecided.

    Detectron2's own sampler draws from the whole image; here a largely hidden image would be
    left with few points, so the candidates come from `sample_points`.

    Args:
        logits: (n, h, w) predictions.
        area: (H, W) bool with at least one true pixel.
        points: points per mask, P.
        oversample: candidates per point, >= 1.
        importance: share in [0, 1] of the points that are the least certain candidates.

    Returns:
        (n, P, 2) coordinates and (n, P) int64 pixels, as `sample_points`.

    Source: PointRend (arXiv 1912.08193), section 3.3.
    """
    logits = full_precision(logits)
    known = cell_shares(area, (logits.shape[1], logits.shape[2])) > 0
    coords, pixels = sample_points(area, len(logits), int(points * oversample))
    certainty = logits_at(logits, known, coords).abs()
    chosen = certainty.topk(int(points * importance), dim=1, largest=False).indices
    more_coords, more_pixels = sample_points(area, len(logits), points - chosen.shape[1])
    chosen_coords = coords.gather(1, chosen[..., None].expand(-1, -1, 2))
    return (
        torch.cat([chosen_coords, more_coords], dim=1),
        torch.cat([pixels.gather(1, chosen), more_pixels], dim=1),
    )
