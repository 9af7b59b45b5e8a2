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


def draw_pairs(rows: int, classes: int, pairs: int, device: torch.device | str = "cpu") -> Tensor:
    """Pairs of different classes: all of them where these are few, otherwise random ones.

    Args:
        rows: n, draws that are independent of each other.
        classes: K.
        pairs: most pairs in a draw, P >= 1. Time and memory grow with n and P, not with K.
        device: of the result.

    Returns:
        (n, p, 2) int64 class ids, with p = min(P, K (K - 1) / 2). Where p = P the pairs are drawn
        with replacement.
    """
    if classes * (classes - 1) // 2 <= pairs:
        everything = torch.combinations(torch.arange(classes, device=device))
        return everything.reshape(-1, 2).expand(rows, -1, -1)
    first = torch.randint(classes, (rows, pairs), device=device)
    second = torch.randint(classes - 1, (rows, pairs), device=device)
    return torch.stack([first, second + (second >= first)], dim=-1)


def semantic_ranking(
    cosines: Tensor, relations: Tensor, pairs: Tensor, margin: float, slope: float
) -> Tensor:
    """Asks for the order of classes that their names have, with a distance that grows with theirs.

    Of a pair (j, k), let j be the class that is more related to the sample's own class c. The pair
    counts if r_j - r_k > margin, and costs relu(slope (r_j - r_k) - (s_j - s_k)).

    Args:
        cosines: (n, K) s, of the samples with the text prototypes.
        relations: (n, K) r, of the prototype of the sample's class with all prototypes.
        pairs: (n, p, 2) class ids, as `draw_pairs`; their order does not matter.
        margin: difference of relations that a pair needs in order to count.
        slope: share of the names' difference that is asked of the sample's cosines.

    Returns:
        (n,) >= 0, the mean over a sample's counted pairs; 0 without one, and for a sample on its
        prototype with a slope of at most 1.

    Source: CEL (arXiv 2301.07336) ranks classes by their semantic relation; this hinge is ours.
    """
    first, second = pairs.unbind(-1)
    nearer = relations.gather(1, first) - relations.gather(1, second)
    scored = full_precision(cosines)
    scored = scored.gather(1, first) - scored.gather(1, second)
    cost = (slope * nearer.abs() - nearer.sign() * scored).relu()
    counted = nearer.abs() > margin
    return (cost * counted).sum(1) / counted.sum(1).clamp(min=1)
