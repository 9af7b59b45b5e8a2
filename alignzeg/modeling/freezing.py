"""MODEL.BACKBONE.FREEZE_AT: which parts of an image encoder have no gradient."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from detectron2.config import CfgNode
from torch import nn

KEY = "MODEL.BACKBONE.FREEZE_AT"
# The stem, and four stages.
MOST = 5


def validate_freezing(cfg: CfgNode, weights: str = "") -> int:
    """How many parts of an encoder are to be frozen: 1 is the stem, 2 also the first stage, to 5.

    Args:
        cfg: the config.
        weights: of the encoder itself, beside MODEL.WEIGHTS.

    Raises:
        ValueError: if it is out of range, or what would be frozen has random values.
    """
    count = cfg.MODEL.BACKBONE.FREEZE_AT
    name = cfg.MODEL.BACKBONE.NAME
    if not 0 <= count <= MOST:
        raise ValueError(f"{KEY} is {count}; it counts frozen stages, 0 to {MOST}")
    if count and not (weights or cfg.MODEL.WEIGHTS):
        raise ValueError(
            f"{KEY} is {count}, but nothing gives {name} weights, so that random values would be "
            "frozen: set it to 0, or MODEL.WEIGHTS to a file with weights of the encoder"
        )
    return count


def freeze(parts: Sequence[Iterable[nn.Parameter]], count: int) -> None:
    """Takes the gradient from the first parts."""
    for part in parts[:count]:
        for parameter in part:
            parameter.requires_grad_(False)
