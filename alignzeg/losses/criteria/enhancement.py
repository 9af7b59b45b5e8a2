"""The losses of CEL: classes without a background, enhanced and ranked by their names."""

from __future__ import annotations

import torch
from detectron2.config import configurable
from fvcore.nn import sigmoid_focal_loss
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from alignzeg.losses import functional
from alignzeg.losses.criteria.base import Criterion, WeightedCriterion
from alignzeg.registries import CRITERION_REGISTRY
from alignzeg.structures import Matches, Outputs, Targets


def _of_matched(
    values: Tensor, targets: list[Targets], matches: list[Matches]
) -> tuple[Tensor, Tensor, Tensor]:
    """(n, ...) rows of (B, Q, ...) values that own a mask; (n,) classes and weights of these."""
    rows = [values[image, match.proposals] for image, match in enumerate(matches)]
    pairs = list(zip(targets, matches, strict=True))
    labels = [target.labels[match.targets] for target, match in pairs]
    weights = [target.mask_weights[match.targets] for target, match in pairs]
    return functional.full_precision(torch.cat(rows)), torch.cat(labels), torch.cat(weights)


def _mean(costs: Tensor, weights: Tensor) -> Tensor:
    """Weighted sum of (n,) costs over their number: an uncertain mask teaches less."""
    return (costs * weights).sum() / max(len(costs), 1)


@CRITERION_REGISTRY.register()
class ForegroundClassCriterion(WeightedCriterion):
    """loss_class: softmax cross-entropy of matched proposals over the classes alone.

    There is no background: an unmatched proposal, which may show a class without masks, learns
    nothing. To be used with `MaskQualityHead`, which weighs proposals without a background score.

    The loss is a mean over matched proposals.

    Source: CEL (arXiv 2301.07336).
    """

    KEYS = {"weight": "CLASS_WEIGHT"}

    @override
    def losses(
        self, outputs: Outputs, targets: list[Targets], matches: list[list[Matches]]
    ) -> dict[str, Tensor]:
        scores, labels, weights = _of_matched(outputs.class_logits, targets, matches[-1])
        costs = F.cross_entropy(scores[:, :-1], labels, reduction="none")
        return {"loss_class": self.weight * _mean(costs, weights)}


@CRITERION_REGISTRY.register()
class EnhancementCriterion(Criterion):
    """loss_enhance: for every class on its own, is a matched proposal of it?

    Focal binary cross-entropy of a <e, T_k> + b against one-hot, -(1 - p)^gamma log(p) with p the
    probability of the truth, summed over classes, mean over matched proposals; a <e, T_k> are the
    class scores, a being the scale of the frozen VLM.

    Args:
        weight: of the loss.
        gamma: exponent of the focal loss, >= 0.
        bias: b, in logits; minus the score at which the answer is undecided.

    Source: CEL (arXiv 2301.07336) enhances the right class; the focal form is ours.
    """

    KEYS = {"weight": "ENHANCE_WEIGHT", "gamma": "ENHANCE_GAMMA", "bias": "ENHANCE_BIAS"}

    @configurable
    def __init__(self, *, weight: float, gamma: float, bias: float) -> None:
        super().__init__()
        if gamma < 0:
            raise ValueError(f"ALIGNZEG.LOSS.ENHANCE_GAMMA is {gamma}; it must be 0 or more")
        self.weight = weight
        self.gamma = gamma
        self.bias = bias

    @override
    def losses(
        self, outputs: Outputs, targets: list[Targets], matches: list[list[Matches]]
    ) -> dict[str, Tensor]:
        scores, labels, weights = _of_matched(outputs.class_logits, targets, matches[-1])
        logits = scores[:, :-1] + self.bias
        truth = F.one_hot(labels, logits.shape[1])
        costs = sigmoid_focal_loss(logits, truth, gamma=self.gamma).sum(1)
        return {"loss_enhance": self.weight * _mean(costs, weights)}


@CRITERION_REGISTRY.register()
class RankingCriterion(Criterion):
    """loss_rank: classes score in the order in which their names are related to the true one.

    Args:
        weight: of the loss.
        margin: delta, see `functional.semantic_ranking`.
        slope: mu, likewise.
        pairs: most pairs of classes compared for a proposal, at random where there are more; >= 1.

    Source: CEL (arXiv 2301.07336); the hinge form is ours.
    """

    KEYS = {
        "weight": "RANK_WEIGHT",
        "margin": "RANK_MARGIN",
        "slope": "RANK_SLOPE",
        "pairs": "RANK_PAIRS",
    }

    @configurable
    def __init__(self, *, weight: float, margin: float, slope: float, pairs: int) -> None:
        super().__init__()
        if pairs < 1:
            raise ValueError(f"ALIGNZEG.LOSS.RANK_PAIRS is {pairs}; it must be 1 or more")
        self.weight = weight
        self.margin = margin
        self.slope = slope
        self.pairs = pairs

    @override
    def losses(
        self, outputs: Outputs, targets: list[Targets], matches: list[list[Matches]]
    ) -> dict[str, Tensor]:
        """See the class.

        Raises:
            ValueError: if the outputs carry no text prototypes.
        """
        if outputs.text is None:
            raise ValueError("RankingCriterion needs Outputs.text, the prototypes of the classes")
        text = functional.full_precision(outputs.text)
        embeds, labels, weights = _of_matched(outputs.embeds, targets, matches[-1])
        pairs = functional.draw_pairs(len(labels), len(text), self.pairs, text.device)
        costs = functional.semantic_ranking(
            embeds @ text.T, text[labels] @ text.T, pairs, self.margin, self.slope
        )
        return {"loss_rank": self.weight * _mean(costs, weights)}
