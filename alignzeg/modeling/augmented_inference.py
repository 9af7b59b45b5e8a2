"""A model that looks at one image several times: scales, mirror images, windows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.structures import ImageList
from torch import Tensor

from alignzeg.modeling.layers import MASK_STRIDE
from alignzeg.modeling.test_time_augmentation import (
    Frame,
    TestTimeAugmentation,
    View,
    merge_views,
    whole_masks,
)
from alignzeg.structures import Vocabulary


def cut_views(
    augmentation: TestTimeAugmentation, image: Tensor, size_divisibility: int
) -> Iterator[tuple[Frame, ImageList]]:
    """Each view of an image (3, H, W) in 0..255: where it lies, and its pixels, padded."""
    scaled = image
    for frame in augmentation.frames((image.shape[1], image.shape[2])):
        if tuple(scaled.shape[-2:]) != frame.scaled:
            scaled = resized(image, frame.scaled)
        yield frame, ImageList.from_tensors([frame.cut(scaled)], size_divisibility)


def segment_augmented(model: Any, item: dict[str, Any], vocabulary: Vocabulary) -> dict[str, Any]:
    """One image looked at as `model.augmentation` says, one view after the other.

    Returns:
        What `AlignZeg.forward` returns for an image, without "background". The proposals are those
        of the first scale's views that are not mirrored.
    """
    image = item["image"].to(model.device).float()
    views, shown = [], []
    for frame, images in cut_views(model.augmentation, image, model.size_divisibility):
        outputs = model.outputs(images, vocabulary)
        probs = model.class_probs(outputs, vocabulary)[0]
        logits = outputs.proposals[-1].mask_logits[0].float()
        weighted_probs = model.weighted_probs(probs, logits)[:, :-1]
        view = View(frame, weighted_probs, logits, tuple(images.tensor.shape[-2:]))
        views.append(view)
        if frame.scaled == views[0].frame.scaled and not frame.mirrored:
            shown.append((view, probs, outputs.unseen_logits))
    size = (item.get("height", image.shape[1]), item.get("width", image.shape[2]))
    limits = {key: model.inference_opts[key] for key in ("memory_mib", "reject_below")}
    confidence = torch.empty(size, device=image.device) if item.get("confidence") else None
    indicated = [unseen[0].float().sigmoid() for *_, unseen in shown if unseen is not None]
    return {
        "sem_seg": merge_views(views, size, **limits, confidence=confidence).cpu(),
        "confidence": confidence,
        "mask_logits": whole_masks([view for view, *_ in shown], MASK_STRIDE),
        "class_probs": torch.cat([probs for _, probs, _ in shown]),
        "unseen_probs": torch.cat(indicated) if indicated else None,
    }


def resized(image: Tensor, size: tuple[int, int]) -> Tensor:
    """An image (3, H, W) in 0..255 at another height and width, smoothed where it shrinks."""
    return F.interpolate(image[None], size, mode="bilinear", antialias=True)[0].clamp(0, 255)
