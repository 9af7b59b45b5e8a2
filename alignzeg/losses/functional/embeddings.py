"""Losses of vectors in the text space as pure functions. Shapes as in `alignzeg.structures`."""

from __future__ import annotations

import torch
from torch import Tensor

from alignzeg.losses.functional.numeric import full_precision, no_loss


def prototype_diversity(prototypes: Tensor, margin: float) -> Tensor:
    """Mean over pairs m != m' of relu(cosine - margin); 0 for a single prototype.

    Args:
        prototypes: (M, D) unit length.
        margin: cosine up to which two prototypes do not repel each other.

    Returns:
        Scalar in [0, 1 - margin].

    Source: AlignZeg (arXiv 2404.05667) asks for diverse background prototypes; this form is ours.
    """
    count = len(prototypes)
    if count < 2:
        return no_loss(prototypes)
    prototypes = full_precision(prototypes)
    excess = (prototypes @ prototypes.T - margin).relu()
    others = ~torch.eye(count, dtype=torch.bool, device=prototypes.device)
    return excess[others].sum() / (count * (count - 1))
