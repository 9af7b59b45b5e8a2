"""Prediction: any image and any class names to a label map. No data set on disk is needed."""

from alignzeg.inference.prediction import Prediction, ProposalSet
from alignzeg.inference.predictor import Predictor, parse_classes

__all__ = ["Prediction", "Predictor", "ProposalSet", "parse_classes"]
