"""Checkpoints of a network that is one layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from alignzeg.engine.checkpoints.checkpoint import AlignZegCheckpointer
from alignzeg.structures import Vocabulary


class Model(nn.Module):
    seen = Vocabulary(("cat", "dog"), (True, True))
    vlm = type("VLM", (), {"id": "toy", "hash": "0123"})

    def __init__(self, value: float = 0.0) -> None:
        super().__init__()
        self.layer = nn.Linear(100, 100)
        nn.init.constant_(self.layer.weight, value)


def checkpointer(folder: Path, value: float = 0.0, **kwargs: Any) -> AlignZegCheckpointer:
    return AlignZegCheckpointer(Model(value), str(folder), config="SEED: 1\n", **kwargs)


def save(folder: Path, step: int, **kwargs: Any) -> str:
    checkpointer(folder, float(step), **kwargs).save(f"model_{step:07d}", iteration=step)
    return str(folder / f"model_{step:07d}.pth")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())
