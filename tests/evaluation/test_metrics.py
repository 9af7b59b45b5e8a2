"""The metrics against loops over single pixels, and cases worked out by hand."""

import math

import numpy as np
import pytest
import torch
from metric_cases import assert_same, naive_metrics
from torch.nn.functional import interpolate

from alignzeg.evaluation import (
    confusion,
    mask_ious,
    metrics_from_confusion,
)
from alignzeg.evaluation.metrics import class_iou, group_confusion, harmonic_mean


def test_metrics_equal_a_loop_over_pixels():
    rng = np.random.default_rng(0)
    without = {"unseen": 0, "seen": 0}
    for _ in range(1200):
        k = int(rng.integers(1, 6))
        seen = tuple(bool(flag) for flag in rng.random(k) < 0.6)
        shape = tuple(rng.integers(1, 6, 2))
        few = rng.choice(k, int(rng.integers(1, k + 1)), replace=False)
        gt = rng.choice([*few, 255], shape).astype(np.uint8)
        pred = rng.choice([*range(k), 255], shape).astype(rng.choice([np.uint8, np.uint16]))
        result = metrics_from_confusion(confusion(gt, pred, k), seen)
        assert_same(result, naive_metrics(gt, pred, seen))
        assert not any(value is not None and math.isnan(value) for value in result.values())
        without["unseen"] += result["uIoU"] is None
        without["seen"] += result["sIoU"] is None
    assert min(without.values()) > 50


def test_a_case_by_hand():
    # true:      8 a, 4 b, 4 u          a and b are seen, u is not
    matrix = np.array([[6, 1, 1, 0], [0, 2, 0, 2], [2, 0, 2, 0]])
    result = metrics_from_confusion(matrix, (True, True, False))
    a, b, u = 6 / 10, 2 / 5, 2 / 5
    assert class_iou(matrix) == pytest.approx([60, 40, 40])
    assert result["pAcc"] == pytest.approx(100 * 10 / 16)
    assert result["mIoU"] == pytest.approx(100 * (a + b + u) / 3)
    assert result["sIoU"] == pytest.approx(50)
    assert result["uIoU"] == pytest.approx(40)
    assert result["hIoU"] == pytest.approx(2 * 50 * 40 / 90)
    assert result["unseen_to_seen"] == pytest.approx(50)
    assert result["seen_to_unseen"] == pytest.approx(100 / 12)
    assert result["seen_rejected"] == pytest.approx(200 / 12)
    assert group_confusion(matrix, (True, True, False)) == {
        "seen": {"seen": 9, "unseen": 1, "rejected": 2},
        "unseen": {"seen": 2, "unseen": 2, "rejected": 0},
    }


def test_a_class_that_is_only_predicted_counts_in_the_old_denominator_alone():
    matrix = np.array([[3, 1], [0, 0]])
    result = metrics_from_confusion(matrix, (True, True))
    assert result["mIoU"] == pytest.approx(75)
    assert result["mIoU_union"] == pytest.approx(37.5)
    assert (result["uIoU"], result["hIoU"], result["unseen_to_seen"]) == (None, None, None)


def test_nothing_labelled_is_undefined_everywhere():
    matrix = confusion(np.full((2, 2), 255, np.uint8), np.zeros((2, 2), np.uint8), 2)
    assert matrix.sum() == 0
    assert set(metrics_from_confusion(matrix, (True, False)).values()) == {None}


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [(0, 0, 0), (0, 50, 0), (50, 0, 0), (40, 40, 40), (None, 5, None), (5, None, None)],
)
def test_harmonic_mean_edges(first, second, expected):
    assert harmonic_mean(first, second) == expected


def test_class_order_does_not_matter():
    rng = np.random.default_rng(1)
    for _ in range(100):
        k = 6
        seen = rng.random(k) < 0.5
        matrix = rng.integers(0, 9, (k, k + 1)) * (rng.random((k, 1)) < 0.8)
        order = rng.permutation(k)
        shuffled = matrix[order][:, [*order, k]]
        assert_same(
            metrics_from_confusion(shuffled, seen[order].tolist()),
            metrics_from_confusion(matrix, seen.tolist()),
        )


def test_shapes_are_checked():
    with pytest.raises(ValueError, match=r"\(2, 2\).*\(2, 3\)"):
        confusion(np.zeros((2, 2), int), np.zeros((2, 3), int), 2)
    with pytest.raises(ValueError, match="does not fit 3 classes"):
        metrics_from_confusion(np.zeros((2, 2), int), (True, True, False))


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_mask_ious_equal_a_loop(chunk):
    generator = torch.Generator().manual_seed(0)
    for case in range(30):
        q, height, width = 1 + case % 7, 9 + case % 5, 12
        logits = torch.randn(q, 3, 4, generator=generator)
        labels = torch.tensor([0, 1, 2, 255])[
            torch.randint(4, (height, width), generator=generator)
        ].to(torch.uint8)
        result = mask_ious(logits, labels, [2, 0], chunk)
        full = interpolate(logits[None], (height, width), mode="bilinear")[0].sigmoid()
        for found, wanted in zip(result, (2, 0), strict=True):
            best = 0.0
            for mask in full:
                inter = union = 0
                for y in range(height):
                    for x in range(width):
                        if labels[y, x] == 255:
                            continue
                        inside, true = bool(mask[y, x] > 0.5), int(labels[y, x]) == wanted
                        inter += inside and true
                        union += inside or true
                best = max(best, inter / union if union else 0.0)
            assert float(found) == pytest.approx(best, abs=1e-12)


def test_mask_ious_without_proposals_or_classes():
    labels = torch.zeros(4, 4, dtype=torch.uint8)
    assert mask_ious(torch.zeros(0, 2, 2), labels, [0]).tolist() == [0.0]
    assert mask_ious(torch.zeros(3, 2, 2), labels, []).shape == (0,)
