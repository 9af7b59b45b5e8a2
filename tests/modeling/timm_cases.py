"""timm's own network."""

from __future__ import annotations

import timm
from torch import nn


def own(model: str, weights: str) -> nn.Module:
    """The network as timm itself builds and loads it."""
    return timm.create_model(model, checkpoint_path=weights).eval()
