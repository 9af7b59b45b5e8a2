"""Assignment of mask proposals to ground-truth masks.

Source: the set matching of DETR (arXiv 2005.12872) with the mask costs of MaskFormer
(arXiv 2107.06278), here on the whole stride-4 grid and blind to pixels without a label.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from alignzeg.losses import functional
from alignzeg.structures import Matches, Outputs, Targets, moved


class HungarianMatcher(nn.Module):
    """The cheapest one-to-one assignment, for every decoder layer and image.

    Args:
        class_cost: weight of minus the probability of the mask's class; 0 is class-agnostic. The
            final class scores serve every layer, as queries keep their identity over the layers.
        mask_cost: weight of the mean binary cross-entropy.
        dice_cost: weight of the dice loss.

    Raises:
        ValueError: if a weight is negative or all are 0.
    """

    @configurable
    def __init__(
        self,
        *,
        class_cost: float,
        mask_cost: float,
        dice_cost: float,
    ) -> None:
        super().__init__()
        costs = {"CLASS_COST": class_cost, "MASK_COST": mask_cost, "DICE_COST": dice_cost}
        if min(costs.values()) < 0 or not any(costs.values()):
            raise ValueError(
                f"ALIGNZEG.MATCHER needs weights >= 0, one of them positive; got {costs}"
            )
        self.class_cost = class_cost
        self.mask_cost = mask_cost
        self.dice_cost = dice_cost

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Constructor arguments from ALIGNZEG.MATCHER."""
        node = cfg.ALIGNZEG.MATCHER
        return {
            "class_cost": node.CLASS_COST,
            "mask_cost": node.MASK_COST,
            "dice_cost": node.DICE_COST,
        }

    @torch.no_grad()
    def forward(self, outputs: Outputs, targets: list[Targets]) -> list[list[Matches]]:
        """Matches proposals to masks.

        Args:
            outputs: of the head, for B images and L layers.
            targets: B ground truths, on the outputs' device, padded to the images' size.

        Returns:
            matches[layer][image], min(Q, G) pairs each, ascending in the proposal index.

        Raises:
            FloatingPointError: if a cost is not finite; names the layer, the image and the cost.
            ValueError: if the targets' size is no multiple of the mask logits' size.
        """
        device = outputs.class_logits.device
        with torch.autocast(device.type, enabled=False):
            costs = [self._costs(outputs, *pair) for pair in enumerate(targets)]
        # One wait for the device a batch.
        flat = torch.cat([of_image.flatten() for of_image in costs]).cpu()
        parts = flat.split([of_image.numel() for of_image in costs])
        found = []
        for image, (target, part) in enumerate(zip(targets, parts, strict=True)):
            found += self._assign(part.view(costs[image].shape), target.name or f"#{image}")
        ids = moved(torch.from_numpy(np.concatenate(found, axis=1).astype(np.int64)), device)
        pairs = ids.split([len(rows) for rows, _ in found], dim=1)
        layers = len(outputs.proposals)
        return [[Matches(*pair) for pair in pairs[layer::layers]] for layer in range(layers)]

    def _costs(self, outputs: Outputs, image: int, target: Targets) -> Tensor:
        """(L, 3, Q, G) unweighted class, mask and dice costs of one image."""
        logits = [layer.mask_logits[image].flatten(1) for layer in outputs.proposals]
        if not len(target.labels):
            return logits[0].new_zeros(len(logits), 3, len(logits[0]), 0, dtype=torch.float32)
        height, width = outputs.proposals[-1].mask_logits.shape[-2:]
        dtype = functional.full_precision(logits[0]).dtype
        pair_targets = functional.PairTargets.of_masks(
            target.masks, target.supervision, (height, width), dtype
        )
        if self.class_cost:
            scores = functional.full_precision(outputs.class_logits[image])
            named = -scores.softmax(-1)[:, target.labels]
        else:
            named = logits[0].new_zeros(len(logits[0]), len(target.labels))
        if named.device.type != "cpu":
            # One large operation takes as long as a small one.
            found = functional.pairwise_mask_costs(torch.cat(logits), pair_targets)
            bce, dice = (cost.view(len(logits), *named.shape) for cost in found)
            return torch.stack([named.to(bce).expand_as(bce), bce, dice], dim=1)
        pairs = (functional.pairwise_mask_costs(layer, pair_targets) for layer in logits)
        return torch.stack([torch.stack([named.to(bce), bce, dice]) for bce, dice in pairs])

    def _assign(self, costs: Tensor, name: str) -> list[tuple[NDArray, NDArray]]:
        """Proposal and target indices of the cheapest assignment of each layer.

        Costs (L, 3, Q, G) are unweighted.
        """
        scale = costs.new_tensor([self.class_cost, self.mask_cost, self.dice_cost])
        total = (costs * scale[:, None, None]).sum(1)
        # Finite costs may add up to more than a number can hold.
        if not total.isfinite().all():
            kinds = torch.cat([costs, total[:, None]], dim=1).isfinite().flatten(2).all(2)
            layer, kind = (~kinds).nonzero()[0].tolist()
            raise FloatingPointError(
                f"the {('class', 'mask', 'dice', 'weighted')[kind]} cost of layer {layer} is not "
                f"finite for image {name}: the model has diverged; lower SOLVER.BASE_LR or clip "
                "gradients (SOLVER.CLIP_GRADIENTS)"
            )
        return [linear_sum_assignment(cost) for cost in total.numpy()]
