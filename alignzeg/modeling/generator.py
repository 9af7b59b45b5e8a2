"""The generator: from what is known about a class in words to features of its pixels or regions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class GMMNGenerator(nn.Module):
    """A generative moment matching network, conditioned on a semantic vector.

    A multilayer perceptron with one hidden layer on [semantic vector ; noise], the noise standard
    normal and of the same size. Dropout stays on while features are made in training: it is part
    of the noise that the discrepancy has matched.

    With a skip the last A channels of a feature, which are then in the space of the semantic
    vectors, start as the vector itself: a few seen classes cannot teach a perceptron that.

    Source: ZS3Net (arXiv 1906.00817), section 3.2; GMMN (arXiv 1502.02761). [ours: the skip]
    """

    def __init__(
        self,
        *,
        semantic_dim: int,
        feature_dim: int,
        hidden_dim: int,
        dropout: float,
        skip: float = 0.0,
    ) -> None:
        """Builds the layers.

        Args:
            semantic_dim: A, channels of the semantic vectors.
            feature_dim: C, channels of the features.
            hidden_dim: channels of the hidden layer.
            dropout: share of the hidden layer, in [0, 1).
            skip: what the semantic vector is multiplied with, in the beginning, before it is added
                to the last A channels; 0 adds nothing.

        Raises:
            ValueError: if there is a skip and C is less than A.
        """
        super().__init__()
        if skip and feature_dim < semantic_dim:
            raise ValueError(
                f"semantic vectors of {semantic_dim} channels do not fit features of "
                f"{feature_dim}; set ALIGNZEG.GENERATOR.SKIP to 0"
            )
        self.skip = nn.Parameter(torch.tensor(float(skip))) if skip else None
        self.layers = nn.Sequential(
            nn.Linear(2 * semantic_dim, hidden_dim),
            nn.LeakyReLU(0.2),
            nn.Dropout(dropout),
            nn.Linear(hidden_dim, feature_dim),
        )

    def forward(self, semantics: Tensor, samples: int) -> Tensor:
        """S features for each of (..., A) semantic vectors: (..., S, C)."""
        known = semantics.unsqueeze(-2).expand(*semantics.shape[:-1], samples, -1)
        made = self.layers(torch.cat([known, torch.randn_like(known)], dim=-1))
        if self.skip is None:
            return made
        rest = made.shape[-1] - known.shape[-1]
        return made + F.pad(self.skip * known, (rest, 0))
