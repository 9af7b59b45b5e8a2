"""Masks on the grid of the predictions or at points; a pixel without a label has no influence.

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

from alignzeg.losses.functional.numeric import full_precision

# Masks brought to the prediction grid at once on a CPU, which bounds the full-size temporary.
_MASKS_AT_ONCE = 2
# Numbers of which a rank is drawn: so many that no rank is favoured by a part in 10^10.
_RANKS = 2**62


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
    write_targets(masks, area, weights, targets)
    return targets, weights


def write_targets(masks: Tensor, area: Tensor, weights: Tensor, targets: Tensor) -> None:
    """Writes what `grid_targets` returns, of weights (h, w), into targets (G, h, w)."""
    stride = _stride(area, (weights.shape[0], weights.shape[1]))
    supervised = weights.masked_fill(weights == 0, 1)
    step = _MASKS_AT_ONCE if masks.device.type == "cpu" else max(1, len(masks))
    for start in range(0, len(masks), step):
        part = slice(start, start + step)
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
    if area.device.type == "cpu":
        inside = area.flatten().nonzero()[:, 0]
        pixels = inside[torch.randint(len(inside), (rows, points), device=area.device)]
    else:
        pixels = drawn_by_rank(area.flatten(), rows, points)
    corners = torch.stack([pixels % width, pixels // width], dim=-1)
    size = torch.stack([torch.full((), edge, device=area.device) for edge in (width, height)])
    return (corners + torch.rand(corners.shape, device=area.device)) / size, pixels


def drawn_by_rank(inside: Tensor, rows: int, points: int) -> Tensor:
    """(rows, points) int64 places of (P,) trues; never waits for the device."""
    # Exact; `torch.multinomial` adds up the shares of the places in float32.
    counts = inside.cumsum(0)
    ranks = torch.randint(_RANKS, (rows, points), device=inside.device) % counts[-1]
    return torch.searchsorted(counts, ranks, right=True)


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
    # Other devices than a CPU would have to be waited for.
    if known.device.type == "cpu" and known.all():
        # The nearest cells share what lies outside the image.
        border = {"align_corners": False, "padding_mode": "border"}
        return point_sample(logits[:, None], coords, **border)[:, 0]
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
    # Their order does not count, and to sort them takes as long as to find them.
    count = int(points * importance)
    chosen = certainty.topk(count, dim=1, largest=False, sorted=False).indices
    more_coords, more_pixels = sample_points(area, len(logits), points - chosen.shape[1])
    chosen_coords = coords.gather(1, chosen[..., None].expand(-1, -1, 2))
    return (
        torch.cat([chosen_coords, more_coords], dim=1),
        torch.cat([pixels.gather(1, chosen), more_pixels], dim=1),
    )
