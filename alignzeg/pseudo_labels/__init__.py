"""Pseudo-labels: regions of the pixels without labels, named by the frozen VLM.

Source: CEL (arXiv 2301.07336) lets a pretrained VLM label what humans did not; how is ours.
"""

from alignzeg.pseudo_labels.making import Job, make_pseudo_labels

__all__ = ["Job", "make_pseudo_labels"]
