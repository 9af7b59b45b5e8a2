"""What all criteria share: their base, and their losses in one dict."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import torch
from detectron2.config import CfgNode, configurable
from torch import Tensor, nn

from alignzeg.structures import Matches, Outputs, Targets


def merge_losses(parts: Iterable[dict[str, Tensor]]) -> dict[str, Tensor]:
    """One dict of all losses.

    Raises:
        ValueError: if a name is given twice or does not start with "loss_", or a loss is no scalar.
    """
    merged: dict[str, Tensor] = {}
    for part in parts:
        for name, loss in part.items():
            if name in merged:
                raise ValueError(
                    f"two criteria return a loss named {name!r}; list each once in "
                    "ALIGNZEG.CRITERIA and give your own losses names of their own"
                )
            if not name.startswith("loss_"):
                raise ValueError(f"unknown loss {name!r}; names of losses start with 'loss_'")
            if loss.ndim:
                raise ValueError(f"{name} must be a scalar; got shape {tuple(loss.shape)}")
            merged[name] = loss
    return merged


class Criterion(nn.Module):
    """A base that turns autocast off and leaves the losses to its subclass."""

    # The key below ALIGNZEG.LOSS of each constructor argument.
    KEYS: ClassVar[Mapping[str, str]] = {}

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Constructor arguments from ALIGNZEG.LOSS."""
        return {name: cfg.ALIGNZEG.LOSS[key] for name, key in cls.KEYS.items()}

    def forward(
        self, outputs: Outputs, targets: list[Targets], matches: list[list[Matches]]
    ) -> dict[str, Tensor]:
        """Weighted losses by name; `matches[layer][image]`."""
        with torch.autocast(outputs.class_logits.device.type, enabled=False):
            return self.losses(outputs, targets, matches)

    def losses(
        self, outputs: Outputs, targets: list[Targets], matches: list[list[Matches]]
    ) -> dict[str, Tensor]:
        """What `forward` returns, computed in full precision."""
        raise NotImplementedError


class WeightedCriterion(Criterion):
    """A base with nothing to set but the weight of the loss."""

    @configurable
    def __init__(self, *, weight: float) -> None:
        super().__init__()
        self.weight = weight
