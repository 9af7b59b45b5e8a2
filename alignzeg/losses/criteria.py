"""The loss families: one class each, which owns its weight. All compute in float32 under AMP.

Every loss stays connected to the graph when there is nothing to learn from, so that distributed
training never waits for a gradient.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.utils import comm
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from alignzeg.losses import functional
from alignzeg.registries import CRITERION_REGISTRY
from alignzeg.structures import Matches, Outputs, Targets

# Masks whose points are drawn at once; the candidates' coordinates are what takes memory.
_ROWS_AT_ONCE = 32


def merge_losses(parts: Iterable[dict[str, Tensor]]) -> dict[str, Tensor]:
    """One dict of all losses.

    Raises:
        ValueError: if a name is given twice or does not start with "loss_", or a loss is no scalar.
    """
    merged: dict[str, Tensor] = {}
    for part in parts:
        for name, loss in part.items():
            if name in merged:
                raise ValueError(
                    f"two criteria return a loss named {name!r}; list each once in "
                    "ALIGNZEG.CRITERIA and give your own losses names of their own"
                )
            if not name.startswith("loss_"):
                raise ValueError(f"unknown loss {name!r}; names of losses start with 'loss_'")
            if loss.ndim:
                raise ValueError(f"{name} must be a scalar; got shape {tuple(loss.shape)}")
            merged[name] = loss
    return merged


class Criteria(nn.Module):
    """Several criteria as one, with the contract of a criterion.

    Args:
        criteria: built criteria, for example by `alignzeg.registries.build_criteria`.
    """

    def __init__(self, criteria: Sequence[nn.Module]) -> None:
        super().__init__()
        self.criteria = nn.ModuleList(criteria)

    def forward(
        self, outputs: Outputs, targets: list[Targets], matches: list[list[Matches]]
    ) -> dict[str, Tensor]:
        """All weighted losses; errors as `merge_losses`."""
        return merge_losses(criterion(outputs, targets, matches) for criterion in self.criteria)


class Criterion(nn.Module):
    """A base that turns autocast off and leaves the losses to its subclass."""

    def forward(
        self, outputs: Outputs, targets: list[Targets], matches: list[list[Matches]]
    ) -> dict[str, Tensor]:
        """Weighted losses by name; `matches[layer][image]`."""
        with torch.autocast(outputs.class_logits.device.type, enabled=False):
            return self.losses(outputs, targets, matches)

    def losses(
        self, outputs: Outputs, targets: list[Targets], matches: list[list[Matches]]
    ) -> dict[str, Tensor]:
        """What `forward` returns, computed in full precision."""
        raise NotImplementedError


def _count_masks(targets: list[Targets], device: torch.device) -> Tensor:
    """Ground-truth masks per process, at least 1; the mean over processes."""
    count = torch.tensor(sum(len(t.labels) for t in targets), dtype=torch.float32, device=device)
    if comm.get_world_size() > 1:
        torch.distributed.all_reduce(count)
    return (count / comm.get_world_size()).clamp(min=1)


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
        ignore_as_negative: hidden pixels are negatives of every mask, as in the published peers,
            instead of being left out.

    Raises:
        ValueError: if a sampling value is out of its range.

    Source: MaskFormer (arXiv 2107.06278), points as Mask2Former (arXiv 2112.01527).
    """

    @configurable
    def __init__(
        self,
        *,
        mask_weight: float,
        dice_weight: float,
        num_points: int,
        oversample: float,
        importance: float,
        ignore_as_negative: bool = False,
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
        self.ignore_as_negative = ignore_as_negative

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Constructor arguments from ALIGNZEG.LOSS."""
        node = cfg.ALIGNZEG.LOSS
        return {
            "mask_weight": node.MASK_WEIGHT,
            "dice_weight": node.DICE_WEIGHT,
            "num_points": node.NUM_POINTS,
            "oversample": node.OVERSAMPLE_RATIO,
            "importance": node.IMPORTANCE_RATIO,
            "ignore_as_negative": cfg.ALIGNZEG.DATA.IGNORE_AS_NEGATIVE,
        }

    @override
    def losses(
        self, outputs: Outputs, targets: list[Targets], matches: list[list[Matches]]
    ) -> dict[str, Tensor]:
        """See the class."""
        layers = [layer.mask_logits for layer in outputs.proposals]
        sums = [functional.no_loss(logits).repeat(2) for logits in layers]
        for image, target in enumerate(targets):
            found = [of_layer[image] for of_layer in matches]
            counts = [len(match.targets) for match in found]
            if not sum(counts):
                continue
            logits = [x[image, match.proposals] for x, match in zip(layers, found, strict=True)]
            ids = torch.cat([match.targets for match in found])
            rows = self._rows(functional.full_precision(torch.cat(logits)), target, ids)
            parts = torch.stack(rows).split(counts, dim=1)
            sums = [total + part.sum(1) for total, part in zip(sums, parts, strict=True)]
        count = _count_masks(targets, layers[-1].device)
        losses = {}
        for layer, (bce, dice) in enumerate(sums):
            suffix = "" if layer == len(layers) - 1 else f"_{layer}"
            losses[f"loss_mask{suffix}"] = self.mask_weight * bce / count
            losses[f"loss_dice{suffix}"] = self.dice_weight * dice / count
        return losses

    def _rows(self, logits: Tensor, target: Targets, ids: Tensor) -> tuple[Tensor, Tensor]:
        """(n,) cross-entropy and dice of logits (n, h, w) against masks `ids` (n,)."""
        area = functional.supervised_area(target, self.ignore_as_negative)
        size = (logits.shape[1], logits.shape[2])
        if not self.num_points or not area.any():
            soft, weights = functional.grid_targets(target.masks, area, size)
            flat = soft.flatten(1)[ids]
            return functional.mask_losses(logits.flatten(1), flat, weights.flatten())
        known = functional.cell_shares(area, size) > 0
        masks = target.masks.flatten(1)
        parts = []
        for rows, of_rows in zip(
            logits.split(_ROWS_AT_ONCE), ids.split(_ROWS_AT_ONCE), strict=True
        ):
            coords, pixels = functional.sample_uncertain_points(
                rows.detach(), area, self.num_points, self.oversample, self.importance
            )
            at_points = functional.logits_at(rows, known, coords)
            parts.append(functional.mask_losses(at_points, masks[of_rows[:, None], pixels]))
        bce, dice = zip(*parts, strict=True)
        return torch.cat(bce), torch.cat(dice)


@CRITERION_REGISTRY.register()
class ClassCriterion(Criterion):
    """loss_class: softmax cross-entropy over the seen classes and background.

    Matched proposals learn their class, unmatched ones background. An unmatched copy of a matched
    proposal gets no loss: with a frozen VLM its embedding is that of the matched one, and
    "background" would contradict the class. An unmatched proposal that lies
    mostly on hidden pixels may show an unseen class: it gets no loss. This choice looks at the mask
    logits on hidden pixels, through no gradient; a mask that is empty (or on padding alone) counts
    as background.

    Args:
        weight: of the loss.
        background_weight: of a background proposal relative to a matched one; the loss is the
            weighted mean.
        min_valid_share: least share of a binarised mask's area, in [0, 1], on supervised pixels.
        copy_iou: IoU with a ground-truth mask, on supervised pixels, that makes an unmatched
            proposal a copy; above 1 there are none.
        ignore_as_negative: hidden pixels count as supervised.

    Source: MaskFormer (arXiv 2107.06278); the share and the copies are ours.
    """

    @configurable
    def __init__(
        self,
        *,
        weight: float,
        background_weight: float,
        min_valid_share: float,
        copy_iou: float,
        ignore_as_negative: bool = False,
    ) -> None:
        super().__init__()
        if background_weight < 0 or not 0 <= min_valid_share <= 1:
            raise ValueError(
                "ALIGNZEG.LOSS needs BACKGROUND_WEIGHT >= 0 and MIN_VALID_SHARE in [0, 1]; got "
                f"{background_weight}, {min_valid_share}"
            )
        self.weight = weight
        self.background_weight = background_weight
        self.min_valid_share = min_valid_share
        self.copy_iou = copy_iou
        self.ignore_as_negative = ignore_as_negative

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Constructor arguments from ALIGNZEG.LOSS."""
        node = cfg.ALIGNZEG.LOSS
        return {
            "weight": node.CLASS_WEIGHT,
            "background_weight": node.BACKGROUND_WEIGHT,
            "min_valid_share": node.MIN_VALID_SHARE,
            "copy_iou": node.COPY_IOU,
            "ignore_as_negative": cfg.ALIGNZEG.DATA.IGNORE_AS_NEGATIVE,
        }

    @override
    def losses(
        self, outputs: Outputs, targets: list[Targets], matches: list[list[Matches]]
    ) -> dict[str, Tensor]:
        """See the class."""
        scores = functional.full_precision(outputs.class_logits)
        background = scores.shape[-1] - 1
        classes = torch.full(scores.shape[:2], background, device=scores.device)
        counted = torch.zeros(scores.shape[:2], dtype=torch.bool, device=scores.device)
        for image, (target, match) in enumerate(zip(targets, matches[-1], strict=True)):
            mask_logits = outputs.proposals[-1].mask_logits[image]
            copies = self._copies(mask_logits, target)
            counted[image] = self._judgeable(mask_logits, target) & ~copies
            counted[image, match.proposals] = True
            classes[image, match.proposals] = target.labels[match.targets]
        entropy = F.cross_entropy(scores[counted], classes[counted], reduction="none")
        shares = torch.where(classes[counted] == background, self.background_weight, 1.0)
        # Nothing to judge gives 0 / floor; otherwise the sum is at least one proposal's weight.
        mean = (entropy * shares).sum() / shares.sum().clamp(min=1e-12)
        return {"loss_class": self.weight * mean}

    @torch.no_grad()
    def _copies(self, mask_logits: Tensor, target: Targets) -> Tensor:
        """(Q,) bool, whether a mask (Q, h, w) covers some ground-truth mask."""
        if not len(target.labels):
            return torch.zeros(len(mask_logits), dtype=torch.bool, device=mask_logits.device)
        size = (mask_logits.shape[1], mask_logits.shape[2])
        area = functional.supervised_area(target, self.ignore_as_negative)
        truth, weights = functional.grid_targets(target.masks, area, size)
        weights, truth = weights.flatten(), truth.flatten(1)
        masks = (mask_logits > 0).flatten(1).float()
        both = (masks * weights) @ truth.T
        either = masks @ weights[:, None] + truth @ weights - both
        return (both / either.clamp(min=1e-6)).amax(dim=1) >= self.copy_iou

    @torch.no_grad()
    def _judgeable(self, mask_logits: Tensor, target: Targets) -> Tensor:
        """(Q,) bool, whether enough of each mask (Q, h, w) lies on supervised pixels."""
        size = (mask_logits.shape[1], mask_logits.shape[2])
        area = functional.supervised_area(target, self.ignore_as_negative)
        inside = functional.supervised_area(target, ignore_as_negative=True)
        shares = torch.stack(
            [functional.cell_shares(part, size).flatten() for part in (area, inside)]
        )
        judged, whole = ((mask_logits > 0).flatten(1).float() @ shares.T).unbind(1)
        return judged >= self.min_valid_share * whole


@CRITERION_REGISTRY.register()
class BackgroundDiversityCriterion(Criterion):
    """loss_diversity: keeps the background prototypes apart; 0 for a single one.

    Args:
        weight: of the loss.
        margin: cosine up to which prototypes do not repel each other.

    Source: AlignZeg (arXiv 2404.05667), background diversity strategy; the form is ours.
    """

    @configurable
    def __init__(self, *, weight: float, margin: float) -> None:
        super().__init__()
        self.weight = weight
        self.margin = margin

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Constructor arguments from ALIGNZEG.LOSS."""
        node = cfg.ALIGNZEG.LOSS
        return {"weight": node.DIVERSITY_WEIGHT, "margin": node.DIVERSITY_MARGIN}

    @override
    def losses(
        self, outputs: Outputs, targets: list[Targets], matches: list[list[Matches]]
    ) -> dict[str, Tensor]:
        """See the class.

        Raises:
            ValueError: if the head gives no background prototypes.
        """
        if outputs.background is None:
            raise ValueError(
                "BackgroundDiversityCriterion needs background prototypes and the head gives none; "
                "take it out of ALIGNZEG.CRITERIA or choose another ALIGNZEG.CLASSIFIER.NAME"
            )
        diversity = functional.prototype_diversity(outputs.background, self.margin)
        return {"loss_diversity": self.weight * diversity}


@CRITERION_REGISTRY.register()
class SyntheticCriterion(Criterion):
    """loss_synthetic: cross-entropy of synthetic features.

    The classes are the seen ones, background and the batch's virtual ones. 0 where the batch
    gives no synthetic features.

    Args:
        weight: of the loss.

    Source: AlignZeg (arXiv 2404.05667), feature expansion strategy.
    """

    @configurable
    def __init__(self, *, weight: float) -> None:
        super().__init__()
        self.weight = weight

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Constructor arguments from ALIGNZEG.LOSS."""
        return {"weight": cfg.ALIGNZEG.LOSS.SYNTHETIC_WEIGHT}

    @override
    def losses(
        self, outputs: Outputs, targets: list[Targets], matches: list[list[Matches]]
    ) -> dict[str, Tensor]:
        """See the class."""
        synthetic = outputs.synthetic
        if synthetic is None or not len(synthetic.targets):
            return {"loss_synthetic": functional.no_loss(outputs.class_logits)}
        scores = functional.full_precision(synthetic.logits)
        return {"loss_synthetic": self.weight * F.cross_entropy(scores, synthetic.targets)}


@CRITERION_REGISTRY.register()
class IndicatorCriterion(Criterion):
    """loss_indicator: matched proposals of the final layer are seen, synthetic features are not.

    Binary cross-entropy; each of the two groups has half the weight, whatever its size, and an
    empty group counts 0. Background proposals take no part.

    Args:
        weight: of the loss.

    Source: AlignZeg (arXiv 2404.05667), predictive bias correction; the balance is ours.
    """

    @configurable
    def __init__(self, *, weight: float) -> None:
        super().__init__()
        self.weight = weight

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Constructor arguments from ALIGNZEG.LOSS."""
        return {"weight": cfg.ALIGNZEG.LOSS.INDICATOR_WEIGHT}

    @override
    def losses(
        self, outputs: Outputs, targets: list[Targets], matches: list[list[Matches]]
    ) -> dict[str, Tensor]:
        """See the class.

        Raises:
            ValueError: if the head gives no unseen logits.
        """
        if outputs.unseen_logits is None:
            raise ValueError(
                "IndicatorCriterion needs the logits of an unseen indicator and the head gives "
                "none; take it out of ALIGNZEG.CRITERIA or set ALIGNZEG.CORRECTOR.NAME "
                "to UnseenIndicator"
            )
        logits = functional.full_precision(outputs.unseen_logits)
        seen = [logits[image, match.proposals] for image, match in enumerate(matches[-1])]
        groups = [functional.softplus(torch.cat(seen))]
        if outputs.synthetic is not None and outputs.synthetic.unseen_logits is not None:
            unseen = functional.full_precision(outputs.synthetic.unseen_logits)
            groups.append(functional.softplus(-unseen))
        halves = [0.5 * group.mean() for group in groups if len(group)]
        return {"loss_indicator": self.weight * sum(halves, functional.no_loss(logits))}
