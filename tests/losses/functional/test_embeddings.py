"""Losses of embeddings against loops and cases by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from alignzeg.losses import functional


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def test_prototype_diversity_by_hand_and_gradient() -> None:
    half = math.sqrt(0.5)
    prototypes = torch.tensor([[1.0, 0.0], [half, half], [0.0, 1.0]], dtype=torch.float64)
    # Ordered pairs: 4 of cosine 0.707, 2 of cosine 0.
    expected = 4 * (half - 0.2) / 6
    assert functional.prototype_diversity(prototypes, 0.2).item() == pytest.approx(expected)
    prototypes.requires_grad_()
    assert torch.autograd.gradcheck(lambda b: functional.prototype_diversity(b, 0.2), prototypes)


def test_one_prototype_has_no_diversity_loss() -> None:
    prototype = torch.ones(1, 4, requires_grad=True)
    loss = functional.prototype_diversity(prototype, 0.2)
    loss.backward()
    assert loss == 0 and (prototype.grad == 0).all()


def naive_ranking(cosines, relations, pairs, margin, slope) -> list[float]:
    """The ranking loss by loops over samples and ordered pairs of classes."""
    means = []
    for s, r, allowed in zip(cosines.tolist(), relations.tolist(), pairs.tolist(), strict=True):
        costs = []
        for pair in allowed:
            for j, k in (pair, pair[::-1]):
                if r[j] > r[k] + margin:
                    costs.append(max(0.0, slope * (r[j] - r[k]) - (s[j] - s[k])))
        means.append(sum(costs) / len(costs) if costs else 0.0)
    return means


@pytest.mark.parametrize("pairs", [21, 20, 5, 1])
@pytest.mark.parametrize(("margin", "slope"), [(0.05, 0.5), (0.0, 2.0), (0.7, 1.0), (3.0, 1.0)])
def test_the_ranking_equals_a_triple_loop(pairs: int, margin: float, slope: float) -> None:
    samples, classes = 6, 7
    cosines = torch.rand(samples, classes, dtype=torch.float64) * 2 - 1
    relations = torch.rand(samples, classes, dtype=torch.float64) * 2 - 1
    drawn = functional.draw_pairs(samples, classes, pairs)
    loss = functional.semantic_ranking(cosines, relations, drawn, margin, slope)
    assert loss.tolist() == pytest.approx(naive_ranking(cosines, relations, drawn, margin, slope))
    cosines.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda s: functional.semantic_ranking(s, relations, drawn, margin, slope), cosines
    )


def test_the_ranking_is_content_with_the_right_order() -> None:
    text = F.normalize(torch.randn(9, 5, dtype=torch.float64), dim=1)
    own = torch.tensor([3, 0, 8, 3])
    relations = text[own] @ text.T
    pairs = functional.draw_pairs(len(own), len(text), 64)
    # A sample on its prototype has exactly the names' order and distances.
    assert (functional.semantic_ranking(relations, relations, pairs, 0.05, 1.0) == 0).all()
    assert (functional.semantic_ranking(-relations, relations, pairs, 0.05, 1.0) > 0).all()
    empty = functional.semantic_ranking(relations[:0], relations[:0], pairs[:0], 0.05, 1.0)
    assert empty.shape == (0,)


def test_pairs_are_all_or_as_many_as_asked_for() -> None:
    everything = functional.draw_pairs(2, 5, 10)
    assert everything.shape == (2, 10, 2)
    want = {(j, k) for j in range(5) for k in range(j + 1, 5)}
    assert {tuple(pair) for pair in everything[1].tolist()} == want
    drawn = functional.draw_pairs(3, 847, 64)
    assert drawn.shape == (3, 64, 2)
    assert 0 <= drawn.min() and drawn.max() < 847
    assert (drawn[..., 0] != drawn[..., 1]).all()
    # Uniform over ordered pairs: each of 6 is drawn about 1000 times.
    many = functional.draw_pairs(3000, 3, 2).reshape(-1, 2)
    counts = torch.bincount(many[:, 0] * 3 + many[:, 1], minlength=9).reshape(3, 3)
    assert (counts.diagonal() == 0).all()
    assert ((counts[~torch.eye(3, dtype=torch.bool)] - 1000).abs() < 150).all()
