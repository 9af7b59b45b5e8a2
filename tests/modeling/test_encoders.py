"""Detectron2's image encoders, as this project builds them."""

from __future__ import annotations

import logging

import pytest
import torch
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone.fpn import build_resnet_fpn_backbone

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


def encoder(name: str, freeze_at: int, weights: str) -> torch.nn.Module:
    opts = ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", weights, "MODEL.BACKBONE.NAME", name]
    more = ["MODEL.BACKBONE.FREEZE_AT", str(freeze_at), "ALIGNZEG.ENCODER.TIMM_MODEL", "resnet18"]
    opts += [*more, "ALIGNZEG.ENCODER.TIMM_WEIGHTS", ""]
    return build_image_encoder(setup_config("configs/coco_stuff/baseline_R50.yaml", opts))


@pytest.mark.parametrize(
    ("name", "frozen", "next_part"),
    [
        ("build_small_fpn_backbone", ("stem", "res2"), "res3"),
        ("build_swin_fpn_backbone", ("patch_embed", "layers.0"), "layers.1"),
        (
            "build_vit_fpn_backbone",
            ("pos_embed", "patch_embed", "blocks.0", "blocks.2"),
            "blocks.3",
        ),
        ("build_resnet_fpn_backbone", ("stem", "res2"), "res3"),
        ("build_timm_fpn_backbone", ("network.model.conv1", "network.model.layer1"), "layer2"),
    ],
)
def test_freeze_at_freezes_or_is_refused(
    name: str, frozen: tuple[str, ...], next_part: str
) -> None:
    with pytest.raises(ValueError, match=f"FREEZE_AT is 2, but nothing gives {name} weights"):
        encoder(name, 2, "")
    parameters = dict(encoder(name, 2, "some.pth").named_parameters())
    still = {key for key, p in parameters.items() if not p.requires_grad}
    for part in frozen:
        inside = {key for key in parameters if f".{part}" in key}
        assert inside and inside <= still, part
    assert not any(f".{next_part}." in key for key in still)
    assert not any("fpn_" in key for key in still)


def test_an_encoder_that_freezes_nothing_is_told(caplog: pytest.LogCaptureFixture) -> None:
    def build_careless(cfg, input_shape):
        cfg = cfg.clone()
        cfg.MODEL.BACKBONE.FREEZE_AT = 0
        return build_resnet_fpn_backbone(cfg, input_shape)

    BACKBONE_REGISTRY._do_register("build_careless", build_careless)
    try:
        encoder("build_careless", 3, "some.pth")
    finally:
        del BACKBONE_REGISTRY._obj_map["build_careless"]
    assert "FREEZE_AT is 3, but build_careless freezes nothing" in caplog.text
    assert caplog.records[-1].levelno == logging.WARNING
