"""Metrics of generalized zero-shot segmentation as pure functions. Rates are in percent."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

# Float32 counts pixels exactly up to here; larger images are counted in parts.
_EXACT_FLOAT32 = 2**24


def confusion(gt: NDArray, pred: NDArray, k: int) -> NDArray[np.int64]:
    """Counts the pixels of one image by true and predicted class.

    Args:
        gt: integer class ids; pixels with a value >= k are unlabelled and not counted.
        pred: same shape, integer class ids; k or more means "rejected, no class named".
        k: number of classes.

    Returns:
        (k, k + 1) counts, rows ground truth, columns prediction; the last column is "rejected".

    Raises:
        ValueError: if the shapes differ.
    """
    if gt.shape != pred.shape:
        raise ValueError(f"ground truth has shape {gt.shape} but the prediction {pred.shape}")
    # Unlabelled pixels get a row of their own that is dropped: cheaper than picking the others out.
    cells = gt.astype(np.intp).ravel()
    np.minimum(cells, k, out=cells)
    cells *= k + 1
    cells += np.minimum(pred.ravel(), np.asarray(k, dtype=np.intp))
    counts = np.bincount(cells, minlength=(k + 1) ** 2).reshape(k + 1, k + 1)
    return counts[:k].astype(np.int64, copy=False)


def class_iou(matrix: NDArray) -> list[float | None]:
    """Intersection over union of every class in percent; None for classes without true pixels.

    Predictions count on labelled ground truth only, as in Detectron2's evaluator.
    """
    hit, true, predicted = _counts(matrix)
    return [
        100.0 * int(h) / int(t + p - h) if t else None
        for h, t, p in zip(hit, true, predicted, strict=True)
    ]


def metrics_from_confusion(matrix: NDArray, seen: Sequence[bool]) -> dict[str, float | None]:
    """All figures that follow from a confusion matrix, in percent; None where nothing is defined.

    `mIoU`, `sIoU`, `uIoU` average the IoU of all, seen and unseen classes **that occur in the
    ground truth**; `hIoU` is the harmonic mean of the latter two, 0 if both are 0; `pAcc` is the
    share of correct pixels. The `..._union` figures use the older denominator, classes that occur
    in the ground truth or in the prediction. The bias audit splits the true pixels of each group:
    `unseen_to_seen` were named as some seen class, `unseen_to_unseen_wrong` as the wrong unseen
    class, `unseen_rejected` not at all, `unseen_correct` is the rest; the same for seen.

    Args:
        matrix: (K, K) or (K, K + 1) counts, rows ground truth, a last column for "rejected".
        seen: for each class, whether it was trained on.

    Raises:
        ValueError: if the matrix does not fit the number of classes.

    Source: formulas as in Detectron2's SemSegEvaluator; hIoU as in arXiv:1904.00344.
    """
    k = len(seen)
    if matrix.shape not in ((k, k), (k, k + 1)):
        raise ValueError(f"a confusion matrix of shape {matrix.shape} does not fit {k} classes")
    is_seen = np.asarray(seen, dtype=bool)
    hit, true, predicted = _counts(matrix)
    iou = np.array([value or 0.0 for value in class_iou(matrix)])
    groups = {"m": np.ones(k, dtype=bool), "s": is_seen, "u": ~is_seen}
    result: dict[str, float | None] = {"pAcc": _percent(hit.sum(), true.sum())}
    for suffix, counted in (("", true > 0), ("_union", true + predicted > 0)):
        for letter, group in groups.items():
            values = iou[group & counted]
            result[f"{letter}IoU{suffix}"] = float(values.mean()) if len(values) else None
        result[f"hIoU{suffix}"] = harmonic_mean(result[f"sIoU{suffix}"], result[f"uIoU{suffix}"])
    for name, other, group in (("seen", "unseen", is_seen), ("unseen", "seen", ~is_seen)):
        total = true[group].sum()
        inside = matrix[:, :k][group][:, group].sum()
        crossed = matrix[:, :k][group][:, ~group].sum()
        correct = hit[group].sum()
        result[f"{name}_to_{other}"] = _percent(crossed, total)
        result[f"{name}_to_{name}_wrong"] = _percent(inside - correct, total)
        result[f"{name}_rejected"] = _percent(total - inside - crossed, total)
        result[f"{name}_correct"] = _percent(correct, total)
    return result


def group_confusion(matrix: NDArray, seen: Sequence[bool]) -> dict[str, dict[str, int]]:
    """The confusion matrix summed up to seen and unseen, in pixels: {true: {predicted: count}}."""
    k = len(seen)
    is_seen = np.asarray(seen, dtype=bool)
    groups = {"seen": is_seen, "unseen": ~is_seen}
    return {
        true: {
            **{name: int(matrix[rows][:, :k][:, group].sum()) for name, group in groups.items()},
            "rejected": int(matrix[rows][:, k:].sum()),
        }
        for true, rows in groups.items()
    }


def harmonic_mean(first: float | None, second: float | None) -> float | None:
    """2ab / (a + b); 0 if both are 0, None if one of them is not defined."""
    if first is None or second is None:
        return None
    return 2 * first * second / (first + second) if first + second else 0.0


def mask_ious(mask_logits: Tensor, labels: Tensor, ids: Sequence[int], chunk: int = 8) -> Tensor:
    """How well the best proposal covers each class's pixels of one image, whatever its class.

    Proposals are upsampled bilinearly to full size and binarised at probability 0.5. Unlabelled
    pixels are outside of the proposal and of the segment.

    Args:
        mask_logits: (Q, h, w) logits of the final proposals, covering the whole image.
        labels: (H, W) class ids on the same device; 255, or 65535 if not uint8, is unlabelled.
        ids: the G classes to measure.
        chunk: proposals held at full size at a time.

    Returns:
        (G,) float64 best IoU over all proposals, in [0, 1]; 0 if there is no proposal.
    """
    wanted = torch.as_tensor(list(ids), dtype=torch.int64, device=labels.device)
    best = torch.zeros(len(wanted), dtype=torch.float64)
    labels = labels.to(torch.int32) if labels.dtype != torch.uint8 else labels
    flat = labels.flatten()
    labelled = flat != (255 if labels.dtype == torch.uint8 else 65535)
    # One product counts a proposal's pixels in every segment and, in the last column, its area.
    marked = torch.cat([flat[:, None] == wanted, labelled[:, None]], 1)
    columns, area = marked.float().split(_EXACT_FLOAT32), marked[:, :-1].sum(0).cpu()
    for part in mask_logits.float().split(chunk) if len(mask_logits) else ():
        full = interpolate(part[None], labels.shape, mode="bilinear", align_corners=False)[0]
        pieces = zip((full.flatten(1) > 0).split(_EXACT_FLOAT32, 1), columns, strict=True)
        # Not every device has float64.
        counts = torch.stack([(a.float() @ b).cpu().double() for a, b in pieces]).sum(0)
        shared = counts[:, :-1]
        union = counts[:, -1:] + area - shared
        best = torch.maximum(best, (shared / union.clamp(min=1)).amax(0))
    return best


def _counts(matrix: NDArray) -> tuple[NDArray, NDArray, NDArray]:
    """Per class: correct, true and predicted pixels."""
    k = len(matrix)
    return matrix.diagonal(), matrix.sum(1), matrix[:, :k].sum(0)


def _percent(part: int | np.integer, whole: int | np.integer) -> float | None:
    return 100.0 * int(part) / int(whole) if whole else None
