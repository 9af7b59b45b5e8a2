"""The losses of AlignZeg's generalization-enhanced proposal classification.

They shape the space around the seen classes: background that is diverse, features that no image
has shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from detectron2.config import CfgNode, configurable
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from alignzeg.losses import functional
from alignzeg.losses.criteria.base import Criterion, WeightedCriterion
from alignzeg.losses.mmd import weighted_mmd
from alignzeg.registries import CRITERION_REGISTRY
from alignzeg.structures import Matches, Outputs, Targets


@CRITERION_REGISTRY.register()
class BackgroundDiversityCriterion(Criterion):
    """loss_diversity: keeps the background prototypes apart; 0 for a single one.

    Up to a cosine of `margin` they do not repel each other.

    Source: AlignZeg (arXiv 2404.05667), background diversity strategy; the form is ours.
    """

    KEYS = {"weight": "DIVERSITY_WEIGHT", "margin": "DIVERSITY_MARGIN"}

    @configurable
    def __init__(self, *, weight: float, margin: float) -> None:
        super().__init__()
        self.weight = weight
        self.margin = margin

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
class SyntheticCriterion(WeightedCriterion):
    """loss_synthetic: cross-entropy of synthetic features.

    The classes are the seen ones, background and the batch's virtual ones. 0 where the batch
    gives no synthetic features.

    Source: AlignZeg (arXiv 2404.05667), feature expansion strategy.
    """

    KEYS = {"weight": "SYNTHETIC_WEIGHT"}

    @override
    def losses(
        self, outputs: Outputs, targets: list[Targets], matches: list[list[Matches]]
    ) -> dict[str, Tensor]:
        synthetic = outputs.synthetic
        if synthetic is None or not len(synthetic.targets):
            return {"loss_synthetic": functional.no_loss(outputs.class_logits)}
        scores = functional.full_precision(synthetic.logits)
        return {"loss_synthetic": self.weight * F.cross_entropy(scores, synthetic.targets)}


@CRITERION_REGISTRY.register()
class GeneratorCriterion(Criterion):
    """loss_generator: discrepancy between made and real features of the seen classes in the batch.

    Features are compared together with the prototypes of their classes, because a batch has too few
    of any one class. 0 where the batch has no matched proposal.

    Features and prototypes have unit length, which the bandwidths of the Gaussian kernels belong
    to.

    Source: GMMN (arXiv 1502.02761); the joint form is ours.
    """

    @configurable
    def __init__(self, *, weight: float, bandwidths: Sequence[float]) -> None:
        super().__init__()
        self.weight = weight
        self.bandwidths = tuple(bandwidths)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Constructor arguments from ALIGNZEG.LOSS and ALIGNZEG.GENERATOR."""
        return {
            "weight": cfg.ALIGNZEG.LOSS.GENERATOR_WEIGHT,
            "bandwidths": cfg.ALIGNZEG.GENERATOR.BANDWIDTHS,
        }

    @override
    def losses(
        self, outputs: Outputs, targets: list[Targets], matches: list[list[Matches]]
    ) -> dict[str, Tensor]:
        """See the class.

        Raises:
            ValueError: if the synthesizer generates nothing.
        """
        imitated = None if outputs.synthetic is None else outputs.synthetic.imitated
        if imitated is None:
            raise ValueError(
                "GeneratorCriterion needs a synthesizer that generates; take it out of "
                "ALIGNZEG.CRITERIA or set ALIGNZEG.SYNTHESIZER.NAME to GMMNSynthesizer"
            )
        made, real = imitated
        if not len(made):
            return {"loss_generator": functional.no_loss(made)}
        mmd = weighted_mmd(made, real, None, self.bandwidths)
        return {"loss_generator": self.weight * mmd}
