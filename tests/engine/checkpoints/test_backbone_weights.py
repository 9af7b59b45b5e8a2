"""Published image encoders load through Detectron2's checkpointer: its two kinds of R-50.pkl."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from helpers import CONFIGS
from torch import nn

from alignzeg.engine import setup_config, validate
from alignzeg.engine.checkpoints.checkpoint import AlignZegCheckpointer

NARROW = [
    *("MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "ALIGNZEG.VLM.MODEL", "alignzeg-tiny"),
    *("MODEL.RESNETS.RES2_OUT_CHANNELS", "16", "MODEL.RESNETS.WIDTH_PER_GROUP", "4"),
    *("MODEL.RESNETS.STEM_OUT_CHANNELS", "8", "MODEL.FPN.OUT_CHANNELS", "32"),
    *("ALIGNZEG.EXTRACTOR.HIDDEN_DIM", "32", "ALIGNZEG.EXTRACTOR.LAYERS", "1"),
    *("ALIGNZEG.VLM.WEIGHTS", ""),
]


@pytest.fixture
def model() -> nn.Module:
    return build_model(setup_config(CONFIGS / "voc2012" / "alignzeg_R50.yaml", NARROW))


def new_weights(model: nn.Module) -> dict[str, np.ndarray]:
    """Other values for every entry of the image encoder, as a published file would bring."""
    random = np.random.default_rng(1)
    entries = model.backbone.bottom_up.state_dict()
    return {key: random.random(value.shape, np.float32) for key, value in entries.items()}


def converted_torchvision(weights: dict[str, np.ndarray]) -> dict:
    """The layout of Detectron2's converter of torchvision models."""
    weights = {**weights, "stem.fc.weight": np.zeros((10, 4), np.float32)}
    return {"model": weights, "__author__": "torchvision", "matching_heuristics": True}


def msra(weights: dict[str, np.ndarray]) -> dict:
    """The layout of Caffe2's R-50.pkl: blobs, and scale and shift in place of batch norm."""
    blobs = {"fc1000_w": np.zeros((10, 4), np.float32)}
    ends = {"weight": "w", "norm.weight": "bn_s", "norm.bias": "bn_b"}
    for key, value in weights.items():
        found = re.fullmatch(r"(stem|res(\d)\.(\d+))\.(conv(\d)|shortcut)\.(.*)", key)
        stage, block, index, end = found[2], found[3], found[5], ends.get(found[6])
        if end is None:
            continue
        if found[1] == "stem":
            name = "conv1_w" if end == "w" else f"res_conv1_{end}"
        else:
            branch = "branch1" if index is None else f"branch2{'abc'[int(index) - 1]}"
            name = f"res{stage}_{block}_{branch}_{end}"
        blobs[name] = value
    return {"blobs": blobs}


@pytest.mark.parametrize(
    ("layout", "statistics"),
    [(converted_torchvision, True), (msra, False)],
    ids=["torchvision", "msra"],
)
def test_an_image_encoder_is_filled_and_nothing_else(
    layout, statistics: bool, model: nn.Module, tmp_path: Path
) -> None:
    weights = new_weights(model)
    path = tmp_path / "R-50.pkl"
    path.write_bytes(pickle.dumps(layout(weights)))
    others = {
        key: value.clone()
        for key, value in model.state_dict().items()
        if not key.startswith("backbone.bottom_up.")
    }
    AlignZegCheckpointer(model, trust_pickle=True).load(str(path))
    loaded = model.backbone.bottom_up.state_dict()
    assert len(loaded) == len(weights) > 200
    for key, value in weights.items():
        if statistics or "running" not in key:
            torch.testing.assert_close(loaded[key], torch.from_numpy(value), rtol=0, atol=0)
    for key, value in others.items():
        torch.testing.assert_close(model.state_dict()[key], value, rtol=0, atol=0)


def test_the_published_addresses_need_no_word_of_trust(monkeypatch, zeroshapes) -> None:
    for path in sorted(CONFIGS.glob("_base_/models/R*.yaml")):
        own = [*NARROW[:2], *NARROW[4:6], "ALIGNZEG.VLM.WEIGHTS", ""]
        data = ["DATASETS.TRAIN", "zeroshapes_train", "DATASETS.TEST", "zeroshapes_val"]
        cfg = setup_config(path, [*own, *data])
        assert cfg.MODEL.WEIGHTS.startswith("detectron2://ImageNetPretrained/")
        # The publisher's own order of channels and scale.
        msra = "MSRA" in cfg.MODEL.WEIGHTS
        assert cfg.INPUT.FORMAT == ("BGR" if msra else "RGB")
        assert cfg.MODEL.RESNETS.STRIDE_IN_1X1 == msra
        assert (cfg.MODEL.PIXEL_STD == [1.0] * 3) == msra
        validate(cfg)


def test_an_encoder_for_bgr_sees_bgr_and_the_vlm_rgb(zeroshapes) -> None:
    opts = [*NARROW, "MODEL.PIXEL_STD", "[1.0, 1.0, 1.0]", "DATASETS.TRAIN", "zeroshapes_train"]
    path = CONFIGS / "voc2012" / "alignzeg_R50.yaml"
    mean = {"RGB": "[1.0, 2.0, 3.0]", "BGR": "[3.0, 2.0, 1.0]"}
    answers = {}
    for order in mean:
        torch.manual_seed(0)
        more = ["INPUT.FORMAT", order, "MODEL.PIXEL_MEAN", mean[order]]
        built = build_model(setup_config(path, [*opts, *more])).eval()
        stem = built.backbone.bottom_up.stem.conv1.weight
        if order == "BGR":
            stem.data.copy_(stem.data.flip(1))
        image = torch.randint(0, 256, (3, 64, 64), generator=torch.Generator().manual_seed(1))
        item = {"image": image.to(torch.uint8), "vocabulary": built.seen}
        with torch.inference_mode():
            answers[order] = built([item])[0]
    torch.testing.assert_close(answers["RGB"]["mask_logits"], answers["BGR"]["mask_logits"])
    torch.testing.assert_close(answers["RGB"]["class_probs"], answers["BGR"]["class_probs"])
    with pytest.raises(ValueError, match=r"INPUT\.FORMAT is 'L'"):
        build_model(setup_config(path, [*opts, "INPUT.FORMAT", "L"]))


def test_a_file_from_anywhere_needs_it(model: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "R-50.pkl"
    path.write_bytes(pickle.dumps(msra(new_weights(model))))
    with pytest.raises(ValueError, match=r"is a pickle.*--trust-pickle"):
        AlignZegCheckpointer(model).load(str(path))
