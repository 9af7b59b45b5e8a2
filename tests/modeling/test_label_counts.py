"""Counting many label maps at once gives what naming every pixel of each gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from alignzeg.evaluation.settings_counts import nearest_first
from alignzeg.modeling.label_counts import count_labels
from alignzeg.modeling.semantic_inference import semantic_inference

QUERIES, CLASSES = 6, 9


def path(count: int, spread: float) -> torch.Tensor:
    """(n, Q, K) probabilities along a straight way from one set of scores to another."""
    generator = torch.Generator().manual_seed(3)
    start, end = torch.randn(2, QUERIES, CLASSES, generator=generator)
    share = torch.linspace(0, 1, count)[:, None, None]
    return (3 * start + spread * share * end).softmax(-1)


def masks(height: int, width: int, scale: float = 6.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    return scale * torch.randn(QUERIES, height, width, generator=generator)


def naive(candidates, logits, truth, padded, image):
    """Right and named pixels, one label map and one pixel at a time."""
    right = np.zeros((len(candidates), CLASSES), int)
    named = np.zeros((len(candidates), CLASSES), int)
    for i, probs in enumerate(candidates):
        labels = semantic_inference(probs, logits, padded, image, tuple(truth.shape), 64.0)
        for answer, true in zip(labels.flatten().tolist(), truth.flatten().tolist(), strict=True):
            if true < CLASSES:
                named[i, answer] += 1
                right[i, answer] += answer == true
    return right, named


@pytest.mark.parametrize(
    ("count", "spread", "image", "size"),
    [
        (1, 1.0, (16, 16), (16, 16)),
        (70, 0.02, (16, 16), (16, 16)),
        (70, 4.0, (14, 11), (14, 11)),
        (45, 2.0, (14, 11), (25, 18)),
        (45, 2.0, (16, 16), (7, 9)),
    ],
)
def test_counts_are_those_of_every_label_map(count, spread, image, size):
    candidates, logits = path(count, spread), masks(4, 4)
    truth = torch.randint(0, CLASSES + 2, size, generator=torch.Generator().manual_seed(1))
    truth[truth >= CLASSES] = 255
    found = count_labels(candidates, logits, truth, (16, 16), image)
    right, named = naive(candidates, logits, truth, (16, 16), image)
    assert found.right.tolist() == right.tolist()
    assert found.named.tolist() == named.tolist()
    assert found.true.tolist() == [int((truth == k).sum()) for k in range(CLASSES)]


def test_equal_scores_are_the_lower_class():
    # Whole masks and eighths: sums are exact, in whatever order a processor takes them.
    candidates = (8 * path(40, 0.5)).round() / 8
    candidates[..., 6] = candidates[..., 2] = 1.0
    truth = torch.full((16, 16), 2)
    found = count_labels(candidates, masks(4, 4).abs() + 200, truth, (16, 16), (16, 16))
    assert found.named[:, 2].tolist() == [256] * 40
    assert found.right.sum(1).tolist() == [256] * 40


def test_an_image_without_a_label_counts_nothing():
    truth = torch.full((16, 16), 255)
    found = count_labels(path(30, 1.0), masks(4, 4), truth, (16, 16), (16, 16))
    assert not found.right.any() and not found.named.any() and not found.true.any()


@pytest.mark.parametrize(
    ("padded", "image", "queries", "message"),
    [
        ((16, 16), (17, 16), QUERIES, "image inside its padding"),
        ((0, 16), (16, 16), QUERIES, "sizes must be positive"),
        ((16, 16), (16, 16), QUERIES - 1, "of the same Q"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(padded, image, queries, message):
    truth = torch.zeros(16, 16, dtype=torch.int64)
    with pytest.raises(ValueError, match=message):
        count_labels(path(2, 1.0)[:, :queries], masks(4, 4), truth, padded, image)


def test_neighbours_follow_each_other():
    grid = np.array([(0.1 * a, 40.0 * b, 0.5) for a in range(4) for b in range(4)])
    order = nearest_first(grid)
    assert sorted(order.tolist()) == list(range(16))
    for start in range(0, 16, 4):
        block = np.array([divmod(i, 4) for i in order[start : start + 4]])
        assert np.ptp(block, axis=0).tolist() == [1, 1]
