"""The assignment against brute force, and its costs against the plain broadcast formula."""

from __future__ import annotations

import dataclasses
import itertools
import math

import pytest
import torch
from detectron2.config import get_cfg
from torch.nn import functional as F

from alignzeg.config import add_alignzeg_config
from alignzeg.losses.matcher import HungarianMatcher
from alignzeg.structures import Outputs, Proposals, Targets


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def make_targets(count: int, size: int = 16, classes: int = 3, hidden: float = 0.3) -> Targets:
    """Disjoint random masks of blocks, some pixels hidden."""
    ids = torch.randint(-1, count, (size // 2, size // 2))
    ids = ids.repeat_interleave(2, 0).repeat_interleave(2, 1)
    masks = ids == torch.arange(count)[:, None, None]
    valid = torch.rand(size, size) >= hidden
    valid[:4, :4] = False
    labels = torch.randint(0, classes, (count,))
    return Targets(labels, masks & valid, valid, name="scene.png")


def make_outputs(
    batch: int, queries: int, layers: int = 1, size: int = 16, classes: int = 3
) -> Outputs:
    proposals = tuple(
        Proposals(torch.zeros(batch, queries, 2), torch.randn(batch, queries, size // 4, size // 4))
        for _ in range(layers)
    )
    embeds = torch.zeros(batch, queries, 2)
    return Outputs(proposals, embeds, embeds, torch.randn(batch, queries, classes + 1))


def naive_costs(logits, scores, target, weights) -> torch.Tensor:
    """(Q, G) total cost in float64 through tensors of shape (Q, G, h, w)."""
    class_cost, mask_cost, dice_cost = weights
    size = logits.shape[-1]
    blocks = target.valid.double().view(size, 4, size, 4)
    known = blocks.sum((1, 3))
    inside = (target.masks & target.valid).double().view(-1, size, 4, size, 4).sum((2, 4))
    soft = inside / known.clamp(min=1)
    share = known / 16
    x = logits.double()[:, None].expand(-1, len(soft), -1, -1)
    t = soft[None].expand_as(x)
    bce = F.binary_cross_entropy_with_logits(x, t, reduction="none")
    bce = (bce * share).sum((2, 3)) / share.sum()
    prob = x.sigmoid()
    dice = 1 - (2 * (prob * t * share).sum((2, 3)) + 1) / (((prob + t) * share).sum((2, 3)) + 1)
    named = -scores.double().softmax(-1)[:, target.labels]
    return class_cost * named + mask_cost * bce + dice_cost * dice


def best_by_brute_force(cost: torch.Tensor) -> float:
    queries, masks = cost.shape
    if queries >= masks:
        return min(
            sum(cost[q, g].item() for g, q in enumerate(chosen))
            for chosen in itertools.permutations(range(queries), masks)
        )
    return best_by_brute_force(cost.T)


WEIGHTS = [(0.0, 5.0, 5.0), (2.0, 5.0, 5.0), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)]


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize(("queries", "masks"), [(5, 3), (2, 4), (3, 3)])
def test_matches_are_the_cheapest_of_all(weights, queries: int, masks: int) -> None:
    matcher = HungarianMatcher(class_cost=weights[0], mask_cost=weights[1], dice_cost=weights[2])
    outputs, targets = make_outputs(2, queries, layers=3), [make_targets(masks) for _ in range(2)]
    matches = matcher(outputs, targets)
    assert [len(layer) for layer in matches] == [2, 2, 2]
    for layer, image in itertools.product(range(3), range(2)):
        match = matches[layer][image]
        cost = naive_costs(
            outputs.proposals[layer].mask_logits[image],
            outputs.class_logits[image],
            targets[image],
            weights,
        )
        assert len(match.proposals) == len(match.targets) == min(queries, masks)
        assert len(set(match.proposals.tolist())) == len(set(match.targets.tolist()))
        assert len(set(match.proposals.tolist())) == min(queries, masks)
        total = cost[match.proposals, match.targets].sum().item()
        assert total == pytest.approx(best_by_brute_force(cost), abs=1e-5)


def test_costs_equal_the_broadcast_formula() -> None:
    matcher = HungarianMatcher(class_cost=0.7, mask_cost=2.0, dice_cost=3.0)
    outputs, target = make_outputs(1, 20, layers=2, size=64), make_targets(7, size=64)
    costs = matcher._costs(outputs, 0, target)
    scale = torch.tensor([0.7, 2.0, 3.0])[:, None, None]
    for layer in range(2):
        expected = naive_costs(
            outputs.proposals[layer].mask_logits[0],
            outputs.class_logits[0],
            target,
            (0.7, 2.0, 3.0),
        )
        assert ((costs[layer] * scale).sum(0).double() - expected).abs().max() < 1e-5


def test_right_masks_find_their_proposals() -> None:
    target = make_targets(4, hidden=0.0)
    order = torch.tensor([2, 0, 3, 1])
    soft = target.masks[order].float().view(4, 4, 4, 4, 4).mean((2, 4))
    logits = (soft * 20 - 10)[None]
    outputs = make_outputs(1, 4)
    outputs = Outputs(
        (Proposals(torch.zeros(1, 4, 2), logits),),
        outputs.embeds,
        outputs.region_embeds,
        outputs.class_logits,
    )
    match = HungarianMatcher(class_cost=0, mask_cost=1, dice_cost=1)(outputs, [target])[0][0]
    assert match.proposals.tolist() == [0, 1, 2, 3]
    assert match.targets.tolist() == order.tolist()


def test_no_ground_truth_gives_empty_matches() -> None:
    matcher = HungarianMatcher(class_cost=1, mask_cost=1, dice_cost=1)
    matches = matcher(make_outputs(2, 3, layers=2), [make_targets(0), make_targets(2)])
    assert [len(layer[0].proposals) for layer in matches] == [0, 0]
    assert matches[0][0].targets.dtype == torch.int64
    assert [len(layer[1].proposals) for layer in matches] == [2, 2]


def test_half_precision_logits_match_with_and_without_ground_truth() -> None:
    matcher = HungarianMatcher(class_cost=1, mask_cost=1, dice_cost=1)
    outputs, targets = make_outputs(2, 4), [make_targets(0), make_targets(2)]
    logits = outputs.proposals[0].mask_logits.bfloat16()
    outputs = dataclasses.replace(
        outputs,
        proposals=(Proposals(outputs.embeds, logits),),
        class_logits=outputs.class_logits.bfloat16(),
    )
    assert [len(match.proposals) for match in matcher(outputs, targets)[0]] == [0, 2]


def test_nothing_valid_still_matches() -> None:
    target = make_targets(2, hidden=1.1)
    match = HungarianMatcher(class_cost=0, mask_cost=1, dice_cost=1)(make_outputs(1, 3), [target])
    assert len(match[0][0].proposals) == 2


def test_hidden_pixels_have_no_influence() -> None:
    matcher = HungarianMatcher(class_cost=0, mask_cost=5, dice_cost=5)
    outputs, target = make_outputs(1, 6), make_targets(3)
    before = matcher._costs(outputs, 0, target)
    outputs.proposals[0].mask_logits[:, :, 0, 0] = math.nan  # make_targets hides this cell
    target.masks[:, ~target.valid] = True
    assert torch.equal(before, matcher._costs(outputs, 0, target))


def test_predictions_on_hidden_pixels_cost_where_these_are_negatives() -> None:
    mask = torch.zeros(1, 8, 8, dtype=torch.bool)
    mask[0, :, :4] = True
    target = Targets(torch.tensor([0]), mask, mask[0].clone())
    left = torch.tensor([[9.0, -9.0], [9.0, -9.0]])
    everywhere = torch.full((2, 2), 10.0)
    logits = torch.stack([everywhere, left])[None]
    embeds = torch.zeros(1, 2, 2)
    outputs = Outputs((Proposals(embeds, logits),), embeds, embeds, torch.zeros(1, 2, 2))
    costs = {"class_cost": 0.0, "mask_cost": 1.0, "dice_cost": 1.0}
    blind = HungarianMatcher(**costs)(outputs, [target])[0][0]
    negative = dataclasses.replace(target, valid=torch.ones_like(target.valid))
    strict = HungarianMatcher(**costs)(outputs, [negative])[0][0]
    assert blind.proposals.tolist() == [0]
    assert strict.proposals.tolist() == [1]


@pytest.mark.parametrize("kind", ["class", "mask"])
def test_a_cost_that_is_not_finite_names_layer_image_and_cost(kind: str) -> None:
    outputs = make_outputs(2, 3, layers=3)
    if kind == "class":
        outputs.class_logits[1, 0, 0] = math.nan
        layer = 0
    else:
        outputs.proposals[1].mask_logits[1, 2, 3, 3] = math.nan
        layer = 1
    targets = [make_targets(2), make_targets(2, hidden=0.0)]
    matcher = HungarianMatcher(class_cost=1, mask_cost=1, dice_cost=1)
    with pytest.raises(FloatingPointError, match=f"the {kind} cost of layer {layer} .*scene.png"):
        matcher(outputs, targets)


def test_autocast_changes_nothing() -> None:
    matcher = HungarianMatcher(class_cost=1, mask_cost=1, dice_cost=1)
    outputs, target = make_outputs(1, 8, size=32), make_targets(5, size=32)
    seen = []
    assign = matcher._assign
    matcher._assign = lambda costs, *rest: (seen.append(costs), assign(costs, *rest))[1]
    matcher(outputs, [target])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        matcher(outputs, [target])
    assert seen[1].dtype == torch.float32
    assert torch.equal(*seen)


def test_built_from_config_and_refuses_senseless_weights() -> None:
    cfg = get_cfg()
    add_alignzeg_config(cfg)
    cfg.ALIGNZEG.MATCHER.MASK_COST = 3.0
    matcher = HungarianMatcher(cfg)
    assert (matcher.class_cost, matcher.mask_cost, matcher.dice_cost) == (0.0, 3.0, 5.0)
    with pytest.raises(ValueError, match="MASK_COST': -1"):
        HungarianMatcher(class_cost=0, mask_cost=-1, dice_cost=1)
    with pytest.raises(ValueError, match="one of them positive"):
        HungarianMatcher(class_cost=0, mask_cost=0, dice_cost=0)
