"""Mask losses against loops; hidden pixels, points, several processes."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from criteria_cases import (
    BATCH,
    GRID,
    LAYERS,
    QUERIES,
    make_batch,
    make_targets,
    mask_criterion,
)
from torch.nn import functional as F

from alignzeg.losses import functional
from alignzeg.losses.criteria import count_masks
from alignzeg.peers import alone
from alignzeg.structures import Matches, Outputs, Proposals, Targets


def naive_mask_losses(outputs, targets, matches, layer: int) -> tuple[float, float]:
    """Deep-supervision losses of one layer in float64, pixel by pixel share."""
    bce_sum = dice_sum = 0.0
    for image, target in enumerate(targets):
        match = matches[layer][image]
        for q, g in zip(match.proposals.tolist(), match.targets.tolist(), strict=True):
            bce = total = overlap = mass = 0.0
            for y in range(GRID):
                for x in range(GRID):
                    cell = (slice(4 * y, 4 * y + 4), slice(4 * x, 4 * x + 4))
                    known = int(target.valid[cell].sum())
                    if not known:
                        continue
                    share = int((target.masks[g][cell] & target.valid[cell]).sum()) / known
                    logit = outputs.proposals[layer].mask_logits[image, q, y, x].item()
                    prob = 1 / (1 + math.exp(-logit))
                    weight = known / 16
                    bce -= weight * (share * math.log(prob) + (1 - share) * math.log(1 - prob))
                    total += weight
                    overlap += weight * share * prob
                    mass += weight * (share + prob)
            bce_sum += bce / total
            dice_sum += 1 - (2 * overlap + 1) / (mass + 1)
    count = max(1, sum(len(target.labels) for target in targets))
    return bce_sum / count, dice_sum / count


@pytest.mark.parametrize("counts", [(3, 2), (0, 4), (8, 1)])
def test_mask_losses_equal_a_loop(counts: tuple[int, int]) -> None:
    batch = make_batch(*counts)
    losses = mask_criterion()(*batch)
    for layer, suffix in enumerate(("_0", "_1", "")):
        bce, dice = naive_mask_losses(*batch, layer)
        assert losses[f"loss_mask{suffix}"].item() == pytest.approx(5 * bce, rel=1e-5)
        assert losses[f"loss_dice{suffix}"].item() == pytest.approx(2 * dice, rel=1e-5)


def test_mask_losses_pass_gradcheck() -> None:
    outputs, targets, matches = make_batch(2, 1)

    def total(logits: torch.Tensor) -> torch.Tensor:
        layers = tuple(Proposals(p.embeds, logits) for p in outputs.proposals)
        values = dataclasses.replace(outputs, proposals=layers)
        return torch.stack(list(mask_criterion()(values, targets, matches).values()))

    logits = torch.randn(BATCH, QUERIES, GRID, GRID, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(total, logits, fast_mode=True)


def test_unmatched_proposals_get_no_mask_gradient() -> None:
    outputs, targets, matches = make_batch(2, 1)
    mask_criterion()(outputs, targets, matches)["loss_mask"].backward()
    grad = outputs.proposals[-1].mask_logits.grad
    for image in range(BATCH):
        matched = matches[-1][image].proposals
        others = torch.ones(QUERIES, dtype=torch.bool)
        others[matched] = False
        assert (grad[image, others] == 0).all() and (grad[image, matched] != 0).any()


@pytest.mark.parametrize("points", [0, 300])
@pytest.mark.parametrize("poison", [50.0, math.nan])
def test_hidden_pixels_have_exactly_no_influence(points: int, poison: float) -> None:
    outputs, targets, matches = make_batch(3, 2)
    criterion = mask_criterion(num_points=points)
    results = []
    for poisoned in (False, True):
        layers, masks = [], []
        for target in targets:
            masks.append(target.masks.clone())
            if poisoned:
                masks[-1][:, ~target.valid] = True
        for layer in outputs.proposals:
            logits = layer.mask_logits.detach().clone()
            if poisoned:
                logits[:, :, :2, :2] = poison  # make_targets hides these cells
            layers.append(Proposals(layer.embeds, logits.requires_grad_()))
        torch.manual_seed(7)
        losses = criterion(
            dataclasses.replace(outputs, proposals=tuple(layers)),
            [dataclasses.replace(t, masks=m) for t, m in zip(targets, masks, strict=True)],
            matches,
        )
        sum(losses.values()).backward()
        grads = [layer.mask_logits.grad for layer in layers]
        assert all((grad[:, :, :2, :2] == 0).all() for grad in grads)
        results.append([*losses.values(), *grads])
    for before, after in zip(*results, strict=True):
        assert torch.equal(before, after)


def test_hidden_pixels_that_count_as_negatives_by_hand() -> None:
    mask = torch.zeros(1, 8, 8, dtype=torch.bool)
    mask[0, :4, :4] = True
    valid = mask[0].clone()
    valid[:4, 4:] = True
    padding = torch.zeros(8, 8, dtype=torch.bool)
    padding[4:, 4:] = True
    target = Targets(torch.tensor([0]), mask, valid, padding=padding)
    negative = dataclasses.replace(target, valid=~padding)
    assert torch.equal(negative.to(torch.device("cpu")).padding, padding)
    unpadded = Targets(torch.tensor([0]), mask, torch.ones_like(valid))
    # Cells: mask, valid negative / hidden, padding.
    logits = torch.tensor([[2.0, -1.0], [3.0, 4.0]])[None, None]
    embeds = torch.zeros(1, 1, 2)
    outputs = Outputs((Proposals(embeds, logits),), embeds, embeds, torch.zeros(1, 1, 2))
    matches = [[Matches(torch.tensor([0]), torch.tensor([0]))]]

    def soft(x: float) -> float:
        return math.log1p(math.exp(x))

    def sigma(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    blind = mask_criterion()(outputs, [target], matches)
    strict = mask_criterion()(outputs, [negative], matches)
    whole = mask_criterion()(outputs, [unpadded], matches)
    assert blind["loss_mask"].item() == pytest.approx(5 * (soft(-2) + soft(-1)) / 2)
    assert strict["loss_mask"].item() == pytest.approx(5 * (soft(-2) + soft(-1) + soft(3)) / 3)
    assert whole["loss_mask"].item() == pytest.approx(
        5 * (soft(-2) + soft(-1) + soft(3) + soft(4)) / 4
    )
    dice = 1 - (2 * sigma(2) + 1) / (sigma(2) + sigma(-1) + sigma(3) + 1 + 1)
    assert strict["loss_dice"].item() == pytest.approx(2 * dice)


def test_points_estimate_the_loss_of_the_whole_grid() -> None:
    outputs, targets, matches = make_batch(3, 2)
    # Flat predictions, for which neither interpolation nor uncertainty matters.
    flat = tuple(
        Proposals(p.embeds, p.mask_logits[..., :1, :1].expand(-1, -1, GRID, GRID))
        for p in outputs.proposals
    )
    outputs = dataclasses.replace(outputs, proposals=flat)
    exact = mask_criterion()(outputs, targets, matches)
    sampled = mask_criterion(num_points=20000)(outputs, targets, matches)
    for suffix in ("", "_0", "_1"):
        name = f"loss_mask{suffix}"
        assert sampled[name].item() == pytest.approx(exact[name].item(), rel=0.02)


def test_points_equal_the_loss_of_their_own_places() -> None:
    outputs, targets, matches = make_batch(2, 1)
    criterion = mask_criterion(num_points=30, importance=0.0)
    torch.manual_seed(3)
    loss = criterion(outputs, targets, matches)
    by_hand = torch.tensor(0.0)
    torch.manual_seed(3)
    for image, target in enumerate(targets):
        rows = sum(len(layer[image].proposals) for layer in matches)
        functional.sample_points(target.valid, rows, 90)
        coords, pixels = functional.sample_points(target.valid, rows, 30)
        match, known = matches[-1][image], functional.cell_shares(target.valid, (GRID, GRID)) > 0
        n = len(match.proposals)  # the final layer's rows come last
        logits = outputs.proposals[-1].mask_logits[image, match.proposals]
        values = functional.logits_at(logits, known, coords[-n:])
        for row in range(n):
            truth = target.masks[match.targets[row]].flatten()[pixels[rows - n + row]].float()
            by_hand = by_hand + F.binary_cross_entropy_with_logits(values[row], truth)
    assert loss["loss_mask"].item() == pytest.approx(5 * by_hand.item() / 3, rel=1e-5)


@pytest.mark.parametrize("points", [0, 50])
def test_an_image_without_a_valid_pixel_costs_nothing(points: int) -> None:
    outputs, _, matches = make_batch(2, 2)
    targets = [make_targets(2, hidden=1.1), make_targets(2, hidden=1.1)]
    losses = mask_criterion(num_points=points)(outputs, targets, matches)
    assert all(loss == 0 for loss in losses.values())
    sum(losses.values()).backward()


def test_sampling_values_out_of_range_are_refused() -> None:
    for bad in ({"num_points": -1}, {"oversample": 0.5}, {"importance": 1.5}):
        with pytest.raises(ValueError, match=str(*bad.values())):
            mask_criterion(**bad)


def _count_in_process(rank: int, store: str) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=2
    )
    try:
        torch.manual_seed(0)
        batch = make_batch(3, 2) if rank == 0 else make_batch(1, 0)
        loss = mask_criterion()(*batch)["loss_mask"].item()
        bce, _ = naive_mask_losses(*batch, LAYERS - 1)
        if rank == 0:
            # The other process does not answer, and is not waited for.
            with alone():
                assert count_masks(batch[1]) == 5
    finally:
        torch.distributed.destroy_process_group()
    own = 5 if rank == 0 else 1
    assert loss == pytest.approx(5 * bce * own / 3, rel=1e-5)  # six masks on two processes


def _second_process(_: int, store: str) -> None:
    _count_in_process(1, store)


def test_masks_are_counted_over_processes(tmp_path: Path) -> None:
    store = str(tmp_path / "store")
    other = torch.multiprocessing.spawn(_second_process, (store,), nprocs=1, join=False)
    _count_in_process(0, store)
    while not other.join():
        pass
