"""The losses of matched masks."""

from __future__ import annotations

import torch
from detectron2.config import configurable
from torch import Tensor
from typing_extensions import override

from alignzeg.losses import functional
from alignzeg.losses.criteria.base import Criterion
from alignzeg.peers import world_size
from alignzeg.registries import CRITERION_REGISTRY
from alignzeg.structures import Matches, Outputs, Targets

# Masks whose points are drawn at once, on a CPU and elsewhere; the candidates' coordinates are
# what takes memory.
_ROWS_AT_ONCE, _ROWS_ON_DEVICE = 32, 512


def count_masks(targets: list[Targets]) -> Tensor:
    """Ground-truth masks per process, at least 1; the mean over processes, which wait for it."""
    masks = float(sum(len(target.labels) for target in targets))
    count = torch.full((), masks, device=targets[0].labels.device)
    if world_size() > 1:
        torch.distributed.all_reduce(count)
    return (count / world_size()).clamp(min=1)


@CRITERION_REGISTRY.register()
class MaskCriterion(Criterion):
    """Binary cross-entropy and dice of matched masks, after every layer.

    Names: loss_mask, loss_dice for the final layer, with _0, _1, ... for the earlier ones. Each is
    a sum over matched masks, divided by the number of ground-truth masks per process (at least 1).

    Args:
        mask_weight: of the cross-entropy.
        dice_weight: of the dice loss.
        num_points: points per mask, drawn from supervised pixels; 0: the whole stride-4 grid.
        oversample: candidates per point, >= 1.
        importance: share in [0, 1] of the points that are the least certain candidates.

    Raises:
        ValueError: if a sampling value is out of its range.

    Source: MaskFormer (arXiv 2107.06278), points as Mask2Former (arXiv 2112.01527).
    """

    KEYS = {
        "mask_weight": "MASK_WEIGHT",
        "dice_weight": "DICE_WEIGHT",
        "num_points": "NUM_POINTS",
        "oversample": "OVERSAMPLE_RATIO",
        "importance": "IMPORTANCE_RATIO",
    }

    @configurable
    def __init__(
        self,
        *,
        mask_weight: float,
        dice_weight: float,
        num_points: int,
        oversample: float,
        importance: float,
    ) -> None:
        super().__init__()
        if num_points < 0 or oversample < 1 or not 0 <= importance <= 1:
            raise ValueError(
                "ALIGNZEG.LOSS needs NUM_POINTS >= 0, OVERSAMPLE_RATIO >= 1 and IMPORTANCE_RATIO "
                f"in [0, 1]; got {num_points}, {oversample}, {importance}"
            )
        self.mask_weight = mask_weight
        self.dice_weight = dice_weight
        self.num_points = num_points
        self.oversample = oversample
        self.importance = importance

    @override
    def losses(
        self, outputs: Outputs, targets: list[Targets], matches: list[list[Matches]]
    ) -> dict[str, Tensor]:
        layers = [layer.mask_logits for layer in outputs.proposals]
        chosen = [matched_logits(*pair) for pair in zip(layers, matches, strict=True)]
        sums = [functional.no_loss(*of_layer).repeat(2) for of_layer in chosen]
        # One wait for the device.
        labelled = torch.stack([target.valid.any() for target in targets]).tolist()
        for image, target in enumerate(targets):
            counts = [len(of_layer[image].targets) for of_layer in matches]
            if not sum(counts):
                continue
            logits = torch.cat([of_layer[image] for of_layer in chosen])
            ids = torch.cat([of_layer[image].targets for of_layer in matches])
            points = self.num_points if labelled[image] else 0
            rows = self._rows(functional.full_precision(logits), target, ids, points)
            parts = torch.stack(rows).split(counts, dim=1)
            sums = [total + part.sum(1) for total, part in zip(sums, parts, strict=True)]
        count = count_masks(targets) if outputs.mask_count is None else outputs.mask_count
        losses = {}
        for layer, (bce, dice) in enumerate(sums):
            suffix = "" if layer == len(layers) - 1 else f"_{layer}"
            losses[f"loss_mask{suffix}"] = self.mask_weight * bce / count
            losses[f"loss_dice{suffix}"] = self.dice_weight * dice / count
        return losses

    def _rows(
        self, logits: Tensor, target: Targets, ids: Tensor, points: int
    ) -> tuple[Tensor, Tensor]:
        """(n,) cross-entropy and dice of logits (n, h, w) against masks `ids` (n,)."""
        size = (logits.shape[1], logits.shape[2])
        if not points:
            soft, weights = functional.grid_targets(target.masks, target.supervision, size)
            flat = (logits.flatten(1), soft.flatten(1), weights.flatten())
            return functional.mask_losses(*flat, ids)
        known = functional.cell_shares(target.valid, size) > 0
        masks = target.masks.flatten(1)
        of_pixels = None if target.weights is None else target.weights.flatten()
        parts = []
        step = _ROWS_AT_ONCE if logits.device.type == "cpu" else _ROWS_ON_DEVICE
        for rows, of_rows in zip(logits.split(step), ids.split(step), strict=True):
            coords, pixels = functional.sample_uncertain_points(
                rows.detach(), target.valid, points, self.oversample, self.importance
            )
            at_points = functional.logits_at(rows, known, coords)
            truth = masks[of_rows[:, None], pixels]
            counted = None if of_pixels is None else of_pixels[pixels]
            parts.append(functional.mask_losses(at_points, truth, counted))
        bce, dice = zip(*parts, strict=True)
        return torch.cat(bce), torch.cat(dice)


def matched_logits(mask_logits: Tensor, matches: list[Matches]) -> tuple[Tensor, ...]:
    """For each of B images the (n, h, w) of its (B, Q, h, w) logits that own a mask.

    One selection for the whole batch, so that there is one gradient of the logits' size to add up.
    """
    queries = mask_logits.shape[1]
    ids = torch.cat([match.proposals + i * queries for i, match in enumerate(matches)])
    counts = [len(match.proposals) for match in matches]
    return mask_logits.flatten(0, 1).index_select(0, ids).split(counts)
