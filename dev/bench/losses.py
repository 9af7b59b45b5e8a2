"""Rows of matching and of the mask losses, for the outputs of six decoder layers."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from alignzeg.losses.criteria import MaskCriterion
from alignzeg.losses.matcher import HungarianMatcher
from alignzeg.structures import Matches, Outputs, Proposals, Targets
from bench.measure import Result, Row, Sides, memory, peak_mib, timed

LAYERS, BATCH, QUERIES, SIZE, CLASSES = 6, 2, 100, 512, 156
WEIGHTS = {"class_cost": 2.0, "mask_cost": 5.0, "dice_cost": 5.0}
POINTS = 12544
MATCHING_LIMIT = 10.0  # MiB


def scenes(masks: int, size: int) -> list[Targets]:
    """BATCH ground truths of `masks` smooth regions that cover the image, in cells of 4 x 4."""
    rng = torch.Generator().manual_seed(1)
    found = []
    for _ in range(BATCH):
        coarse = torch.randn(1, masks, max(2, size // 64), max(2, size // 64), generator=rng)
        fields = F.interpolate(coarse, (size // 4, size // 4), mode="bicubic")[0]
        # Every mask has a cell of its own.
        fields.flatten(1)[range(masks), range(masks)] = 99.0
        regions = fields.argmax(0).repeat_interleave(4, 0).repeat_interleave(4, 1)
        labels = torch.randperm(CLASSES, generator=rng)[:masks]
        valid = torch.ones(size, size, dtype=torch.bool)
        found.append(Targets(labels, regions[None] == torch.arange(masks)[:, None, None], valid))
    return found


def outputs(size: int, queries: int = QUERIES) -> Outputs:
    """Random proposals of LAYERS layers with smooth masks, and class scores."""
    rng = torch.Generator().manual_seed(2)
    layers = []
    for _ in range(LAYERS):
        coarse = torch.randn(BATCH, queries, max(2, size // 32), max(2, size // 32), generator=rng)
        logits = F.interpolate(6 * coarse, (size // 4, size // 4), mode="bicubic").contiguous()
        layers.append(Proposals(torch.zeros(BATCH, queries, 1), logits))
    scores = torch.randn(BATCH, queries, CLASSES + 1, generator=rng)
    empty = torch.zeros(BATCH, queries, 1)
    return Outputs(tuple(layers), empty, empty, scores)


def plain_assignments(
    made: Outputs, targets: list[Targets], layers: tuple[int, ...]
) -> list[list[Matches]]:
    """The same assignment by the formula: cross-entropy and dice of every pair, one by one."""
    found = []
    for layer in [made.proposals[index] for index in layers]:
        of_layer = []
        for image, target in enumerate(targets):
            logits = layer.mask_logits[image].flatten(1).double()
            truth = F.avg_pool2d(target.masks.double(), 4).flatten(1)
            probs = logits.sigmoid()
            bce = torch.stack(
                [
                    F.binary_cross_entropy_with_logits(
                        logits, t.expand_as(logits), reduction="none"
                    ).mean(1)
                    for t in truth
                ],
                dim=1,
            )
            dice = torch.stack(
                [1 - (2 * (probs * t).sum(1) + 1) / (probs.sum(1) + t.sum() + 1) for t in truth],
                dim=1,
            )
            named = -made.class_logits[image].double().softmax(-1)[:, target.labels]
            parts = zip(WEIGHTS.values(), (named, bce, dice), strict=True)
            rows, columns = linear_sum_assignment(sum(w * cost for w, cost in parts).numpy())
            of_layer.append(Matches(torch.as_tensor(rows), torch.as_tensor(columns)))
        found.append(of_layer)
    return found


def matching(peer_name: str, masks: int, quick: bool) -> Sides:
    """Our matcher beside the matcher of transformers' MaskFormer or Mask2Former."""
    size = 64 if quick else SIZE
    made, targets = outputs(size), scenes(masks, size)
    ours = HungarianMatcher(**WEIGHTS)
    theirs = _their_matcher(peer_name)
    labels = [target.labels for target in targets]

    # Their data come with masks as floats of full size.
    full = [target.masks.float() for target in targets]

    def peer() -> Any:
        return [
            theirs(layer.mask_logits, made.class_logits, full, labels) for layer in made.proposals
        ]

    return {"ours": lambda: (made, targets, ours(made, targets)), "peer": peer}


def _their_matcher(name: str) -> torch.nn.Module:
    costs = dict(zip(("cost_class", "cost_mask", "cost_dice"), WEIGHTS.values(), strict=True))
    if name == "maskformer":
        from transformers.models.maskformer.modeling_maskformer import MaskFormerHungarianMatcher

        return MaskFormerHungarianMatcher(**costs)
    from transformers.models.mask2former.modeling_mask2former import Mask2FormerHungarianMatcher

    return Mask2FormerHungarianMatcher(**costs, num_points=POINTS)


def same_assignment(ours: Any, peer: Any) -> str:
    """Ours is the assignment of the plain formula; how much of it the peer shares.

    The peers score otherwise: MaskFormer by the focal loss, Mask2Former at random points.
    """
    made, targets, found = ours
    compared = (0, LAYERS - 1)  # the formula is slow
    expected = plain_assignments(made, targets, compared)
    shared = total = 0
    for layer, plain in zip(compared, expected, strict=True):
        for image, (match, right) in enumerate(zip(found[layer], plain, strict=True)):
            pairs = _pairs(match.proposals, match.targets)
            if pairs != _pairs(right.proposals, right.targets):
                raise AssertionError(f"layer {layer}, image {image}: another assignment")
            shared += len(pairs & _pairs(*peer[layer][image]))
            total += len(pairs)
    return f"as the plain formula; {100 * shared / total:.0f} % of the pairs as the peer"


def _pairs(rows: Tensor, columns: Tensor) -> set[tuple[int, int]]:
    return set(zip(rows.tolist(), columns.tolist(), strict=True))


def matching_memory(name: str, row: Row, quick: bool) -> Result:
    """The limit over our peak; the peer's stands beside it."""
    del row
    ours, peer = (peak_mib(name, side, quick) for side in ("ours", "peer"))
    return Result(ours, peer, MATCHING_LIMIT / ours, f"ratio: {MATCHING_LIMIT:.0f} MiB over ours")


def criterion(peer_name: str, masks: int, quick: bool) -> Sides:
    """Mask losses of all layers and their gradients, from one fixed assignment.

    Peers: "maskformer" and "mask2former", the losses of transformers; "plain", the formula of our
    loss in PyTorch's own functions.
    """
    size = 64 if quick else SIZE
    made, targets = outputs(size), scenes(masks, size)
    logits = [layer.mask_logits.requires_grad_() for layer in made.proposals]
    pick = [Matches(torch.arange(masks), torch.arange(masks)) for _ in targets]
    matches = [pick] * LAYERS
    ours = MaskCriterion(
        mask_weight=1.0,
        dice_weight=1.0,
        num_points=POINTS if peer_name == "mask2former" else 0,
        oversample=3.0,
        importance=0.75,
    )
    makers = {"maskformer": _maskformer_loss, "mask2former": _mask2former_loss, "plain": _plain}
    theirs = makers[peer_name]
    full = [target.masks.float() for target in targets]

    def gradients(losses: dict[str, Tensor]) -> tuple[float, list[Tensor]]:
        total = sum(losses.values())
        assert isinstance(total, Tensor)
        return float(total.detach()), list(torch.autograd.grad(total, logits))

    return {
        "ours": lambda: gradients(ours(made, targets, matches)),
        "peer": lambda: gradients(theirs(made, full, matches)),
    }


def _layerwise(loss: Any, made: Outputs, full: list[Tensor], matches: Any) -> dict[str, Tensor]:
    count = float(sum(len(masks) for masks in full))
    losses = {}
    for layer, of_layer in zip(made.proposals, matches, strict=True):
        indices = [(match.proposals, match.targets) for match in of_layer]
        found = loss.loss_masks(layer.mask_logits, full, indices, count)
        losses |= {f"{key}_{len(losses)}": value for key, value in found.items()}
    return losses


def _maskformer_loss(made: Outputs, full: list[Tensor], matches: Any) -> dict[str, Tensor]:
    from transformers.models.maskformer.modeling_maskformer import MaskFormerLoss

    loss = MaskFormerLoss(CLASSES, _their_matcher("maskformer"), {}, 0.1)
    return _layerwise(loss, made, full, matches)


def _mask2former_loss(made: Outputs, full: list[Tensor], matches: Any) -> dict[str, Tensor]:
    from transformers import Mask2FormerConfig
    from transformers.models.mask2former.modeling_mask2former import Mask2FormerLoss

    config = Mask2FormerConfig(num_labels=CLASSES, train_num_points=POINTS)
    return _layerwise(Mask2FormerLoss(config, {}), made, full, matches)


def _plain(made: Outputs, full: list[Tensor], matches: Any) -> dict[str, Tensor]:
    count = sum(len(masks) for masks in full)
    losses = {}
    for index, (layer, of_layer) in enumerate(zip(made.proposals, matches, strict=True)):
        for image, (masks, match) in enumerate(zip(full, of_layer, strict=True)):
            x = layer.mask_logits[image, match.proposals].flatten(1)
            t = F.avg_pool2d(masks, 4).flatten(1)[match.targets]
            bce = F.binary_cross_entropy_with_logits(x, t, reduction="none").mean(1)
            p = x.sigmoid()
            dice = 1 - (2 * (p * t).sum(1) + 1) / (p.sum(1) + t.sum(1) + 1)
            losses[f"{index}_{image}"] = (bce.sum() + dice.sum()) / count
    return losses


def equal_gradients(ours: Any, peer: Any) -> str:
    """Loss and gradients are those of the plain formula up to rounding."""
    worst = max(float((a - b).abs().max()) for a, b in zip(ours[1], peer[1], strict=True))
    scale = max(float(b.abs().max()) for b in peer[1])
    if abs(ours[0] - peer[0]) > 1e-5 * abs(peer[0]) or worst > 1e-5 * scale:
        raise AssertionError(f"losses {ours[0]} and {peer[0]}, gradients differ by {worst / scale}")
    return f"gradients equal to {worst / scale:.0e} of the largest"


def _matching_row(goal: float, peer: str, masks: int) -> Row:
    title = {"maskformer": "MaskFormer", "mask2former": "Mask2Former, 12,544 points"}[peer]
    what = f"matching, 6 layers, 2 x 512², {masks} masks, beside transformers' {title}"
    build = partial(matching, peer, masks)
    return Row(goal, what, timed, build, seconds=4, allocator=True, check=same_assignment)


def _criterion_row(goal: float, peer: str, masks: int, what: str, **options: Any) -> Row:
    what = f"mask losses and gradients, 6 layers, 2 x 512², {masks} masks, beside {what}"
    build = partial(criterion, peer, masks)
    return Row(goal, what, timed, build, seconds=8, allocator=True, **options)


MASKFORMER = "transformers' MaskFormer (full size)"
ROWS = {
    **{f"matching/maskformer_K{k}": _matching_row(1.5, "maskformer", k) for k in (5, 20, 60)},
    **{f"matching/mask2former_K{k}": _matching_row(2.0, "mask2former", k) for k in (5, 20, 60)},
    "matching/memory_K60": Row(
        1.0,
        "peak memory of matching, 60 masks",
        matching_memory,
        partial(matching, "maskformer", 60),
        unit="MiB",
    ),
    "criterion/K8": _criterion_row(1.3, "maskformer", 8, MASKFORMER),
    "criterion/K20": _criterion_row(1.3, "maskformer", 20, MASKFORMER),
    "criterion/points_K20": _criterion_row(
        0, "mask2former", 20, "transformers' Mask2Former, 12,544 points each"
    ),
    "criterion/same_formula_K20": _criterion_row(
        1.0, "plain", 20, "the same formula in PyTorch's functions", check=equal_gradients
    ),
    "criterion/memory_K8": Row(
        12,
        "peak memory of mask losses and gradients, 8 masks",
        memory,
        partial(criterion, "maskformer", 8),
        unit="MiB",
    ),
    "criterion/memory_K20": Row(
        12,
        "peak memory of mask losses and gradients, 20 masks",
        memory,
        partial(criterion, "maskformer", 20),
        unit="MiB",
    ),
}
