"""The loss of class scores, and which proposals it leaves out."""

from __future__ import annotations

import torch
from detectron2.config import configurable
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from alignzeg.losses import functional
from alignzeg.losses.criteria.base import Criterion
from alignzeg.registries import CRITERION_REGISTRY
from alignzeg.structures import Matches, Outputs, Targets


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
        ignore_iou: IoU with a ground-truth mask, on supervised pixels, that makes an unmatched
            proposal a copy; above 1 there are none.

    Source: MaskFormer (arXiv 2107.06278); the share and the copies are ours.
    """

    KEYS = {
        "weight": "CLASS_WEIGHT",
        "background_weight": "BACKGROUND_WEIGHT",
        "min_valid_share": "MIN_VALID_SHARE",
        "ignore_iou": "IGNORE_IOU",
    }

    @configurable
    def __init__(
        self,
        *,
        weight: float,
        background_weight: float,
        min_valid_share: float,
        ignore_iou: float,
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
        self.ignore_iou = ignore_iou

    @override
    def losses(
        self, outputs: Outputs, targets: list[Targets], matches: list[list[Matches]]
    ) -> dict[str, Tensor]:
        scores = functional.full_precision(outputs.class_logits)
        background = scores.shape[-1] - 1
        classes = torch.full(scores.shape[:2], background, device=scores.device)
        counted = torch.zeros(scores.shape[:2], dtype=torch.bool, device=scores.device)
        shares = torch.full(scores.shape[:2], self.background_weight, device=scores.device)
        for image, (target, match) in enumerate(zip(targets, matches[-1], strict=True)):
            mask_logits = outputs.proposals[-1].mask_logits[image]
            copies = self._copies(mask_logits, target)
            counted[image] = self._judgeable(mask_logits, target) & ~copies
            counted[image].index_fill_(0, match.proposals, True)
            classes[image, match.proposals] = target.labels[match.targets]
            shares[image, match.proposals] = target.mask_weights[match.targets]
        # The only number that the device is waited for.
        rows = counted.flatten().nonzero()[:, 0]
        chosen, truth = scores.flatten(0, 1)[rows], classes.flatten()[rows]
        entropy, weights = F.cross_entropy(chosen, truth, reduction="none"), shares.flatten()[rows]
        # Nothing to judge gives 0 / floor; otherwise the sum is at least one proposal's weight.
        mean = (entropy * weights).sum() / weights.sum().clamp(min=1e-12)
        return {"loss_class": self.weight * mean}

    @torch.no_grad()
    def _copies(self, mask_logits: Tensor, target: Targets) -> Tensor:
        """(Q,) bool, whether a mask (Q, h, w) covers some ground-truth mask."""
        if not len(target.labels):
            return torch.zeros(len(mask_logits), dtype=torch.bool, device=mask_logits.device)
        size = (mask_logits.shape[1], mask_logits.shape[2])
        truth, weights = functional.grid_targets(target.masks, target.valid, size)
        weights, truth = weights.flatten(), truth.flatten(1)
        masks = (mask_logits > 0).flatten(1).float()
        both = (masks * weights) @ truth.T
        either = masks @ weights[:, None] + truth @ weights - both
        return (both / either.clamp(min=1e-6)).amax(dim=1) >= self.ignore_iou

    @torch.no_grad()
    def _judgeable(self, mask_logits: Tensor, target: Targets) -> Tensor:
        """(Q,) bool, whether enough of each mask (Q, h, w) lies on supervised pixels."""
        size = (mask_logits.shape[1], mask_logits.shape[2])
        inside = torch.ones_like(target.valid) if target.padding is None else ~target.padding
        shares = torch.stack(
            [functional.cell_shares(part, size).flatten() for part in (target.valid, inside)]
        )
        judged, whole = ((mask_logits > 0).flatten(1).float() @ shares.T).unbind(1)
        return judged >= self.min_valid_share * whole
