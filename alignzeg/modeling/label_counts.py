"""How often many class probabilities of the same masks are right, without naming every pixel each.

A sweep asks how a thousand settings would name the pixels of an image. Settings that are neighbours
agree on most of them. So a group of settings is looked at as one: where one setting's answer beats
every other class by a bound that holds for the whole group, the pixel is counted for all of them.
The group is then divided, for the pixels that are left and the classes that can still win there.
What remains of a small group is named one by one. The bound allows for rounding, so the counts are
those of `semantic_inference`.

Source: branch and bound [ours].
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from alignzeg.modeling.interpolation import Geometry, Size, output_rows

# Settings that are named one by one, and how many parts a larger group is divided into.
_LEAF, _PARTS = 16, 8
# Unit roundoff of float32, and how many such errors of a sum over the masks the bound allows for.
_ROUNDOFF, _ERRORS = 2.0**-24, 4
# Probabilities of masks, and scores, that are held at a time.
_MOST_NUMBERS = 4 * 2**20


@dataclass(frozen=True)
class LabelCounts:
    """Pixels of n label maps of one image.

    Attributes:
        right: (n, K) int64 pixels of each class that were named so.
        named: (n, K) int64 labelled pixels that were named each class.
        true: (K,) int64 labelled pixels of each class.
    """

    right: Tensor
    named: Tensor
    true: Tensor


def count_labels(
    candidates: Tensor,
    mask_logits: Tensor,
    truth: Tensor,
    padded_size: Size,
    image_size: Size,
) -> LabelCounts:
    """Counts what `semantic_inference` in "exact" mode would answer, at the size of the truth.

    Args:
        candidates: (n, Q, K) class probabilities, 0 or more; groups are neighbours in this order.
        mask_logits: (Q, h, w) of the padded image.
        truth: (H, W) class ids; K or more is unlabelled and not counted.
        padded_size: height and width in pixels that (h, w) covers.
        image_size: height and width of the image inside the padding, at its top left.

    Raises:
        ValueError: if shapes do not fit, a size is not positive, or the image is larger than its
            padding.
    """
    if candidates.dim() != 3 or candidates.shape[1] != mask_logits.shape[0]:
        raise ValueError(
            "expected candidates (n, Q, K) and mask_logits (Q, h, w) of the same Q; "
            f"got {tuple(candidates.shape)} and {tuple(mask_logits.shape)}"
        )
    outside = image_size[0] > padded_size[0] or image_size[1] > padded_size[1]
    if outside or min(*padded_size, *image_size, *truth.shape) < 1:
        raise ValueError(
            f"sizes must be positive and the image inside its padding; got padded {padded_size}, "
            f"image {image_size}, truth {tuple(truth.shape)}"
        )
    size, _, classes = candidates.shape
    counter = _Counter(size, classes, truth)
    columns = torch.arange(classes, device=truth.device)
    rows_columns = (mask_logits.shape[-2], mask_logits.shape[-1])
    output = (truth.shape[0], truth.shape[1])
    geometry = Geometry(rows_columns, padded_size, image_size, output)
    for rows, masks in _stripes(mask_logits.float(), geometry):
        ids = counter.ids[rows].flatten()
        labelled = ids < len(counter.present)
        counter.count(0, candidates.float(), masks.T[labelled], ids[labelled], columns)
    return counter.result(truth)


def _stripes(logits: Tensor, geometry: Geometry) -> Iterator[tuple[slice, Tensor]]:
    """Rows of the output, and the (Q, P) probabilities of the masks at their pixels."""
    height, width = geometry.output
    wide = max(width, geometry.padded[1])
    step = max(1, min(height, _MOST_NUMBERS // (len(logits) * wide)))
    for start in range(0, height, step):
        stop = min(height, start + step)
        rows = torch.arange(start, stop, device=logits.device)
        yield slice(start, stop), output_rows(logits, rows, geometry).flatten(1)


class _Counter:
    """The counts of n candidates, kept for the classes that the truth shows."""

    def __init__(self, size: int, classes: int, truth: Tensor) -> None:
        device = truth.device
        self.present = torch.unique(truth[truth < classes]).long()
        # The place of each pixel's class among those present; one behind the last if it has none.
        places = torch.full((classes + 1,), len(self.present), device=device)
        places[self.present] = torch.arange(len(self.present), device=device)
        self.ids = places[truth.long().clamp(max=classes)]
        self.right = torch.zeros(size, len(self.present), dtype=torch.int64, device=device)
        self.named = torch.zeros(size, classes, dtype=torch.int64, device=device)

    def count(
        self, start: int, candidates: Tensor, masks: Tensor, ids: Tensor, columns: Tensor
    ) -> None:
        """Counts pixels for the candidates from `start` on.

        Args:
            start: number of the first candidate.
            candidates: (n, Q, k) of the classes `columns`.
            masks: (P, Q) probabilities.
            ids: (P,) true classes, as places in `present`.
            columns: (k,) ascending class ids, of which one wins in every pixel.
        """
        size = len(candidates)
        if not len(masks) or not size:
            return
        if size <= _LEAF:
            self._name(start, candidates, masks, ids, columns)
            return
        best = _winners(candidates[size // 2].T @ masks.T)
        sure, possible = _sure(candidates, masks, best)
        self._add(start, size, columns, best[sure][None], ids[sure])
        rest = ~sure
        # Copies hold only what is left, so that later products are small.
        masks, ids = masks[rest], ids[rest]
        candidates, columns = candidates[:, :, possible], columns[possible]
        step = -(-size // _PARTS)
        for first in range(0, size, step):
            part = candidates[first : first + step]
            self.count(start + first, part, masks, ids, columns)

    def _name(
        self, start: int, candidates: Tensor, masks: Tensor, ids: Tensor, columns: Tensor
    ) -> None:
        """One by one."""
        size, queries, width = candidates.shape
        flat = candidates.permute(2, 0, 1).reshape(width * size, queries)
        pixels = max(1, _MOST_NUMBERS // (size * width))
        for part, truth in zip(masks.split(pixels), ids.split(pixels), strict=True):
            best = _winners((flat @ part.T).view(width, size, len(part)))
            self._add(start, size, columns, best, truth)

    def _add(self, start: int, size: int, columns: Tensor, best: Tensor, ids: Tensor) -> None:
        """Adds (m, P) winners, as places in `columns`, to `size` candidates; m is `size` or 1."""
        many, kinds, width = len(best), len(self.present), len(columns)
        cells = best + width * ids
        cells = cells + kinds * width * torch.arange(many, device=best.device)[:, None]
        counts = torch.bincount(cells.flatten(), minlength=many * kinds * width)
        counts = counts.view(many, kinds, width)
        rows = slice(start, start + size)
        self.named[rows, columns] += counts.sum(1)
        same = columns == self.present[:, None]
        self.right[rows] += (counts * same).sum(2)

    def result(self, truth: Tensor) -> LabelCounts:
        """The counts of all classes."""
        right = torch.zeros_like(self.named)
        right[:, self.present] = self.right
        true = torch.bincount(truth[truth < right.shape[1]].long(), minlength=right.shape[1])
        return LabelCounts(right, self.named, true)


def _winners(scores: Tensor) -> Tensor:
    """(...) int64 the place of the highest of (k, ...) scores, the first of equals.

    Faster than an argmax where k is small: every step works on long vectors.
    """
    highest = scores[0].clone()
    best = torch.zeros(highest.shape, dtype=torch.int64, device=scores.device)
    for place, score in enumerate(scores[1:], start=1):
        best.masked_fill_(score > highest, place)
        torch.maximum(highest, score, out=highest)
    return best


def _sure(candidates: Tensor, masks: Tensor, best: Tensor) -> tuple[Tensor, Tensor]:
    """Where one class wins with every candidate of a group.

    Args:
        candidates: (n, Q, k).
        masks: (P, Q) probabilities.
        best: (P,) the winner with one of the candidates.

    Returns:
        (P,) bool, whether it wins with all; (k,) bool, the classes that may win in another pixel.
    """
    queries, width = candidates.shape[1:]
    rounding = _ERRORS * queries * _ROUNDOFF * (masks @ candidates.amax((0, 2)))
    sure = torch.zeros(len(masks), dtype=torch.bool, device=masks.device)
    possible = torch.zeros(width, dtype=torch.bool, device=masks.device)
    for winner in torch.unique(best).tolist():
        pixels = (best == winner).nonzero().squeeze(1)
        least = (candidates[:, :, winner, None] - candidates).amin(0)
        lead = masks[pixels] @ least - rounding[pixels, None]
        lead[:, winner] = torch.inf
        won = lead.amin(1) > 0
        sure[pixels] = won
        possible |= (lead[~won] <= 0).any(0)
        possible[winner] |= bool((~won).any())
    return sure, possible
