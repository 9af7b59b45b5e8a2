"""Losses of class scores against loops: which proposals learn what, and how much."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from criteria_cases import (
    BATCH,
    CLASSES,
    QUERIES,
    SIZE,
    class_criterion,
    make_batch,
    make_matches,
    make_outputs,
    make_targets,
    mask_criterion,
)
from torch.nn import functional as F

from alignzeg.losses.criteria import (
    EnhancementCriterion,
    ForegroundClassCriterion,
    RankingCriterion,
)
from alignzeg.structures import Matches, Outputs, Proposals, Targets

# --- classes


@pytest.mark.parametrize("background_weight", [0.1, 1.0])
def test_class_loss_is_torchs_weighted_cross_entropy(background_weight: float) -> None:
    outputs, targets, matches = make_batch(3, 2)
    criterion = class_criterion(background_weight=background_weight)
    classes = torch.full((BATCH, QUERIES), CLASSES)
    for image, (target, match) in enumerate(zip(targets, matches[-1], strict=True)):
        classes[image, match.proposals] = target.labels[match.targets]
    weight = torch.ones(CLASSES + 1)
    weight[-1] = background_weight
    expected = 2 * F.cross_entropy(outputs.class_logits.transpose(1, 2), classes, weight)
    loss = criterion(outputs, targets, matches)["loss_class"]
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)


def test_proposals_on_hidden_pixels_get_no_class_loss() -> None:
    valid = torch.zeros(16, 16, dtype=torch.bool)
    valid[:, :8] = True  # cells of the two left columns
    mask = torch.zeros(1, 16, 16, dtype=torch.bool)
    mask[0, :4, :4] = True
    target = Targets(torch.tensor([1]), mask, valid)
    on = torch.full((5, 4, 4), -1.0)
    on[0, :, 2:] = 1  # all hidden, but matched
    on[1, :, 3] = 1  # all hidden
    on[2, 0, 1:3] = 1  # half: kept
    on[3, 0, 1:4] = 1  # a third: left out
    # on[4] is empty: background
    embeds = torch.zeros(1, 5, 2)
    logits = torch.randn(1, 5, 4, requires_grad=True)
    outputs = Outputs((Proposals(embeds, on[None]),), embeds, embeds, logits)
    matches = [[Matches(torch.tensor([0]), torch.tensor([0]))]]
    criterion = class_criterion(min_valid_share=0.5)
    loss = criterion(outputs, [target], matches)["loss_class"]
    kept = torch.tensor([0, 2, 4])
    weight = torch.tensor([1.0, 1.0, 1.0, 0.1])
    expected = 2 * F.cross_entropy(logits[0, kept], torch.tensor([1, 3, 3]), weight)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    loss.backward()
    assert (logits.grad[0, [1, 3]] == 0).all() and (logits.grad[0, kept] != 0).all()

    negative = dataclasses.replace(target, valid=torch.ones_like(valid))
    everyone = F.cross_entropy(logits[0], torch.tensor([1, 3, 3, 3, 3]), weight)
    loss = criterion(outputs, [negative], matches)["loss_class"]
    assert loss.item() == pytest.approx(2 * everyone.item(), rel=1e-6)

    # A mask on padding alone is an empty mask: background; beside padding, only the image counts.
    padding = torch.zeros(16, 16, dtype=torch.bool)
    padding[:, 12:] = True
    padded = dataclasses.replace(target, padding=padding)
    loss = criterion(outputs, [padded], matches)["loss_class"]
    kept = torch.tensor([0, 1, 2, 3, 4])
    expected = F.cross_entropy(logits[0, kept], torch.tensor([1, 3, 3, 3, 3]), weight)
    assert loss.item() == pytest.approx(2 * expected.item(), rel=1e-6)


def test_class_loss_with_nothing_to_judge_is_zero() -> None:
    outputs, _, _ = make_batch(0, 0)
    ones = tuple(Proposals(p.embeds, p.mask_logits.detach().abs() + 1) for p in outputs.proposals)
    outputs = dataclasses.replace(outputs, proposals=ones)
    targets = [make_targets(0, hidden=1.1)] * BATCH
    loss = class_criterion(min_valid_share=0.5)(outputs, targets, make_matches([0, 0]))
    assert loss["loss_class"] == 0
    loss["loss_class"].backward()
    assert (outputs.class_logits.grad == 0).all()
    weightless = class_criterion(background_weight=0.0)
    assert weightless(outputs, targets, make_matches([0, 0]))["loss_class"] == 0


def test_class_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="-0.1"):
        class_criterion(background_weight=-0.1)
    with pytest.raises(ValueError, match="1.5"):
        class_criterion(min_valid_share=1.5)


# --- copies


def test_an_unmatched_copy_gets_no_loss() -> None:
    """Cells of 4 x 4 on an 8 x 8 image; the IoUs can be counted by hand."""
    mask = torch.zeros(1, 8, 8, dtype=torch.bool)
    mask[0, :4] = True
    valid = torch.ones(8, 8, dtype=torch.bool)
    valid[:4, 6:] = False  # hides a quarter of the mask
    target = Targets(torch.tensor([1]), mask & valid, valid)
    cells = torch.full((1, 4, 2, 2), -1.0)
    cells[0, 0, 0] = 1.0  # the mask itself, matched
    cells[0, 1, 0] = 1.0  # the same again: IoU 1
    cells[0, 2, 0, 1] = 1.0  # its right cell: 8 of 24 supervised pixels, IoU 1/3
    cells[0, 3] = 1.0  # everything: IoU 24 / 56
    scores = torch.randn(1, 4, 3)
    outputs = dataclasses.replace(
        make_outputs(), proposals=(Proposals(torch.zeros(1, 4, 2), cells),), class_logits=scores
    )
    matches = [[Matches(torch.tensor([0]), torch.tensor([0]))]]

    def loss(iou: float) -> float:
        criterion = class_criterion(weight=1.0, background_weight=1.0, ignore_iou=iou)
        return criterion(outputs, [target], matches)["loss_class"].item()

    def want(*judged: int) -> float:
        classes = torch.tensor([1, 2, 2, 2])
        return F.cross_entropy(scores[0, judged], classes[list(judged)]).item()

    assert loss(1.01) == pytest.approx(want(0, 1, 2, 3))
    assert loss(0.5) == pytest.approx(want(0, 2, 3))
    assert loss(0.4) == pytest.approx(want(0, 2))
    assert loss(0.33) == pytest.approx(want(0))


# --- enhancement


def matched_rows(targets, matches):
    """(image, proposal, class) of every matched proposal of the final layer."""
    for image, (target, match) in enumerate(zip(targets, matches[-1], strict=True)):
        for proposal, mask in zip(match.proposals.tolist(), match.targets.tolist(), strict=True):
            yield image, proposal, int(target.labels[mask])


def test_the_foreground_loss_by_a_loop_and_blind_to_the_background() -> None:
    outputs, targets, matches = make_batch(3, 2)
    loss = ForegroundClassCriterion(weight=2.0)(outputs, targets, matches)["loss_class"]
    costs = []
    for image, proposal, label in matched_rows(targets, matches):
        scores = outputs.class_logits[image, proposal, :-1].tolist()
        costs.append(math.log(sum(math.exp(x) for x in scores)) - scores[label])
    assert loss.item() == pytest.approx(2 * sum(costs) / 5, rel=1e-5)
    loss.backward()
    grad = outputs.class_logits.grad
    assert (grad[..., -1] == 0).all()
    owners = {(image, proposal) for image, proposal, _ in matched_rows(targets, matches)}
    touched = {tuple(place) for place in grad.abs().sum(-1).nonzero().tolist()}
    assert touched == owners


def test_the_enhancement_by_a_loop() -> None:
    outputs, targets, matches = make_batch(3, 2)
    criterion = EnhancementCriterion(weight=0.5, gamma=2.0, bias=-0.7)
    loss = criterion(outputs, targets, matches)["loss_enhance"]
    total = 0.0
    for image, proposal, label in matched_rows(targets, matches):
        for k, score in enumerate(outputs.class_logits[image, proposal, :-1].tolist()):
            right = 1 / (1 + math.exp(-(score - 0.7) if k == label else score - 0.7))
            total -= (1 - right) ** 2 * math.log(right)
    assert loss.item() == pytest.approx(0.5 * total / 5, rel=1e-5)


def test_the_ranking_criterion_hands_over_what_it_should() -> None:
    outputs, targets, matches = make_batch(3, 2)
    unit = F.normalize(outputs.embeds.detach(), dim=-1).requires_grad_()
    outputs = dataclasses.replace(outputs, embeds=unit)
    criterion = RankingCriterion(weight=3.0, margin=0.1, slope=0.8, pairs=100)
    loss = criterion(outputs, targets, matches)["loss_rank"]
    text, means = outputs.text, []
    for image, proposal, label in matched_rows(targets, matches):
        costs = []
        for j in range(CLASSES):
            for k in range(CLASSES):
                apart = float(text[label] @ text[j] - text[label] @ text[k])
                if apart > 0.1:
                    gap = float(unit[image, proposal].detach() @ (text[j] - text[k]))
                    costs.append(max(0.0, 0.8 * apart - gap))
        means.append(sum(costs) / max(len(costs), 1))
    assert loss.item() == pytest.approx(3 * sum(means) / 5, rel=1e-4)
    with pytest.raises(ValueError, match=r"Outputs\.text"):
        criterion(dataclasses.replace(outputs, text=None), targets, matches)


def test_wrong_settings_of_the_enhancement_are_refused() -> None:
    with pytest.raises(ValueError, match="ENHANCE_GAMMA is -1"):
        EnhancementCriterion(weight=1.0, gamma=-1, bias=0.0)
    with pytest.raises(ValueError, match="RANK_PAIRS is 0"):
        RankingCriterion(weight=1.0, margin=0.0, slope=1.0, pairs=0)


# --- weights of pixels


def weighted(target: Targets, value: float, area: torch.Tensor) -> Targets:
    """The same target, in which the pixels of an area count less."""
    return dataclasses.replace(target, weights=torch.where(area, value, 1.0))


@pytest.mark.parametrize("points", [0, 4000])
def test_pixels_of_weight_0_are_as_if_unlabelled_and_of_1_as_ever(points: int) -> None:
    outputs, targets, matches = make_batch(3, 2)
    area = torch.zeros(SIZE, SIZE, dtype=torch.bool)
    area[8:24] = True
    criterion = mask_criterion(num_points=points)

    def losses(changed: list[Targets]) -> list[float]:
        torch.manual_seed(1)
        return [loss.item() for loss in criterion(outputs, changed, matches).values()]

    plain = losses(targets)
    assert losses([weighted(t, 1.0, area) for t in targets]) == pytest.approx(plain, rel=1e-6)
    nothing = losses([weighted(t, 0.0, area) for t in targets])
    hidden = losses([dataclasses.replace(t, valid=t.valid & ~area) for t in targets])
    # Where points are drawn, both are estimates of the same figure.
    assert nothing == pytest.approx(hidden, rel=1e-6 if not points else 0.15)
    assert nothing != pytest.approx(plain, rel=1e-3)


def test_a_mask_teaches_its_class_as_much_as_its_pixels_weigh() -> None:
    outputs, targets, matches = make_batch(2, 0)
    target, match = targets[0], matches[-1][0]
    weights = torch.where(target.masks[0], 0.25, 1.0)
    changed = [dataclasses.replace(target, weights=weights), targets[1]]
    assert torch.allclose(changed[0].mask_weights, torch.tensor([0.25, 1.0]))
    costs = {}
    for proposal, mask in zip(match.proposals.tolist(), match.targets.tolist(), strict=True):
        scores = outputs.class_logits[0, proposal, :-1]
        costs[mask] = float(scores.logsumexp(0) - scores[target.labels[mask]])
    loss = ForegroundClassCriterion(weight=1.0)(outputs, changed, matches)["loss_class"]
    assert loss.item() == pytest.approx((0.25 * costs[0] + costs[1]) / 2, rel=1e-5)
    # The classes of the other methods: a weighted mean over what counts.
    criterion = class_criterion(background_weight=0.0)
    own = {}
    for proposal, mask in zip(match.proposals.tolist(), match.targets.tolist(), strict=True):
        scores = outputs.class_logits[0, proposal]
        own[mask] = float(scores.logsumexp(0) - scores[target.labels[mask]])
    loss = criterion(outputs, changed, matches)["loss_class"]
    assert loss.item() == pytest.approx(2 * (0.25 * own[0] + own[1]) / 1.25, rel=1e-5)
