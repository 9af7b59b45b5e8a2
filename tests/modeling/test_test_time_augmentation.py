"""Several views of one image: frames, folding, and the whole model through windows and scales."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model
from helpers import CONFIGS
from torch import Tensor

from alignzeg.data.mapper import ZeroShotMapper
from alignzeg.engine import setup_config
from alignzeg.modeling.semantic_inference import semantic_inference
from alignzeg.modeling.test_time_augmentation import (
    Frame,
    TestTimeAugmentation,
    View,
    merge_views,
    whole_masks,
)

SIZES = [(64, 64), (61, 97), (40, 130), (17, 9)]


def padded_to(size: Sequence[int], step: int = 32) -> tuple[int, int]:
    return tuple(-(-edge // step) * step for edge in size)


def random_view(frame: Frame, classes: int = 5, queries: int = 4) -> View:
    padded = padded_to(frame.size)
    logits = torch.randn(queries, padded[0] // 4, padded[1] // 4) * 3
    return View(frame, torch.rand(queries, classes), logits, padded)


@pytest.mark.parametrize("size", SIZES)
def test_one_whole_view_is_the_plain_fold(size):
    view = random_view(Frame(size, 0, 0, size))
    plain = semantic_inference(
        view.class_probs, view.mask_logits, view.padded, size, size, memory_mib=1.0
    )
    torch.testing.assert_close(merge_views([view], size, 0.01), plain, rtol=0, atol=0)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("window", [16, 32, 48])
def test_windows_cover_every_pixel_and_stay_inside(size, window):
    plan = TestTimeAugmentation(window=window, stride=window // 2)
    cover = torch.zeros(size)
    for frame in plan.frames(size):
        assert frame.size == tuple(min(edge, window) for edge in size)
        bottom, right = frame.top + frame.size[0], frame.left + frame.size[1]
        assert bottom <= size[0] and right <= size[1]
        cover[frame.top : bottom, frame.left : right] += 1
    assert cover.min() >= 1
    assert len(set(plan.frames(size))) == len(list(plan.frames(size)))


def test_scales_keep_the_shape_and_the_limit():
    frames = list(TestTimeAugmentation(sides=(32, 64), max_side=100, flip=True).frames((48, 96)))
    assert [frame.scaled for frame in frames] == [(32, 64)] * 2 + [(50, 100)] * 2
    assert [frame.mirrored for frame in frames] == [False, True] * 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"window": 32, "stride": 33}, "WINDOW_STRIDE is 33"),
        ({"window": 32, "stride": 0}, "WINDOW_STRIDE is 0"),
        ({"window": -1}, "WINDOW -1"),
        ({"sides": (0,)}, r"MIN_SIZES is \[0\]"),
    ],
)
def test_a_plan_that_cannot_be(settings, message):
    with pytest.raises(ValueError, match=message):
        TestTimeAugmentation(**settings)


def naive(views: Sequence[View], size: tuple[int, int]) -> Tensor:
    """Mean scores of every pixel, one at a time, by grid_sample."""
    classes = views[0].class_probs.shape[1]
    scores = torch.zeros(*size, classes, dtype=torch.float64)
    for row in range(size[0]):
        for column in range(size[1]):
            hits = []
            for view in views:
                frame = view.frame
                y = (row + 0.5) * frame.scaled[0] / size[0] - frame.top
                x = (column + 0.5) * frame.scaled[1] / size[1] - frame.left
                if not (0 <= y < frame.size[0] and 0 <= x < frame.size[1]):
                    continue
                x = frame.size[1] - x if frame.mirrored else x
                # No closer to the edge of the view than the centre of its last pixel.
                y = min(max(y, 0.5), frame.size[0] - 0.5)
                x = min(max(x, 0.5), frame.size[1] - 0.5)
                place = torch.tensor([2 * x / view.padded[1] - 1, 2 * y / view.padded[0] - 1])
                masks = F.grid_sample(
                    view.mask_logits[None].double(),
                    place.view(1, 1, 1, 2).double(),
                    padding_mode="border",
                    align_corners=False,
                ).view(-1)
                hits.append(masks.sigmoid() @ view.class_probs.double())
            scores[row, column] = torch.stack(hits).mean(0)
    return scores


@pytest.mark.parametrize(
    ("plan", "image", "output"),
    [
        (TestTimeAugmentation(window=16, stride=11), (29, 37), (29, 37)),
        (TestTimeAugmentation(sides=(20, 31), flip=True), (24, 32), (24, 32)),
        (TestTimeAugmentation(sides=(24,), window=16, stride=10, flip=True), (30, 40), (33, 44)),
    ],
)
def test_folding_equals_a_loop_over_pixels(plan, image, output):
    views = [random_view(frame) for frame in plan.frames(image)]
    expected = naive(views, output)
    best = expected.topk(2).values
    clear = best[..., 0] - best[..., 1] > 1e-5
    labels = merge_views(views, output, memory_mib=0.05)
    assert clear.float().mean() > 0.99
    assert (labels.long() == expected.argmax(-1))[clear].all()
    threshold = float(best[..., 0].median())
    rejected = merge_views(views, output, 0.05, reject_below=threshold) == 255
    sure = (best[..., 0] - threshold).abs() > 1e-5
    assert (rejected == (best[..., 0] < threshold))[sure].all()


def test_a_mirrored_view_of_a_mirrored_image_changes_nothing():
    frame = Frame((32, 64), 0, 0, (32, 64))
    view = random_view(frame)
    mirrored = dataclasses.replace(
        view, frame=dataclasses.replace(frame, mirrored=True), mask_logits=view.mask_logits.flip(2)
    )
    alone = merge_views([view], (32, 64), 1.0)
    torch.testing.assert_close(merge_views([mirrored], (32, 64), 1.0), alone)
    torch.testing.assert_close(merge_views([view, mirrored], (32, 64), 1.0), alone)


def test_what_does_not_fit_is_refused():
    whole, part = Frame((32, 32), 0, 0, (32, 32)), Frame((32, 32), 0, 0, (16, 32))
    with pytest.raises(ValueError, match="uncovered"):
        merge_views([random_view(part)], (32, 32), 1.0)
    with pytest.raises(ValueError, match=r"one number of classes; got \[5, 6\]"):
        merge_views([random_view(whole), random_view(whole, classes=6)], (32, 32), 1.0)


def test_many_classes_need_two_bytes():
    view = random_view(Frame((16, 16), 0, 0, (16, 16)), classes=300)
    assert merge_views([view], (16, 16), 1.0).dtype == torch.uint16


def test_masks_of_windows_lie_where_the_windows_are():
    plan = TestTimeAugmentation(window=32, stride=32)
    views = [random_view(frame) for frame in plan.frames((32, 64))]
    masks = whole_masks(views, 4)
    assert masks.shape == (8, 8, 16)
    torch.testing.assert_close(masks[:4, :, :8], views[0].mask_logits)
    torch.testing.assert_close(masks[4:, :, 8:], views[1].mask_logits)
    assert (masks[:4, :, 8:] == -20).all() and (masks[4:, :, :8] == -20).all()


# ------------------------------------------------------------------------------ the whole model
def predict(opts: list[str], tiny_opts: list[str], height: int = 64) -> dict:
    torch.manual_seed(0)
    cfg = setup_config(CONFIGS / "zeroshapes" / "alignzeg.yaml", [*tiny_opts, *opts])
    model = build_model(cfg).eval()
    sample = ZeroShotMapper(cfg, False)(DatasetCatalog.get("zeroshapes_val")[0])
    sample["height"] = height
    with torch.inference_mode():
        return model([sample])[0]


def test_one_scale_without_a_flip_is_the_plain_answer(zeroshapes, tiny_opts):
    plain = predict([], tiny_opts)
    opts = ["TEST.AUG.ENABLED", "True", "TEST.AUG.MIN_SIZES", "(64,)", "TEST.AUG.FLIP", "False"]
    once = predict(opts, tiny_opts)
    torch.testing.assert_close(once["sem_seg"], plain["sem_seg"], rtol=0, atol=0)
    for key in ("mask_logits", "class_probs", "unseen_probs"):
        torch.testing.assert_close(once[key], plain[key])


def test_scales_flips_and_windows_together(zeroshapes, tiny_opts):
    opts = ["TEST.AUG.ENABLED", "True", "TEST.AUG.MIN_SIZES", "(48, 96)"]
    opts += ["ALIGNZEG.TEST.WINDOW", "40"]
    answer = predict(opts, tiny_opts, height=70)
    assert answer["sem_seg"].shape == (70, 64)
    # As many proposals as one view has, of the four windows of the first scale.
    assert answer["class_probs"].shape[0] == 9
    assert answer["mask_logits"].shape == (9, 12, 12)
    assert answer["unseen_probs"].shape == (9,)
    assert np.isfinite(answer["class_probs"].numpy()).all()
