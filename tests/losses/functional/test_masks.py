"""Mask losses against loops in float64, closed forms and gradcheck."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from alignzeg.losses import functional
from alignzeg.losses.functional.masks import drawn_by_rank


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def naive_bce(logit: float, target: float) -> float:
    """Cross-entropy of one logit, from its definition."""
    prob = 1 / (1 + math.exp(-logit))
    return -target * math.log(prob) - (1 - target) * math.log(1 - prob)


def naive_mask_losses(logits, targets, weights) -> tuple[float, float]:
    """Weighted cross-entropy and dice of one row, by a loop."""
    bce = total = overlap = mass = 0.0
    for x, t, w in zip(logits.tolist(), targets.tolist(), weights.tolist(), strict=True):
        bce += w * naive_bce(x, t)
        total += w
        prob = 1 / (1 + math.exp(-x))
        overlap += w * prob * t
        mass += w * (prob + t)
    return bce / total, 1 - (2 * overlap + 1) / (mass + 1)


def test_mask_losses_equal_a_loop() -> None:
    logits = torch.randn(5, 37, dtype=torch.float64) * 3
    targets, weights = torch.rand(5, 37).double(), torch.rand(5, 37).double()
    bce, dice = functional.mask_losses(logits, targets, weights)
    for row in range(5):
        expected = naive_mask_losses(logits[row], targets[row], weights[row])
        assert (bce[row].item(), dice[row].item()) == pytest.approx(expected, rel=1e-12)


def test_mask_losses_without_weights_are_plain_means() -> None:
    logits, targets = torch.randn(3, 50), (torch.rand(3, 50) > 0.5)
    bce, _ = functional.mask_losses(logits, targets)
    expected = F.binary_cross_entropy_with_logits(logits, targets.float(), reduction="none").mean(1)
    assert torch.allclose(bce, expected, atol=1e-6)


def test_mask_losses_gradients() -> None:
    logits = torch.randn(2, 9, dtype=torch.float64, requires_grad=True)
    targets, weights = torch.rand(2, 9).double(), torch.rand(9).double()
    weights[3] = 0

    def both(x):
        return functional.mask_losses(x, targets, weights)

    assert torch.autograd.gradcheck(both, logits)


@pytest.mark.parametrize("poison", [7.0, math.nan, math.inf])
def test_weight_zero_has_no_influence_on_value_or_gradient(poison: float) -> None:
    weights = torch.tensor([1.0, 0.5, 0, 1, 0, 0.25])
    hidden = weights == 0
    results = []
    for value in (0.3, poison):
        logits, targets = torch.linspace(-2, 2, 12).view(2, 6), torch.rand(2, 6)
        targets = torch.linspace(0, 1, 12).view(2, 6)
        logits[:, hidden], targets[:, hidden] = value, value
        logits.requires_grad_()
        bce, dice = functional.mask_losses(logits, targets, weights)
        (grad,) = torch.autograd.grad((bce + dice).sum(), logits)
        assert (grad[:, hidden] == 0).all()
        results.append((bce.detach(), dice.detach(), grad))
        costs = functional.pairwise_mask_costs(logits.detach(), targets, weights)
        results[-1] += costs
    for a, b in zip(*results, strict=True):
        assert a.isfinite().all()
        assert torch.equal(a, b)


def test_all_weights_zero_is_a_zero_loss() -> None:
    logits = torch.randn(2, 4, requires_grad=True)
    bce, dice = functional.mask_losses(logits, torch.ones(2, 4), torch.zeros(4))
    (bce + dice).sum().backward()
    assert (bce == 0).all() and (dice == 0).all() and (logits.grad == 0).all()


def test_half_precision_is_computed_in_float32() -> None:
    logits = torch.randn(2, 64).bfloat16()
    targets = torch.rand(2, 64)
    for a, b in zip(
        functional.mask_losses(logits, targets),
        functional.mask_losses(logits.float(), targets),
        strict=True,
    ):
        assert a.dtype == torch.float32
        assert torch.equal(a, b)


@pytest.mark.parametrize("tile", [None, 1, 7, 1000])
def test_pairwise_costs_equal_all_pairs_of_losses(tile: int | None) -> None:
    logits, targets = torch.randn(6, 45).double() * 4, torch.rand(3, 45).double()
    weights = torch.rand(45).double() * (torch.rand(45) > 0.3)
    bce, dice = functional.pairwise_mask_costs(logits, targets, weights, tile)
    pairs = [(q, g) for q in range(6) for g in range(3)]
    rows, columns = (torch.tensor(ids) for ids in zip(*pairs, strict=True))
    expected = functional.mask_losses(logits[rows], targets[columns], weights)
    assert torch.allclose(bce.flatten(), expected[0], rtol=1e-10)
    assert torch.allclose(dice.flatten(), expected[1], rtol=1e-10)


@pytest.mark.parametrize("hidden", [False, True])
def test_targets_prepared_once_give_the_same_costs(hidden: bool) -> None:
    targets, weights = torch.rand(4, 300), torch.rand(300) + 0.1
    if hidden:
        weights[::3], targets[:, ::3] = 0, math.nan
    prepared = functional.PairTargets.of(targets, weights)
    for seed in range(3):
        logits = 4 * torch.randn(5, 300, generator=torch.Generator().manual_seed(seed))
        expected = functional.pairwise_mask_costs(logits, targets, weights)
        found = functional.pairwise_mask_costs(logits, prepared)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
        assert all(cost.isfinite().all() for cost in found)


@pytest.mark.parametrize("hidden", [False, True])
def test_targets_that_wait_for_no_device_give_the_same_costs(hidden: bool) -> None:
    targets, weights = torch.rand(4, 300), torch.rand(300) + 0.1
    if hidden:
        weights[::3], targets[:, ::3] = 0, math.nan
    logits = 4 * torch.randn(5, 300)
    expected = functional.pairwise_mask_costs(logits, targets, weights)
    weighted = torch.cat([targets * weights, weights[None]])
    prepared = functional.PairTargets.of_all_places(weighted)
    if hidden:
        logits[:, ::3] = math.inf
    for tile in (None, 7):
        found = functional.pairwise_mask_costs(logits, prepared, tile=tile)
        torch.testing.assert_close(found, expected)


def test_targets_prepared_of_masks_are_those_of_the_grid() -> None:
    masks, area = torch.rand(3, 16, 24) > 0.5, torch.rand(16, 24) > 0.3
    area[:4] = False
    soft, weights = functional.grid_targets(masks, area, (4, 6))
    expected = functional.PairTargets.of(soft.flatten(1), weights.flatten())
    found = functional.PairTargets.of_masks(masks, area, (4, 6), torch.float32)
    assert torch.equal(found.weighted, expected.weighted)
    assert torch.equal(found.places, expected.places)
    assert torch.equal(found.masses, expected.masses)
    assert len(found.places) == 18


def test_pairwise_costs_in_float32_stay_close_to_float64() -> None:
    logits = torch.randn(20, 4096) * 8
    targets, weights = (torch.rand(5, 4096) > 0.9).float(), (torch.rand(4096) > 0.5).float()
    for a, b in zip(
        functional.pairwise_mask_costs(logits, targets, weights),
        functional.pairwise_mask_costs(logits.double(), targets, weights),
        strict=True,
    ):
        assert (a - b).abs().max() < 1e-5


def test_grid_targets_of_a_case_counted_by_hand() -> None:
    masks = torch.zeros(2, 8, 8, dtype=torch.bool)
    masks[0, :, :3] = True  # three of the four columns of the left cells
    masks[1, 4:, 4:] = True
    area = torch.ones(8, 8, dtype=torch.bool)
    area[:4, 2:4] = False  # hides half of the upper left cell, one of its three mask columns
    area[:4, 4:] = False  # hides the upper right cell
    soft, weights = functional.grid_targets(masks, area, (2, 2))
    assert torch.equal(weights, torch.tensor([[0.5, 0.0], [1.0, 1.0]]))
    assert torch.equal(soft[0], torch.tensor([[1.0, 0.0], [0.75, 0.0]]))
    assert torch.equal(soft[1], torch.tensor([[0.0, 0.0], [0.0, 1.0]]))


def test_grid_targets_equal_a_loop_beyond_one_chunk() -> None:
    masks, area = torch.rand(19, 12, 20) > 0.6, torch.rand(12, 20) > 0.4
    area[:4, :4] = False
    soft, weights = functional.grid_targets(masks, area, (3, 5))
    for y in range(3):
        for x in range(5):
            cell = (slice(4 * y, 4 * y + 4), slice(4 * x, 4 * x + 4))
            known = int(area[cell].sum())
            assert weights[y, x].item() == pytest.approx(known / 16)
            for g in range(19):
                share = int((masks[g][cell] & area[cell]).sum()) / known if known else 0.0
                assert soft[g, y, x].item() == pytest.approx(share, abs=1e-6)
    assert 0 <= soft.min() and soft.max() <= 1


@pytest.mark.parametrize("rows", [1, 3, 4, 16, 20])
def test_counting_four_pixels_at_once_is_pooling_to_the_bit(rows: int) -> None:
    masks = torch.rand(5, 2 * rows, 28) > 0.4
    masks[0] = True
    for area in (torch.ones(2 * rows, 28, dtype=torch.bool), torch.rand(2 * rows, 28) > 0.2):
        found = functional.grid_targets(masks, area, (2, 7))
        # Weights of 0 and 1 go through pooling.
        expected = functional.grid_targets(masks, area.float(), (2, 7))
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_grid_targets_without_masks_and_with_a_size_that_does_not_fit() -> None:
    soft, weights = functional.grid_targets(
        torch.zeros(0, 8, 8, dtype=torch.bool), torch.ones(8, 8, dtype=torch.bool), (2, 2)
    )
    assert soft.shape == (0, 2, 2) and (weights == 1).all()
    with pytest.raises(ValueError, match="10 x 8 pixels.*4 x 2 cells"):
        functional.grid_targets(
            torch.zeros(1, 10, 8, dtype=torch.bool), torch.ones(10, 8, dtype=torch.bool), (4, 2)
        )


def test_points_lie_in_supervised_pixels_uniformly() -> None:
    area = torch.zeros(8, 12, dtype=torch.bool)
    area[1, 2] = area[7, 11] = area[0, 0] = area[4, 5] = True
    coords, pixels = functional.sample_points(area, 3, 4000)
    assert area.flatten()[pixels].all()
    x, y = (coords[..., 0] * 12).floor().long(), (coords[..., 1] * 8).floor().long()
    assert ((y * 12 + x) == pixels).float().mean() > 0.999  # float rounding at a pixel's edge
    shares = pixels.flatten().bincount(minlength=96)[area.flatten()] / pixels.numel()
    assert torch.allclose(shares, torch.full((4,), 0.25), atol=0.03)


def test_points_drawn_by_rank_are_the_trues_uniformly() -> None:
    inside = torch.zeros(50, dtype=torch.bool)
    inside[[0, 7, 8, 49]] = True
    places = drawn_by_rank(inside, 3, 4000)
    assert places.shape == (3, 4000)
    shares = places.flatten().bincount(minlength=50) / places.numel()
    assert torch.allclose(shares, inside / 4, atol=0.02)
    assert not shares[~inside].any()
    assert (places[0] != places[1]).any()


def test_logits_at_is_bilinear_where_all_is_known() -> None:
    h, w = 5, 7
    slope = (2.0 * torch.arange(w) + 3.0 * torch.arange(h)[:, None] - 4)[None].double()
    coords = torch.rand(1, 200, 2).double() * 0.7 + 0.15
    values = functional.logits_at(slope, torch.ones(h, w, dtype=torch.bool), coords)
    expected = 2 * (coords[..., 0] * w - 0.5) + 3 * (coords[..., 1] * h - 0.5) - 4
    assert torch.allclose(values, expected)


def test_logits_at_near_the_border_is_that_of_the_known_cells_of_a_larger_image() -> None:
    logits = torch.randn(2, 4, 6).double()
    # The same image with hidden cells around it; points of its outermost half cells too.
    around = torch.nn.functional.pad
    larger = around(logits, (1, 1, 1, 1), value=math.nan)
    known = around(torch.ones(4, 6, dtype=torch.bool), (1, 1, 1, 1))
    coords = torch.rand(2, 300, 2).double()
    coords[:, 0] = 0.0
    size = torch.tensor([6.0, 4.0]).double()
    values = functional.logits_at(logits, torch.ones(4, 6, dtype=torch.bool), coords)
    expected = functional.logits_at(larger, known, (coords * size + 1) / (size + 2))
    assert torch.allclose(values, expected)


def test_logits_at_ignores_unknown_cells_and_the_outside() -> None:
    known = torch.rand(6, 6) > 0.4
    area = known.repeat_interleave(4, 0).repeat_interleave(4, 1)
    coords, _ = functional.sample_points(area, 2, 500)
    logits = torch.randn(2, 6, 6)
    before = functional.logits_at(logits, known, coords)
    assert torch.equal(
        before, functional.logits_at(logits.masked_fill(~known, math.nan), known, coords)
    )
    constant = functional.logits_at(torch.full((2, 6, 6), 1.5), known, coords)
    assert torch.allclose(constant, torch.full_like(constant, 1.5))
    logits.requires_grad_()
    functional.logits_at(logits, known, coords).sum().backward()
    assert (logits.grad[:, ~known] == 0).all()
    assert (logits.grad[:, known] != 0).all()


def test_uncertain_points_gather_at_the_undecided_edge() -> None:
    logits = torch.linspace(-10, 10, 16).expand(1, 16, 16).contiguous()
    area = torch.ones(64, 64, dtype=torch.bool)
    area[:, :8] = False
    coords, pixels = functional.sample_uncertain_points(logits, area, 400, 3.0, 0.75)
    assert coords.shape == (1, 400, 2) and pixels.shape == (1, 400)
    assert area.flatten()[pixels].all()
    distance = (coords[0, :300, 0] - 0.5).abs()
    # 300 of 1200 uniform candidates over 7/8 of the width: the nearest quarter.
    assert distance.max() < 0.5 * (7 / 8) * 0.25 + 0.03
    assert (coords[0, 300:, 0] - 0.5).abs().max() > 0.3
