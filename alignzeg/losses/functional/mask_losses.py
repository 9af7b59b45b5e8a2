"""Cross-entropy and dice of masks: row by row with a gradient, and of all pairs for matching.

n rows of masks, P places (cells of the grid or points), Q proposals, G ground-truth masks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from alignzeg.losses.functional.masks import cell_shares, write_targets
from alignzeg.losses.functional.numeric import full_precision

# Elements of one tile of the temporaries: half a MiB in float32, which stays in a cache, and on
# other devices, where few large operations are fastest, 64 times as many.
_TILE_ELEMENTS = 2**17


def mask_losses(
    logits: Tensor, targets: Tensor, weights: Tensor | None = None, ids: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Binary cross-entropy and dice loss of each row.

    A few rows are done at a time, and their gradient is computed from the logits anew, so that
    nothing of shape (n, P) is kept for it but the logits and the targets as they were given.

    Args:
        logits: (n, P) predictions.
        targets: (n, P) in [0, 1], or (G, P) with `ids`.
        weights: (P,) or (n, P), >= 0; None weighs all places 1. Where a weight is 0, neither
            logit nor target has any influence, NaN included.
        ids: (n,) int64 row of the targets for each row of the logits; None: its own.

    Returns:
        (n,) weighted mean of the cross-entropy over the places, 0 where all weights are 0;
        (n,) dice loss in [0, 1), 1 - (2 sum(w p t) + 1) / (sum(w p) + sum(w t) + 1).

    Source: V-Net (arXiv 1606.04797) with the smoothing of MaskFormer (arXiv 2107.06278).
    """
    return _MaskLosses.apply(full_precision(logits), targets, weights, ids)


class _MaskLosses(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, targets: Tensor, weights: Tensor | None, ids: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        # Of each row: entropy, sum of weights, twice the overlap, sizes of both masks.
        sums = logits.new_empty(4, len(logits))
        for rows in _row_parts(logits):
            x, weighted, w = _visible(logits, targets, weights, ids, rows)
            probs = x.sigmoid()
            sums[0, rows] = _row_sums(_softplus(x, probs), w) - (x * weighted).sum(1)
            sums[1, rows] = x.shape[1] if w is None else w.sum(-1)
            sums[2, rows] = 2 * (probs * weighted).sum(1) + 1
            sums[3, rows] = _row_sums(probs, w) + weighted.sum(1) + 1
        # Weights are shares or ones, hence the sum is 0 or far from this floor.
        sums[1].clamp_(min=1e-6)
        ctx.save_for_backward(logits, targets, weights, ids, sums)
        return sums[0] / sums[1], 1 - sums[2] / sums[3]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        logits, targets, weights, ids, sums = ctx.saved_tensors
        _, total, overlap, size = sums
        # d bce = (p - t) w / total; d dice = (overlap w - 2 size w t) / size^2 * p (1 - p).
        of_bce = (grads[0] / total)[:, None]
        of_weight = (grads[1] * overlap / size**2)[:, None]
        of_target = (grads[1] * 2 / size)[:, None]
        found = torch.empty_like(logits)
        for rows in _row_parts(logits):
            x, weighted, w = _visible(logits, targets, weights, ids, rows)
            probs = x.sigmoid()
            slope = probs * (1 - probs)
            share = slope * of_weight[rows] + probs * of_bce[rows]
            share = share if w is None else share.mul_(w)
            share -= weighted * (slope.mul_(of_target[rows]).add_(of_bce[rows]))
            found[rows] = share
        return found, None, None, None


def _tile_elements(device: torch.device) -> int:
    return _TILE_ELEMENTS if device.type == "cpu" else 64 * _TILE_ELEMENTS


def _row_parts(logits: Tensor) -> list[slice]:
    """Rows that are done at once."""
    step = max(1, _tile_elements(logits.device) // max(1, logits.shape[1]))
    return [slice(start, start + step) for start in range(0, len(logits), step)]


def _visible(
    logits: Tensor, targets: Tensor, weights: Tensor | None, ids: Tensor | None, rows: slice
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Some rows of logits, of targets times weights, both 0 where hidden, and of the weights."""
    x = logits[rows]
    t = (targets[rows] if ids is None else targets[ids[rows]]).to(x.dtype)
    if weights is None:
        return x, t, None
    w = (weights if weights.dim() == 1 else weights[rows]).to(x.dtype)
    hidden = w <= 0
    return x.masked_fill(hidden, 0), (t * w).masked_fill_(hidden, 0), w


def _softplus(logits: Tensor, probs: Tensor) -> Tensor:
    """max(x, 0) - log sigmoid(|x|), from the sigmoids that are there already."""
    return logits.clamp(min=0).sub_(torch.maximum(probs, 1 - probs).log_())


def _row_sums(values: Tensor, weights: Tensor | None) -> Tensor:
    """(n,) sums of (n, P) values times weights (P,) or (n, P)."""
    if weights is None:
        return values.sum(1)
    return values @ weights if weights.dim() == 1 else (values * weights).sum(1)


@dataclass(frozen=True)
class PairTargets:
    """Masks as `pairwise_mask_costs` reads them, made once for all layers; G masks.

    Attributes:
        weighted: (G + 1, p) targets times weights at the p places whose weight is not 0, and the
            weights: the last row, so that one product sums them up as well.
        places: (p,) int64 these places; None: all.
        total: sum of all weights.
        masses: (G,) sums of the first G rows.
        alike: whether all weights that are not 0 are known to be equal.
        hidden: (p,) bool where the weight is 0 all the same; None: nowhere.
    """

    weighted: Tensor
    places: Tensor | None
    total: Tensor
    masses: Tensor
    alike: bool
    hidden: Tensor | None = None

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
        write_targets(masks, area, weights, weighted[:-1])
        return cls._of(weighted.flatten(1).to(dtype), weights.flatten().to(dtype))

    @classmethod
    def _of(cls, weighted: Tensor, weights: Tensor) -> PairTargets:
        """Takes (G + 1, P), targets with room for the weights below them; changes it."""
        weighted[:-1] *= weights
        weighted[-1] = weights
        if weights.device.type != "cpu":
            return cls.of_all_places(weighted)
        places = weights.nonzero()[:, 0]
        if len(places) == len(weights):
            alike = bool((weights == weights[:1]).all())
            return cls(weighted, None, weights.sum(), weighted[:-1].sum(1), alike)
        masses = weighted[:-1].masked_fill(weights <= 0, 0).sum(1)
        weighted = weighted[:, places]
        alike = bool((weighted[-1] == weighted[-1, :1]).all())
        return cls(weighted, places, weights.sum(), masses, alike)

    @classmethod
    def of_all_places(cls, weighted: Tensor) -> PairTargets:
        """Takes (G + 1, P) as `weighted`, changes it, and never waits for its device."""
        hidden = weighted[-1] <= 0
        weighted.masked_fill_(hidden, 0)
        return cls(weighted, None, weighted[-1].sum(), weighted[:-1].sum(1), False, hidden)


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
        tile: places per tile; None: as many as keep a temporary at half a MiB on a CPU.

    Returns:
        (Q, G) mean cross-entropy and (Q, G) dice loss.
    """
    queries, dtype = len(logits), full_precision(logits).dtype
    if isinstance(targets, Tensor):
        weights = targets.new_ones(targets.shape[1]) if weights is None else weights
        targets = PairTargets.of(targets.to(dtype), weights.to(dtype))
    weighted, places = targets.weighted, targets.places
    count, length = len(weighted) - 1, weighted.shape[1]
    most = max(1, _tile_elements(logits.device) // max(1, queries))
    tile = min(tile or most, max(1, length))
    entropy = weighted.new_zeros(queries)
    # With the few masks first a product takes half as long as the other way round.
    products = weighted.new_zeros(count + 1, 2 * queries)
    # Logits of a tile above their probabilities: one memory for all tiles.
    memory = weighted.new_empty(2 * queries * tile)
    for start in range(0, length, tile):
        stop = min(length, start + tile)
        where = slice(start, stop) if places is None else places[start:stop]
        both = memory[: 2 * queries * (stop - start)].view(2 * queries, -1)
        x, probs = both[:queries], both[queries:]
        x.copy_(logits[:, where])
        if targets.hidden is not None:
            x.masked_fill_(targets.hidden[where], 0)
        torch.sigmoid(x, out=probs)
        columns = weighted[:, start:stop]
        if targets.alike:
            lost = x.clamp(min=0).sum(1) - _sum_of_logs(torch.maximum(probs, 1 - probs))
            entropy += lost * columns[-1, :1]
        else:
            entropy += _softplus(x, probs) @ columns[-1]
        products += columns @ both.T
    linear, overlap = products[:count, :queries].T, products[:count, queries:].T
    area = products[count, queries:, None]
    bce = (entropy[:, None] - linear) / targets.total.clamp(min=1e-6)
    return bce, 1 - (2 * overlap + 1) / (area + targets.masses + 1)


def _sum_of_logs(values: Tensor) -> Tensor:
    """(Q,) sums of the logarithms of (Q, p) values in [1/2, 1], which are changed.

    A logarithm costs as much as ten products: that of a product of about eight is taken, which
    is far from the smallest number.
    """
    for _ in range(3):
        half = values.shape[1] // 2
        if not half:
            break
        if values.shape[1] % 2:
            values[:, 0] *= values[:, -1]
        values = values[:, :half].mul_(values[:, half : 2 * half])
    return values.log_().sum(1)
