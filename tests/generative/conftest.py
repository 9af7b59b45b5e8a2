"""A small model of the pixel-level family."""

from __future__ import annotations

import pytest
import torch
from detectron2.config import CfgNode
from generative_cases import RECURSIVE, SMALL
from helpers import CONFIGS, K4

from alignzeg.engine import setup_config
from alignzeg.engine.training.trainer import Trainer


@pytest.fixture
def opts(zeroshapes, tiny_opts, tmp_path) -> list[str]:
    """Small rounds over an untrained pixel network."""
    cfg = setup_config(CONFIGS / "zeroshapes" / "pixel.yaml", [*tiny_opts, *K4])
    weights = tmp_path / "pixel.pth"
    torch.save({"model": Trainer.build_model(cfg).state_dict()}, weights)
    return [*tiny_opts, *SMALL, *K4, "MODEL.WEIGHTS", str(weights)]


@pytest.fixture
def cfg(opts) -> CfgNode:
    return setup_config(RECURSIVE, opts)


@pytest.fixture
def model(cfg):
    return Trainer.build_model(cfg)
