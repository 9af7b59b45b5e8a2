"""Augmentations of the field: scale jitter, category-aware crops, colour, flip."""

from __future__ import annotations

import random

import numpy as np
import pytest
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.projects.point_rend import ColorAugSSDTransform

from alignzeg.data.color_jitter import ColorJitter
from alignzeg.data.mapper import training_augmentations
from alignzeg.engine import setup_config


def config(*opts: str) -> CfgNode:
    quiet = ["INPUT.RANDOM_FLIP", "none", "ALIGNZEG.DATA.COLOR_JITTER", "False"]
    return setup_config("", [*quiet, "INPUT.MIN_SIZE_TRAIN", "(0,)", *opts])


def drawn(cfg: CfgNode, image: np.ndarray, labels: np.ndarray, times: int) -> list[T.AugInput]:
    inputs = []
    for seed in range(times):
        np.random.seed(seed)  # noqa: NPY002 (Detectron2 draws from the global generator)
        item = T.AugInput(image.copy(), sem_seg=labels.copy())
        T.AugmentationList(training_augmentations(cfg))(item)
        inputs.append(item)
    return inputs


@pytest.mark.parametrize(
    ("sampling", "expected"), [("choice", {20, 80}), ("range", set(range(20, 81)))]
)
def test_scale_jitter_takes_the_listed_sides_or_all_between(sampling, expected):
    cfg = config(
        *("INPUT.MIN_SIZE_TRAIN", "(20, 80)", "INPUT.MIN_SIZE_TRAIN_SAMPLING", sampling),
        *("INPUT.MAX_SIZE_TRAIN", "1000"),
    )
    image, labels = np.zeros((40, 60, 3), np.uint8), np.zeros((40, 60), np.uint8)
    inputs = drawn(cfg, image, labels, 30)
    sides = {min(item.image.shape[:2]) for item in inputs}
    assert sides <= expected and len(sides) >= (2 if sampling == "choice" else 10)
    assert all(item.image.shape[:2] == item.sem_seg.shape for item in inputs)


def test_a_crop_shows_more_than_one_class_where_it_can():
    labels = np.zeros((64, 64), np.uint8)
    labels[:, 40:] = 1
    labels[:8] = 255
    image = np.zeros((64, 64, 3), np.uint8)
    share = "ALIGNZEG.DATA.CROP_MAX_CLASS_SHARE"
    plain = drawn(config("ALIGNZEG.DATA.CROP_SIZE", "24"), image, labels, 40)
    aware = drawn(config("ALIGNZEG.DATA.CROP_SIZE", "24", share, "0.75"), image, labels, 40)

    def uniform(inputs: list[T.AugInput]) -> int:
        return sum(len(set(np.unique(item.sem_seg)) - {255}) == 1 for item in inputs)

    assert uniform(plain) > 10
    # Hidden pixels are no second class: such a crop is drawn again too.
    assert uniform(aware) <= 1
    assert all(item.image.shape == (24, 24, 3) for item in [*plain, *aware])


def test_a_image_smaller_than_the_crop_is_taken_whole():
    image, labels = np.zeros((10, 30, 3), np.uint8), np.zeros((10, 30), np.uint8)
    (item,) = drawn(config("ALIGNZEG.DATA.CROP_SIZE", "24"), image, labels, 1)
    assert item.image.shape == (10, 24, 3) and item.sem_seg.shape == (10, 24)


def test_colour_changes_the_image_and_a_flip_both():
    labels = np.arange(32, dtype=np.uint8).reshape(4, 8)
    image = np.repeat(labels[..., None] * 7, 3, axis=2)
    coloured = drawn(config("ALIGNZEG.DATA.COLOR_JITTER", "True"), image, labels, 10)
    assert all((item.sem_seg == labels).all() for item in coloured)
    assert any((item.image != image).any() for item in coloured)
    flipped = drawn(config("INPUT.RANDOM_FLIP", "horizontal"), image, labels, 10)
    kinds = {bool((item.sem_seg == labels[:, ::-1]).all()) for item in flipped}
    assert kinds == {True, False}
    for item in flipped:
        np.testing.assert_array_equal(item.image[..., 0] // 7, item.sem_seg)


def test_colour_is_what_detectron2_makes_of_it_to_the_bit() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (32, 48, 3), dtype=np.uint8)
    images = [image, image[4:-4, 6:-6], np.full((2, 2, 3), 255, np.uint8)]
    changed = 0
    for seed in range(60):
        for original in images:
            random.seed(seed)
            expected = ColorAugSSDTransform(img_format="RGB").apply_image(original.copy())
            state = random.getstate()
            random.seed(seed)
            found = ColorJitter().apply_image(original.copy())
            assert random.getstate() == state
            np.testing.assert_array_equal(found, expected)
            changed += not np.array_equal(found, original)
    assert changed > 90
