"""Prediction: any image and any class names to a label map. No data set on disk is needed."""

from alignzeg.inference.prediction import Prediction
from alignzeg.inference.predictor import Predictor, parse_classes
from alignzeg.inference.sheet import ProposalSet

__all__ = ["Prediction", "Predictor", "ProposalSet", "parse_classes"]
