"""Zero-shot segmentation metrics: pure functions, the evaluator that feeds them, their error."""

from alignzeg.evaluation.evaluator import ZeroShotEvaluator
from alignzeg.evaluation.metrics import confusion, mask_ious, metrics_from_confusion
from alignzeg.evaluation.per_image import PerImage, load_per_image
from alignzeg.evaluation.uncertainty import compare, intervals

__all__ = [
    "PerImage",
    "ZeroShotEvaluator",
    "compare",
    "confusion",
    "intervals",
    "load_per_image",
    "mask_ious",
    "metrics_from_confusion",
]
