"""Every criterion against loops and hand-computed cases, and the contract for all of them."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from detectron2.config import get_cfg
from torch.nn import functional as F

from alignzeg.config import add_alignzeg_config
from alignzeg.losses import functional
from alignzeg.losses.criteria import (
    BackgroundDiversityCriterion,
    ClassCriterion,
    Criteria,
    EnhancementCriterion,
    ForegroundClassCriterion,
    IndicatorCriterion,
    MaskCriterion,
    RankingCriterion,
    SyntheticCriterion,
    merge_losses,
)
from alignzeg.registries import CRITERION_REGISTRY, build_criteria
from alignzeg.structures import Matches, Outputs, Proposals, SyntheticOutputs, Targets

ALL = [
    "MaskCriterion",
    "ClassCriterion",
    "BackgroundDiversityCriterion",
    "SyntheticCriterion",
    "IndicatorCriterion",
]
LAYERS, BATCH, QUERIES, CLASSES, SIZE = 3, 2, 6, 4, 32
GRID = SIZE // 4


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def make_outputs(synthetic: int = 5, background: int = 3, dtype=torch.float32) -> Outputs:
    """Outputs whose tensors all take gradients."""

    def leaf(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=dtype, requires_grad=True)

    proposals = tuple(
        Proposals(leaf(BATCH, QUERIES, 2), leaf(BATCH, QUERIES, GRID, GRID)) for _ in range(LAYERS)
    )
    embeds = leaf(BATCH, QUERIES, 2)
    virtual = 2
    return Outputs(
        proposals,
        embeds,
        embeds,
        leaf(BATCH, QUERIES, CLASSES + 1),
        unseen_logits=leaf(BATCH, QUERIES),
        background=F.normalize(leaf(background, 2), dim=-1),
        synthetic=SyntheticOutputs(
            leaf(synthetic, CLASSES + 1 + virtual),
            torch.randint(CLASSES + 1, CLASSES + 1 + virtual, (synthetic,)),
            leaf(synthetic),
            imitated=(leaf(synthetic, 3), torch.randn(synthetic, 3, dtype=dtype)),
        ),
        text=F.normalize(torch.randn(CLASSES, 2, dtype=dtype), dim=-1),
    )


def make_targets(count: int, hidden: float = 0.2) -> Targets:
    ids = torch.randint(-1, count, (SIZE // 2, SIZE // 2))
    ids = ids.repeat_interleave(2, 0).repeat_interleave(2, 1)
    valid = torch.rand(SIZE, SIZE) >= hidden
    if hidden:
        valid[:8, :8] = False
    masks = (ids == torch.arange(count)[:, None, None]) & valid
    return Targets(torch.randint(0, CLASSES, (count,)), masks, valid, name="scene.png")


def make_matches(counts: list[int]) -> list[list[Matches]]:
    return [
        [
            Matches(torch.randperm(QUERIES)[:n].sort().values, torch.randperm(n))
            for n in (min(count, QUERIES) for count in counts)
        ]
        for _ in range(LAYERS)
    ]


def make_batch(*counts: int) -> tuple[Outputs, list[Targets], list[list[Matches]]]:
    return make_outputs(), [make_targets(n) for n in counts], make_matches(list(counts))


def mask_criterion(**changes) -> MaskCriterion:
    values = {
        "mask_weight": 5.0,
        "dice_weight": 2.0,
        "num_points": 0,
        "oversample": 3.0,
        "importance": 0.75,
    }
    return MaskCriterion(**(values | changes))


def class_criterion(**changes) -> ClassCriterion:
    values = {
        "weight": 2.0,
        "background_weight": 0.1,
        "min_valid_share": 0.0,
        "copy_iou": 2.0,
    }
    return ClassCriterion(**(values | changes))


def all_criteria(points: int = 0) -> Criteria:
    cfg = get_cfg()
    add_alignzeg_config(cfg)
    cfg.ALIGNZEG.CRITERIA = ALL
    cfg.ALIGNZEG.LOSS.NUM_POINTS = points
    return Criteria(build_criteria(cfg))


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
    outputs = dataclasses.replace(outputs, synthetic=None)
    losses = all_criteria(points)(outputs, targets, matches)
    assert all(loss == 0 for name, loss in losses.items() if "mask" in name or "dice" in name)
    assert losses["loss_synthetic"] == 0 and losses["loss_indicator"] == 0
    sum(losses.values()).backward()
    leaves = [layer.mask_logits for layer in outputs.proposals]
    for leaf in [*leaves, outputs.class_logits, outputs.unseen_logits]:
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
        unseen_logits=outputs.unseen_logits.bfloat16(),
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


# --- masks


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
    seen = torch.cat([outputs.unseen_logits[i, m.proposals] for i, m in enumerate(matches[-1])])
    unseen = outputs.synthetic.unseen_logits
    expected = F.binary_cross_entropy_with_logits(
        seen, torch.zeros_like(seen)
    ) + F.binary_cross_entropy_with_logits(unseen, torch.ones_like(unseen))
    assert loss.item() == pytest.approx(2.0 * 0.5 * expected.item(), rel=1e-5)
    loss.backward()
    for image, match in enumerate(matches[-1]):
        touched = outputs.unseen_logits.grad[image].nonzero()[:, 0]
        assert touched.tolist() == match.proposals.tolist()


def test_indicator_with_one_group_or_none() -> None:
    outputs, targets, matches = make_batch(3, 2)
    criterion = IndicatorCriterion(weight=1.0)
    seen = torch.cat([outputs.unseen_logits[i, m.proposals] for i, m in enumerate(matches[-1])])
    alone = dataclasses.replace(outputs, synthetic=None)
    loss = criterion(alone, targets, matches)["loss_indicator"]
    assert loss.item() == pytest.approx(0.5 * F.softplus(seen).mean().item(), rel=1e-5)
    nothing = criterion(alone, targets, make_matches([0, 0]))["loss_indicator"]
    nothing.backward()
    assert nothing == 0 and (outputs.unseen_logits.grad == 0).all()
    with pytest.raises(ValueError, match="UnseenIndicator"):
        criterion(dataclasses.replace(outputs, unseen_logits=None), targets, matches)


# --- copies


def test_an_unmatched_copy_gets_no_loss() -> None:
    """Cells of 4 x 4 on an 8 x 8 picture; the IoUs can be counted by hand."""
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
        criterion = class_criterion(weight=1.0, background_weight=1.0, copy_iou=iou)
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
