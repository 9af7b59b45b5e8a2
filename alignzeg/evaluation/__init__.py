"""Zero-shot segmentation metrics: pure functions, and the evaluator that feeds them."""

from alignzeg.evaluation.evaluator import ZeroShotEvaluator
from alignzeg.evaluation.metrics import confusion, mask_ious, metrics_from_confusion

__all__ = ["ZeroShotEvaluator", "confusion", "mask_ious", "metrics_from_confusion"]
