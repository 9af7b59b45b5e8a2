"""Places in the repository, settings that make a run small, embeddings and plain configs."""

from __future__ import annotations

from pathlib import Path

import torch
import yaml
from detectron2.config import CfgNode
from torch.nn import functional as F

from alignzeg.commands.ksplits import split_opts

REPOSITORY = Path(__file__).resolve().parent.parent
CONFIGS = REPOSITORY / "configs"
TOY_PLUGIN = Path(__file__).parent / "toy_plugin.py"
# KEY VALUE pairs: zeroshapes with four unseen classes.
K4 = split_opts("zeroshapes", 4)
TINY_OPTS = [
    "MODEL.DEVICE",
    "cpu",
    "SOLVER.IMS_PER_BATCH",
    "2",
    "SOLVER.MAX_ITER",
    "2",
    "SOLVER.WARMUP_ITERS",
    "0",
    "ALIGNZEG.EXTRACTOR.NUM_QUERIES",
    "9",
    "ALIGNZEG.EXTRACTOR.HIDDEN_DIM",
    "32",
    "ALIGNZEG.EXTRACTOR.FFN_DIM",
    "32",
]


def unit(*shape: int) -> torch.Tensor:
    """Random embeddings of length 1."""
    return F.normalize(torch.randn(*shape), dim=-1)


def plain(cfg: CfgNode) -> dict:
    """A config without the difference between lists and tuples, which YAML does not know."""
    return yaml.safe_load(cfg.dump())
