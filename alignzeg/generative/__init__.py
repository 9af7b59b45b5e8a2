"""The pixel-level family: pixels are named one by one, unseen features are generated."""

from alignzeg.generative.generative_segmenter import GenerativeSegmenter
from alignzeg.generative.generative_trainer import GenerativeTrainer
from alignzeg.generative.pixel_segmenter import PixelSegmenter

__all__ = ["GenerativeSegmenter", "GenerativeTrainer", "PixelSegmenter"]
