"""The map from the space of sentences to that of a classifier, in closed form."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def centred(embeds: Tensor, mean: Tensor) -> Tensor:
    """(..., D) unit length: embeddings without the mean (D,) of all."""
    return F.normalize(embeds - mean, dim=-1)


def ridge_map(inputs: Tensor, targets: Tensor, ridge: float) -> Tensor:
    """The matrix M that minimises |targets - inputs M|^2 + ridge |M|^2.

    Args:
        inputs: (N, D).
        targets: (N, C).
        ridge: more than 0, in squared units of `inputs`.

    Returns:
        (D, C), solved in double precision, in the dtype of `targets`.
    """
    x, y = inputs.double(), targets.double()
    gram = x.T @ x + ridge * torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    return torch.linalg.solve(gram, x.T @ y).to(targets.dtype)
