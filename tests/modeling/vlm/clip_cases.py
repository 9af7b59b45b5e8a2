"""Tiny open_clip models."""

from __future__ import annotations

import torch
from torch import Tensor

TEXT = {"context_length": 24, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2}


TOWERS = {
    "test-vit": {"image_size": 32, "layers": 4, "width": 32, "head_width": 16, "patch_size": 8},
    "test-quick": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "test-resnet": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None},
    "test-convnext": {
        "image_size": 64,
        "timm_model_name": "convnext_atto",
        "timm_model_pretrained": False,
        "timm_pool": "avg",
        "timm_proj": "linear",
    },
}


def some_image(height: int = 32, width: int = 32, batch: int = 2) -> Tensor:
    return torch.rand(batch, 3, height, width) * 255
