"""The loss families: one class each, which owns its weight. All compute in float32 under AMP.

Every loss stays connected to the graph when there is nothing to learn from, so that distributed
training never waits for a gradient.
"""

from alignzeg.losses.criteria.base import Criterion, merge_losses
from alignzeg.losses.criteria.bias import IndicatorCriterion
from alignzeg.losses.criteria.classes import ClassCriterion
from alignzeg.losses.criteria.enhancement import (
    EnhancementCriterion,
    ForegroundClassCriterion,
    RankingCriterion,
)
from alignzeg.losses.criteria.generalization import (
    BackgroundDiversityCriterion,
    GeneratorCriterion,
    SyntheticCriterion,
)
from alignzeg.losses.criteria.masks import MaskCriterion, count_masks

__all__ = [
    "BackgroundDiversityCriterion",
    "ClassCriterion",
    "Criterion",
    "EnhancementCriterion",
    "ForegroundClassCriterion",
    "GeneratorCriterion",
    "IndicatorCriterion",
    "MaskCriterion",
    "RankingCriterion",
    "SyntheticCriterion",
    "count_masks",
    "merge_losses",
]
