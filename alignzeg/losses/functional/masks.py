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

from dataclasses import dataclass

import torch
from detectron2.projects.point_rend.point_features import point_sample
from torch import Tensor
from torch.nn import functional as F

from alignzeg.losses.functional.numeric import full_precision, softplus

# Elements of one tile of a cost matrix's temporaries: half a MiB in float32, which stays in a
# cache.
_TILE_ELEMENTS = 2**17
# Masks brought to the prediction grid at once, which bounds the full-size float temporary.
_MASKS_AT_ONCE = 2


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
    targets = weights.new_empty((len(masks), *size))
    _write_targets(masks, area, weights, targets)
    return targets, weights


def _write_targets(masks: Tensor, area: Tensor, weights: Tensor, targets: Tensor) -> None:
    """Writes what `grid_targets` returns into targets (G, h, w)."""
    stride = _stride(area, (weights.shape[0], weights.shape[1]))
    supervised = weights.masked_fill(weights == 0, 1)
    for start in range(0, len(masks), _MASKS_AT_ONCE):
        part = slice(start, start + _MASKS_AT_ONCE)
        torch.div(_shares_inside(masks[part], area, stride), supervised, out=targets[part])


def _shares_inside(masks: Tensor, area: Tensor, stride: tuple[int, int]) -> Tensor:
    """(n, h, w) share of each cell's pixels in the masks (n, H, W) and in the area (H, W)."""
    if area.dtype != torch.bool or masks.dtype != torch.bool or stride[1] != 4 or stride[0] > 16:
        return F.avg_pool2d(masks * area.float(), stride)
    # Four pixels side by side, a byte of 0 or 1 each, are added as one number.
    words = (masks & area).contiguous().view(torch.int32)
    rows = words.unflatten(1, (-1, stride[0])).sum(2, dtype=torch.int32)
    # This product has the sum of the four bytes in its highest byte.
    return ((rows * 0x01010101) >> 24).float() / (4 * stride[0])


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


@dataclass(frozen=True)
class PairTargets:
    """Masks as `pairwise_mask_costs` reads them, made once for all layers; G masks.

    Attributes:
        weighted: (G + 1, p) targets times weights at the p places whose weight is not 0, and the
            weights: the last row, so that one product sums them up as well.
        places: (p,) int64 these places; None: all.
        total: sum of all weights.
        masses: (G,) sums of the first G rows.
    """

    weighted: Tensor
    places: Tensor | None
    total: Tensor
    masses: Tensor

    @classmethod
    def of(cls, targets: Tensor, weights: Tensor) -> PairTargets:
        """Prepares (G, P) targets in [0, 1] and (P,) weights >= 0 of one floating dtype."""
        weighted = weights.new_empty(len(targets) + 1, len(weights))
        weighted[:-1] = targets
        return cls._of(weighted, weights)

    @classmethod
    def of_masks(
        cls, masks: Tensor, area: Tensor, size: tuple[int, int], dtype: torch.dtype
    ) -> PairTargets:
        """Prepares the `grid_targets` of masks, without a second copy of them."""
        weights = cell_shares(area, size)
        weighted = weights.new_empty(len(masks) + 1, *size)
        _write_targets(masks, area, weights, weighted[:-1])
        return cls._of(weighted.flatten(1).to(dtype), weights.flatten().to(dtype))

    @classmethod
    def _of(cls, weighted: Tensor, weights: Tensor) -> PairTargets:
        """Takes (G + 1, P), targets with room for the weights below them; changes it."""
        weighted[:-1] *= weights
        weighted[-1] = weights
        places = weights.nonzero()[:, 0]
        if len(places) == len(weights):
            return cls(weighted, None, weights.sum(), weighted[:-1].sum(1))
        masses = weighted[:-1].masked_fill(weights <= 0, 0).sum(1)
        return cls(weighted[:, places], places, weights.sum(), masses)


@torch.no_grad()
def pairwise_mask_costs(
    logits: Tensor,
    targets: Tensor | PairTargets,
    weights: Tensor | None = None,
    tile: int | None = None,
) -> tuple[Tensor, Tensor]:
    """`mask_losses` of every proposal with every mask, without anything of shape (Q, G, P).

    The cross-entropy is softplus(x) - x t: its first half does not depend on the mask, its second
    half and the dice overlap are matrix products, made in one go and in tiles of places.

    Args:
        logits: (Q, P) predictions; they receive no gradient.
        targets: (G, P) in [0, 1], or what was prepared of them and the weights, in full precision.
        weights: (P,) >= 0; places of weight 0 have no influence. None: all 1, or as prepared.
        tile: places per tile; None: as many as keep a temporary at half a MiB.

    Returns:
        (Q, G) mean cross-entropy and (Q, G) dice loss.
    """
    queries, dtype = len(logits), full_precision(logits).dtype
    if isinstance(targets, Tensor):
        weights = targets.new_ones(targets.shape[1]) if weights is None else weights
        targets = PairTargets.of(targets.to(dtype), weights.to(dtype))
    weighted, places = targets.weighted, targets.places
    count, length = len(weighted) - 1, weighted.shape[1]
    tile = min(tile or max(1, _TILE_ELEMENTS // max(1, queries)), max(1, length))
    entropy = weighted.new_zeros(queries)
    products = weighted.new_zeros(2 * queries, count + 1)
    # Logits of a tile above their probabilities: one memory for all tiles.
    memory = weighted.new_empty(2 * queries * tile)
    for start in range(0, length, tile):
        stop = min(length, start + tile)
        where = slice(start, stop) if places is None else places[start:stop]
        both = memory[: 2 * queries * (stop - start)].view(2 * queries, -1)
        x, probs = both[:queries], both[queries:]
        torch.sigmoid(x.copy_(logits[:, where]), out=probs)
        columns = weighted[:, start:stop]
        # softplus(x) is max(x, 0) - log sigmoid(|x|), and sigmoid(|x|) is there already.
        certain = torch.maximum(probs, 1 - probs).log_()
        entropy += x.clamp(min=0).sub_(certain) @ columns[-1]
        products += both @ columns.T
    linear, overlap = products[:queries, :count], products[queries:, :count]
    area = products[queries:, count:]
    bce = (entropy[:, None] - linear) / targets.total.clamp(min=1e-6)
    return bce, 1 - (2 * overlap + 1) / (area + targets.masses + 1)


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
