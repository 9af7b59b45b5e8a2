"""Large images and strips cost a bounded amount; words and devices that are not there are named."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import transforms as T  # noqa: N812 (Detectron2's own alias)
from detectron2.modeling import build_model
from detectron2.utils.env import seed_all_rng
from helpers import CONFIGS, TINY_OPTS
from PIL import Image

from alignzeg.__main__ import main
from alignzeg.data.mapper import ShorterSide
from alignzeg.engine import AlignZegCheckpointer, require_device, setup_config
from alignzeg.inference import Predictor
from alignzeg.inference.predictor import limited
from alignzeg.modeling.vlm.encoding import resized


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of an untrained model."""
    folder = tmp_path_factory.mktemp("weights")
    seed_all_rng(0)
    cfg = setup_config(CONFIGS / "zeroshapes" / "alignzeg.yaml", TINY_OPTS)
    AlignZegCheckpointer(build_model(cfg), str(folder), config=cfg.dump()).save("model")
    return folder / "model.pth"


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("size", "most"), [((10, 10), 0), ((4000, 6000), 2_000_000), ((1, 90), 7), ((50, 60), 2400)]
)
def test_a_limit_keeps_shape_and_is_never_passed(size: tuple[int, int], most: int) -> None:
    height, width = limited(size, most)
    if not most:
        assert (height, width) == size
        return
    assert min(height, width) >= 1 and height * width <= most
    assert height * width >= 0.5 * most
    if size == (4000, 6000):
        assert width / height == pytest.approx(1.5, rel=1e-2)


def test_larger_images_are_looked_at_smaller_and_answered_whole(weights, caplog) -> None:
    classes = ["red star", "brick"]
    predictor = Predictor(weights, classes, "cpu", max_pixels=64 * 64)
    inputs: list[tuple[int, ...]] = []
    predictor.model.register_forward_pre_hook(
        lambda _, given: inputs.append(tuple(given[0][0]["image"].shape))
    )
    with caplog.at_level(logging.WARNING):
        answer = predictor(noise(128, 96))
    assert answer.labels.shape == (128, 96) and answer.image.shape == (128, 96, 3)
    ((_, height, width),) = inputs
    assert height * width <= 64 * 64 and height > width
    assert "96 x 128 pixels" in caplog.text and f"{width} x {height}" in caplog.text
    # Small ones are looked at as they are.
    caplog.clear()
    small = noise(40, 50)
    same = Predictor(weights, classes, "cpu", max_pixels=0)(small)
    assert (predictor(small).labels == same.labels).all()
    assert "looked at as" not in caplog.text


@pytest.mark.parametrize("size", [(1, 700), (700, 1), (2, 300)])
@pytest.mark.parametrize("opts", [[], ["INPUT.MIN_SIZE_TEST", "96", "INPUT.MAX_SIZE_TEST", "128"]])
def test_strips_are_answered(weights, tmp_path, size, opts) -> None:
    answer = Predictor(weights, ["red star", "brick"], "cpu", opts)(noise(*size))
    assert answer.labels.shape == size
    assert all(path.stat().st_size for path in answer.save(tmp_path, "strip"))


def test_no_side_is_resized_to_nothing() -> None:
    made = ShorterSide([96, 96], 128).get_transform(noise(1, 3000))
    assert made.apply_image(noise(1, 3000)).shape == (1, 128, 3)
    theirs = T.ResizeShortestEdge([96, 96], 128).get_transform(noise(50, 60))
    ours = ShorterSide([96, 96], 128).get_transform(noise(50, 60))
    assert (ours.new_h, ours.new_w) == (theirs.new_h, theirs.new_w)


@pytest.mark.parametrize("size", [(1, 3000), (3000, 1), (32, 3008), (10, 1000), (1, 10**5)])
def test_what_the_vlm_sees_of_a_strip_is_bounded(size: tuple[int, int]) -> None:
    seen = resized(torch.zeros(1, 3, *size), 128, (16, 16))
    rows, columns = seen.shape[2] // 16, seen.shape[3] // 16
    assert rows * 16 == seen.shape[2] and columns * 16 == seen.shape[3]
    # 4 squares of 8 x 8 patches; where the shorter side cannot be less than one patch, half of it.
    assert rows * columns <= 4 * 64


@pytest.mark.parametrize("size", [(100, 100), (100, 400), (300, 90)])
def test_ordinary_shapes_keep_the_shorter_side(size: tuple[int, int]) -> None:
    seen = resized(torch.zeros(1, 3, *size), 128, (16, 16))
    assert min(seen.shape[-2:]) == 128


# ---------------------------------------------------------------------------------- words, devices
def test_words_that_the_bundled_clip_never_read_are_named_once(weights, caplog) -> None:
    with caplog.at_level(logging.WARNING):
        predictor = Predictor(weights, ["red star", "a cat", "Zebra; wild horse"], "cpu")
        for _ in range(2):
            predictor(noise(32, 32))
    (line,) = [r.getMessage() for r in caplog.records if "never read" in r.getMessage()]
    assert "'cat', 'zebra', 'wild', 'horse'" in line and "'red'" not in line
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        predictor(noise(32, 32), classes=["a blue ring on the ground", "grass"])
    assert "never read" not in caplog.text


def test_a_device_that_is_asked_for_must_be_there(weights, monkeypatch, tmp_path, capsys) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for build in (
        lambda: Predictor(weights, ["a"], "cuda"),
        lambda: Predictor(weights, ["a"], opts=["MODEL.DEVICE", "cuda:0"]),
    ):
        with pytest.raises(ValueError, match="no GPU that PyTorch can use.*cpu"):
            build()
    with pytest.raises(ValueError, match="--device is 'cud', which is no device"):
        require_device("cud")
    Image.fromarray(noise(8, 8)).save(tmp_path / "x.png")
    common = [str(tmp_path / "x.png"), "--weights", str(weights), "--classes", "grass, brick"]
    assert main(["predict", *common, "--device", "cuda", "--output", str(tmp_path / "o")]) == 2
    assert capsys.readouterr().err.startswith("error: --device is 'cuda', but this machine has no")
    assert not (tmp_path / "o").exists()


def test_a_wrong_place_for_results_names_the_option_before_any_work(
    weights, tmp_path, capsys
) -> None:
    Image.fromarray(noise(8, 8)).save(tmp_path / "x.png")
    (tmp_path / "file").write_text("kept")
    common = ["--weights", "no.pth", "--classes", "grass, brick"]
    assert (
        main(["predict", str(tmp_path / "x.png"), *common, "--output", str(tmp_path / "file")]) == 2
    )
    assert "--output is" in (said := capsys.readouterr().err) and said.count("\n") == 1
    assert (tmp_path / "file").read_text() == "kept"
