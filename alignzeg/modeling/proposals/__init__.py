"""Mask proposal extractors: the plain baseline and AlignZeg's mutually refined one."""

from alignzeg.modeling.proposals.plain import MASK_STRIDE, REFINED_STRIDES, PlainExtractor
from alignzeg.modeling.proposals.refined import MutuallyRefinedExtractor

__all__ = ["MASK_STRIDE", "REFINED_STRIDES", "MutuallyRefinedExtractor", "PlainExtractor"]
