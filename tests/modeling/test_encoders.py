"""Detectron2's image encoders, as this project builds them."""

from __future__ import annotations

import torch

from alignzeg.engine import setup_config
from alignzeg.modeling.encoders import build_image_encoder


def test_channels_last_changes_memory_and_no_feature() -> None:
    small = ("MODEL.RESNETS.RES2_OUT_CHANNELS", "16", "MODEL.RESNETS.WIDTH_PER_GROUP", "4")
    found = {}
    for last in (False, True):
        opts = [*small, "MODEL.DEVICE", "cpu", "ALIGNZEG.ENCODER.CHANNELS_LAST", str(last)]
        cfg = setup_config("configs/coco_stuff/baseline_R50.yaml", opts)
        torch.manual_seed(0)
        encoder = build_image_encoder(cfg)
        kernels = [p for p in encoder.parameters() if p.dim() == 4 and min(p.shape[1:]) > 1]
        assert all(not k.is_contiguous() for k in kernels) == last
        found[last] = encoder(torch.ones(1, 3, 64, 64) * torch.linspace(-1, 1, 64))
    assert found[True]["p2"].is_contiguous(memory_format=torch.channels_last)
    for name, feature in found[False].items():
        torch.testing.assert_close(found[True][name], feature, rtol=1e-4, atol=1e-4)
