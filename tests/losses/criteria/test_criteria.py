"""The contract of all criteria; background, synthetic features and indicator by hand."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from criteria_cases import (
    ALL,
    Criteria,
    all_criteria,
    class_criterion,
    make_batch,
    make_outputs,
)
from detectron2.config import get_cfg
from torch.nn import functional as F

from alignzeg.config import add_alignzeg_config
from alignzeg.losses.criteria import (
    BackgroundDiversityCriterion,
    IndicatorCriterion,
    SyntheticCriterion,
    merge_losses,
)
from alignzeg.registries import CRITERION_REGISTRY
from alignzeg.structures import Proposals

# --- the contract


@pytest.mark.parametrize("name", sorted(key for key, _ in CRITERION_REGISTRY))
@pytest.mark.parametrize("counts", [(3, 2), (0, 2), (0, 0), (9, 1)])
def test_contract(name: str, counts: tuple[int, int]) -> None:
    cfg = get_cfg()
    add_alignzeg_config(cfg)
    cfg.ALIGNZEG.LOSS.NUM_POINTS = 64
    criterion = CRITERION_REGISTRY.get(name)(cfg)
    losses = criterion(*make_batch(*counts))
    assert losses
    for key, loss in losses.items():
        assert key.startswith("loss_")
        assert loss.shape == () and loss.dtype == torch.float32
        assert loss.isfinite() and loss >= 0
        loss.backward(retain_graph=True)


def test_the_five_criteria_are_registered_with_their_loss_names() -> None:
    assert set(ALL) <= {key for key, _ in CRITERION_REGISTRY}
    losses = all_criteria()(*make_batch(3, 2))
    masks = {f"loss_{kind}{suffix}" for kind in ("mask", "dice") for suffix in ("", "_0", "_1")}
    others = {f"loss_{kind}" for kind in ("class", "diversity", "synthetic", "indicator")}
    assert set(losses) == masks | others


@pytest.mark.parametrize("points", [0, 50])
def test_an_empty_batch_gives_zero_mask_losses_and_a_gradient_everywhere(points: int) -> None:
    outputs, targets, matches = make_batch(0, 0)
    logits = outputs.unseen_examples[0]
    nothing = (logits[:0], outputs.unseen_examples[1][:0])
    outputs = dataclasses.replace(outputs, synthetic=None, unseen_examples=nothing)
    losses = all_criteria(points)(outputs, targets, matches)
    assert all(loss == 0 for name, loss in losses.items() if "mask" in name or "dice" in name)
    assert losses["loss_synthetic"] == 0 and losses["loss_indicator"] == 0
    sum(losses.values()).backward()
    leaves = [layer.mask_logits for layer in outputs.proposals]
    for leaf in [*leaves, outputs.class_logits, logits]:
        assert leaf.grad is not None and leaf.grad.isfinite().all()


def test_autocast_does_not_lower_the_precision() -> None:
    batch = make_batch(3, 2)
    expected = all_criteria()(*batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = all_criteria()(*batch)
    assert all(torch.equal(losses[name], expected[name]) for name in expected)


def test_half_precision_outputs_give_float32_losses() -> None:
    outputs, targets, matches = make_batch(3, 2)
    half = dataclasses.replace(
        outputs,
        proposals=tuple(Proposals(p.embeds, p.mask_logits.bfloat16()) for p in outputs.proposals),
        class_logits=outputs.class_logits.bfloat16(),
        unseen_examples=(outputs.unseen_examples[0].bfloat16(), outputs.unseen_examples[1]),
        background=outputs.background.bfloat16(),
    )
    for points in (0, 40):
        losses = all_criteria(points)(half, targets, matches)
        assert all(loss.dtype == torch.float32 for loss in losses.values())
        sum(losses.values()).backward(retain_graph=True)


def test_merging_refuses_duplicates_unknown_names_and_tensors() -> None:
    one = torch.tensor(1.0)
    assert merge_losses([{"loss_a": one}, {"loss_b": one}]) == {"loss_a": one, "loss_b": one}
    with pytest.raises(ValueError, match="two criteria.*'loss_a'"):
        merge_losses([{"loss_a": one}, {"loss_a": one}])
    with pytest.raises(ValueError, match="unknown loss 'accuracy'"):
        merge_losses([{"accuracy": one}])
    with pytest.raises(ValueError, match="loss_a must be a scalar.*2"):
        merge_losses([{"loss_a": torch.ones(2)}])
    twice = Criteria([class_criterion(), class_criterion()])
    with pytest.raises(ValueError, match="'loss_class'"):
        twice(*make_batch(2, 2))


# --- background, synthetic features, indicator


def test_diversity_by_hand() -> None:
    outputs, targets, matches = make_batch(1, 1)
    prototypes = torch.tensor([[1.0, 0.0], [0.8, 0.6]])
    criterion = BackgroundDiversityCriterion(weight=0.5, margin=0.2)
    outputs = dataclasses.replace(outputs, background=prototypes)
    loss = criterion(outputs, targets, matches)["loss_diversity"]
    assert loss.item() == pytest.approx(0.5 * 0.6)
    single = dataclasses.replace(outputs, background=prototypes[:1])
    assert criterion(single, targets, matches)["loss_diversity"] == 0
    missing = dataclasses.replace(outputs, background=None)
    with pytest.raises(ValueError, match="ALIGNZEG.CRITERIA"):
        criterion(missing, targets, matches)


def test_synthetic_loss_is_cross_entropy_and_zero_without_samples() -> None:
    batch = make_batch(2, 2)
    synthetic = batch[0].synthetic
    loss = SyntheticCriterion(weight=1.5)(*batch)["loss_synthetic"]
    expected = 1.5 * F.cross_entropy(synthetic.logits, synthetic.targets)
    assert loss.item() == pytest.approx(expected.item())
    empty = make_outputs(synthetic=0)
    loss = SyntheticCriterion(weight=1.5)(empty, *batch[1:])["loss_synthetic"]
    loss.backward()
    assert loss == 0 and (empty.class_logits.grad == 0).all()


def test_indicator_groups_weigh_half_each_whatever_their_size() -> None:
    outputs, targets, matches = make_batch(3, 2)
    loss = IndicatorCriterion(weight=2.0)(outputs, targets, matches)["loss_indicator"]
    logits, unseen = outputs.unseen_examples
    costs = F.binary_cross_entropy_with_logits(logits, unseen.to(logits), reduction="none")
    assert 0 < unseen.sum() < (~unseen).sum()
    expected = 2.0 * 0.5 * (costs[unseen].mean() + costs[~unseen].mean())
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_indicator_with_one_group_or_none() -> None:
    outputs, targets, matches = make_batch(3, 2)
    criterion = IndicatorCriterion(weight=1.0)
    logits, unseen = outputs.unseen_examples

    def loss(chosen: torch.Tensor) -> torch.Tensor:
        examples = (logits[chosen], unseen[chosen])
        changed = dataclasses.replace(outputs, unseen_examples=examples)
        return criterion(changed, targets, matches)["loss_indicator"]

    seen = F.softplus(logits[~unseen]).mean().item()
    assert loss(~unseen).item() == pytest.approx(0.5 * seen, rel=1e-5)
    nothing = loss(torch.zeros_like(unseen))
    nothing.backward()
    assert nothing == 0 and (logits.grad == 0).all()
    with pytest.raises(ValueError, match="UnseenIndicator"):
        criterion(dataclasses.replace(outputs, unseen_examples=None), targets, matches)
