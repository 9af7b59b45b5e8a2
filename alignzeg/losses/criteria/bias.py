"""The loss of AlignZeg's predictive bias correction: what is seen and what is not."""

from __future__ import annotations

from torch import Tensor
from typing_extensions import override

from alignzeg.losses import functional
from alignzeg.losses.criteria.base import WeightedCriterion
from alignzeg.registries import CRITERION_REGISTRY
from alignzeg.structures import Matches, Outputs, Targets


@CRITERION_REGISTRY.register()
class IndicatorCriterion(WeightedCriterion):
    """loss_indicator: which of the corrector's examples are of a class not seen.

    Binary cross-entropy; each of the two groups has half the weight, whatever its size, and an
    empty group counts 0. Background proposals take no part.

    Source: AlignZeg (arXiv 2404.05667), predictive bias correction; the balance is ours.
    """

    KEYS = {"weight": "INDICATOR_WEIGHT"}

    @override
    def losses(
        self, outputs: Outputs, targets: list[Targets], matches: list[list[Matches]]
    ) -> dict[str, Tensor]:
        """See the class.

        Raises:
            ValueError: if the head gives no unseen logits.
        """
        if outputs.unseen_examples is None:
            raise ValueError(
                "IndicatorCriterion needs the examples of an unseen indicator and the head gives "
                "none; take it out of ALIGNZEG.CRITERIA or set ALIGNZEG.CORRECTOR.NAME "
                "to UnseenIndicator or LeaveOutIndicator"
            )
        logits = functional.full_precision(outputs.unseen_examples[0])
        unseen = outputs.unseen_examples[1]
        groups = (functional.softplus(logits[~unseen]), functional.softplus(-logits[unseen]))
        halves = [0.5 * group.mean() for group in groups if len(group)]
        return {"loss_indicator": self.weight * sum(halves, functional.no_loss(logits))}
