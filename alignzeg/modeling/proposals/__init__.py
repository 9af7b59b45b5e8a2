"""Mask proposal extractors: the plain baseline, AlignZeg's mutually refined one, and ours."""

from alignzeg.modeling.proposals.affinity import VLMAffinityExtractor
from alignzeg.modeling.proposals.plain import PlainExtractor
from alignzeg.modeling.proposals.refined import MutuallyRefinedExtractor

__all__ = [
    "MutuallyRefinedExtractor",
    "PlainExtractor",
    "VLMAffinityExtractor",
]
