"""A model that looks at one image several times: scales, mirror images, windows."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.structures import ImageList
from torch import Tensor

from alignzeg.modeling.interpolation import Size
from alignzeg.modeling.layers import MASK_STRIDE
from alignzeg.modeling.test_time_augmentation import (
    Frame,
    TestTimeAugmentation,
    View,
    merge_views,
    whole_masks,
)
from alignzeg.structures import Vocabulary

logger = logging.getLogger(__name__)


def build_test_time_augmentation(cfg: CfgNode) -> TestTimeAugmentation:
    """The views that TEST.AUG (several scales, flip) and ALIGNZEG.TEST.WINDOW ask for."""
    aug, test = cfg.TEST.AUG, cfg.ALIGNZEG.TEST
    made = TestTimeAugmentation(
        sides=tuple(aug.MIN_SIZES) if aug.ENABLED else (),
        max_side=aug.MAX_SIZE if aug.ENABLED else 0,
        flip=aug.ENABLED and aug.FLIP,
        window=test.WINDOW,
        stride=test.WINDOW_STRIDE or -(-2 * test.WINDOW // 3),
    )
    if not made.single and test.SEMANTIC_INFERENCE != "exact":
        logger.warning(
            "ALIGNZEG.TEST.SEMANTIC_INFERENCE %s: no effect with TEST.AUG or windows, which are "
            "folded exactly",
            test.SEMANTIC_INFERENCE,
        )
    if test.WINDOW_STRIDE and not test.WINDOW:
        logger.warning(
            "ALIGNZEG.TEST.WINDOW_STRIDE %d: no effect without ALIGNZEG.TEST.WINDOW",
            test.WINDOW_STRIDE,
        )
    return made


def cut_views(
    augmentation: TestTimeAugmentation, image: Tensor, output_size: Size, size_divisibility: int
) -> Iterator[tuple[Frame, ImageList]]:
    """Each view of an image (3, H, W) in 0..255: where it lies, and its pixels, padded.

    `output_size` is that of the answer; where the image is smaller, windows are told of it.
    """
    size = (image.shape[1], image.shape[2])
    if augmentation.window and size[0] * size[1] < output_size[0] * output_size[1]:
        _say_smaller(augmentation.window, size, output_size)
    scaled = image
    for frame in augmentation.frames(size):
        if tuple(scaled.shape[-2:]) != frame.scaled:
            scaled = resized(image, frame.scaled)
        yield frame, ImageList.from_tensors([frame.cut(scaled)], size_divisibility)


_SAID: set[int] = set()


def _say_smaller(window: int, size: Size, output_size: Size) -> None:
    """Once: windows see the image that they are given, which was resized before."""
    if window not in _SAID:
        _SAID.add(window)
        effect = "one window holds all of it" if max(size) <= window else "and cut that"
        logger.warning(
            "ALIGNZEG.TEST.WINDOW %d: windows look at the image as INPUT.MIN_SIZE_TEST and "
            "MAX_SIZE_TEST resize it, here at %d x %d of %d x %d pixels, %s; larger values let "
            "them see more",
            *(window, size[1], size[0], output_size[1], output_size[0], effect),
        )


def segment_augmented(model: Any, item: dict[str, Any], vocabulary: Vocabulary) -> dict[str, Any]:
    """One image looked at as `model.augmentation` says, one view after the other.

    Returns:
        What `AlignZeg.forward` returns for an image, without "background". The proposals are the
        surest of the first scale's views that are not mirrored, as many as one view has: all of
        them, each on the grid of the whole image, would take memory that grows with its square.
    """
    image = item["image"].to(model.device).float()
    size = (item.get("height", image.shape[1]), item.get("width", image.shape[2]))
    views, shown = [], []
    for frame, images in cut_views(model.augmentation, image, size, model.size_divisibility):
        outputs = model.outputs(images, vocabulary)
        probs = model.class_probs(outputs, vocabulary)[0]
        logits = outputs.proposals[-1].mask_logits[0].float()
        weighted_probs = model.weighted_probs(probs, logits)[:, :-1]
        view = View(frame, weighted_probs, logits, tuple(images.tensor.shape[-2:]))
        views.append(view)
        if frame.scaled == views[0].frame.scaled and not frame.mirrored:
            unseen = outputs.unseen_logits
            shown.append((view, probs, None if unseen is None else unseen[0].float().sigmoid()))
    limits = {key: model.inference_opts[key] for key in ("memory_mib", "reject_below")}
    confidence = torch.empty(size, device=image.device) if item.get("confidence") else None
    return {
        "sem_seg": merge_views(views, size, **limits, confidence=confidence).cpu(),
        "confidence": confidence,
        **_surest(shown),
    }


def _surest(shown: Sequence[tuple[View, Tensor, Tensor | None]]) -> dict[str, Tensor | None]:
    """Of (view, (Q, K+1) probabilities, (Q,) unseen scores): the Q surest, in their order."""
    views, probs, unseen = zip(*shown, strict=True)
    scores = torch.cat([one[:, :-1].amax(1) for one in probs])
    kept = torch.zeros_like(scores, dtype=torch.bool)
    kept[scores.topk(len(probs[0])).indices] = True
    parts = kept.split([len(one) for one in probs])
    placed = [
        replace(view, mask_logits=view.mask_logits[part])
        for view, part in zip(views, parts, strict=True)
    ]
    return {
        "mask_logits": whole_masks(placed, MASK_STRIDE),
        "class_probs": torch.cat(probs)[kept],
        "unseen_probs": None if unseen[0] is None else torch.cat(unseen)[kept],
    }


def resized(image: Tensor, size: tuple[int, int]) -> Tensor:
    """An image (3, H, W) in 0..255 at another height and width, smoothed where it shrinks."""
    return F.interpolate(image[None], size, mode="bilinear", antialias=True)[0].clamp(0, 255)
