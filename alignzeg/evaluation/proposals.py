"""What an evaluation counts about proposals rather than names: mask recall, and the background."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from alignzeg.evaluation.metrics import mask_ious
from alignzeg.structures import Vocabulary

# IoU thresholds of the class-agnostic recall, and the name of each.
RECALL_THRESHOLDS = {"AR50": 0.5, "AR75": 0.75}


def segment_counts(
    gt: NDArray, mask_logits: torch.Tensor, classes: int, min_segment: int
) -> NDArray[np.int64]:
    """Which segments of one image some proposal covers; a segment is all pixels of one class.

    Args:
        gt: (H, W) class ids; higher values are unlabelled.
        mask_logits: (Q, h, w) of the whole image.
        classes: K.
        min_segment: pixels that a segment needs in order to count.

    Returns:
        (K, 1 + T) segments of each class, and those found at each of `RECALL_THRESHOLDS`.
    """
    counts = np.zeros((classes, 1 + len(RECALL_THRESHOLDS)), dtype=np.int64)
    sizes = np.bincount(gt.ravel(), minlength=classes)[:classes]
    ids = np.flatnonzero(sizes >= max(min_segment, 1))
    if not len(ids):
        return counts
    # Torch knows too few operations on uint16.
    labels = torch.from_numpy(gt if gt.dtype == np.uint8 else gt.astype(np.int32))
    best = mask_ious(mask_logits, labels.to(mask_logits.device), ids.tolist()).cpu().numpy()
    counts[ids, 0] = 1
    for column, threshold in enumerate(RECALL_THRESHOLDS.values(), start=1):
        counts[ids, column] = best >= threshold
    return counts


def recall_metrics(counts: NDArray, vocabulary: Vocabulary) -> dict[str, float | None]:
    """The recall of seen and unseen segments, in percent, from (K, 1 + T) `segment_counts`."""
    groups = (("seen", vocabulary.seen_ids), ("unseen", vocabulary.unseen_ids))
    return {
        f"{name}_{group}": recall(counts[list(rows)].sum(0), column)
        for group, rows in groups
        for column, name in enumerate(RECALL_THRESHOLDS, start=1)
    }


def recall(counts: NDArray, column: int) -> float | None:
    """Percent of the segments (entry 0) that were found at a threshold (entry `column`)."""
    return 100.0 * int(counts[column]) / int(counts[0]) if counts[0] else None


def background_counts(
    gt: NDArray, background: NDArray[np.bool_], seen: Sequence[bool]
) -> NDArray[np.int64]:
    """Pixels of one image where the background would win, if it could be named.

    Args:
        gt: (H, W) class ids; values of K or more are unlabelled.
        background: (h, w), true where it would win; the nearest value counts for a pixel.
        seen: for each of the K classes, whether it was trained on.

    Returns:
        (2, 2) of true pixels of seen (row 0) and unseen classes: those lost to the background, all.
    """
    (height, width), (h, w) = gt.shape, background.shape
    full = background[np.arange(height)[:, None] * h // height, np.arange(width) * w // width]
    is_seen = np.asarray(seen, dtype=bool)
    known = gt < len(is_seen)
    of_seen = is_seen[gt[known]]
    lost = full[known]
    return np.array(
        [[np.sum(lost & group), np.sum(group)] for group in (of_seen, ~of_seen)], dtype=np.int64
    )


def background_metrics(counts: NDArray) -> dict[str, float | None]:
    """The rates of (2, 2) `background_counts`, in percent; none if nothing was counted."""
    if not counts[:, 1].any():
        return {}
    return {
        f"{name}_to_background": 100.0 * int(lost) / int(total) if total else None
        for name, (lost, total) in zip(("seen", "unseen"), counts, strict=True)
    }
