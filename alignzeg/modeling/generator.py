"""The generator: from what is known about a class in words to features of its pixels or regions."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class GMMNGenerator(nn.Module):
    """A generative moment matching network, conditioned on a semantic vector.

    A multilayer perceptron with one hidden layer on [semantic vector ; noise], the noise standard
    normal and of the same size. Dropout stays on while features are made in training: it is part
    of the noise that the discrepancy has matched.

    Source: ZS3Net (arXiv 1906.00817), section 3.2; GMMN (arXiv 1502.02761).
    """

    def __init__(self, *, semantic_dim: int, feature_dim: int, hidden_dim: int, dropout: float):
        """Builds the layers.

        Args:
            semantic_dim: A, channels of the semantic vectors.
            feature_dim: C, channels of the features.
            hidden_dim: channels of the hidden layer.
            dropout: share of the hidden layer, in [0, 1).
        """
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(2 * semantic_dim, hidden_dim),
            nn.LeakyReLU(0.2),
            nn.Dropout(dropout),
            nn.Linear(hidden_dim, feature_dim),
        )

    def forward(self, semantics: Tensor, samples: int) -> Tensor:
        """Makes features.

        Args:
            semantics: (..., A) semantic vectors.
            samples: S, features for each of them.

        Returns:
            (..., S, C).
        """
        known = semantics.unsqueeze(-2).expand(*semantics.shape[:-1], samples, -1)
        return self.layers(torch.cat([known, torch.randn_like(known)], dim=-1))
