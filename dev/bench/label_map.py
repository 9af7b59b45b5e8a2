"""Rows of the label map: classes x masks and the argmax, from 100 proposals."""

from __future__ import annotations

import logging
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from alignzeg.modeling.semantic_inference import semantic_inference
from bench.measure import Result, Row, Sides, memory, peak_mib, timed

MEMORY_MIB = 32  # the default of ALIGNZEG.TEST.MEMORY_MIB
QUERIES = 100
TOY = 64  # side in pixels at toy size


def proposals(classes: int, size: int, queries: int = QUERIES) -> tuple[Tensor, Tensor]:
    """Random class logits (Q, K+1) and mask logits (Q, size / 4, size / 4) of smooth blobs."""
    rng = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(queries, classes + 1, generator=rng)
    coarse = 6 * torch.randn(1, queries, max(2, size // 32), max(2, size // 32), generator=rng)
    masks = F.interpolate(coarse, (size // 4, size // 4), mode="bicubic")[0].contiguous()
    return logits, masks


def usual_scores(
    probs: Tensor,
    masks: Tensor,
    padded: tuple[int, int],
    image: tuple[int, int],
    output: tuple[int, int],
) -> Tensor:
    """(K, H, W) scores in MaskFormer's order: upsample, product, crop, resize to the output.

    Source: MaskFormer (arXiv 2107.06278), whose code ends in Detectron2's sem_seg_postprocess.
    """
    full = F.interpolate(masks[None], padded, mode="bilinear", align_corners=False)[0]
    scores = torch.einsum("qk,qhw->khw", probs, full.sigmoid())[:, : image[0], : image[1]]
    if image == output:
        return scores
    return F.interpolate(scores[None], output, mode="bilinear", align_corners=False)[0]


def padded_sizes(size: int) -> tuple[tuple[int, int], ...]:
    """Sizes of the padded image, of the image in it, and of another label map."""
    image = (size - size // 16, size - size // 8)
    return (size, size), image, (image[0] * 5 // 4, image[1] * 5 // 4)


def exact(classes: int, size: int, quick: bool, geometry: str = "plain") -> Sides:
    """Our exact mode beside the usual order."""
    size = TOY if quick else size
    logits, masks = proposals(classes, size)
    probs = logits.softmax(-1)[:, :-1].contiguous()
    sizes = padded_sizes(size) if geometry == "padded" else ((size, size),) * 3

    def ours() -> Tensor:
        return semantic_inference(probs, masks, *sizes, MEMORY_MIB)

    def peer() -> Tensor:
        return usual_scores(probs, masks, *sizes).argmax(0)

    return {"ours": ours, "peer": peer}


def fast(quick: bool) -> Sides:
    """Our fast mode beside the order of transformers, by its own function."""
    from transformers import MaskFormerImageProcessor

    logging.getLogger("transformers").setLevel(logging.ERROR)
    size = TOY if quick else 512
    logits, masks = proposals(171, size)
    processor = MaskFormerImageProcessor()
    output = SimpleNamespace(class_queries_logits=logits[None], masks_queries_logits=masks[None])
    sizes = ((size, size),) * 3

    def ours() -> Tensor:
        probs = logits.softmax(-1)[:, :-1]
        return semantic_inference(probs, masks, *sizes, MEMORY_MIB, "fast")

    def peer() -> Tensor:
        return processor.post_process_semantic_segmentation(output, [(size, size)])[0]

    return {"ours": ours, "peer": peer}


def all_equal(ours: Tensor, peer: Tensor) -> str:
    """Both label maps are the same to the pixel."""
    differ = int((ours.long() != peer).sum())
    if differ:
        raise AssertionError(f"{differ} of {ours.numel()} pixels differ")
    return "0 pixels differ"


def equal_but_for_ties(classes: int, size: int, geometry: str, ours: Tensor, peer: Tensor) -> str:
    """Both label maps of `exact` are the same but where rounding decides."""
    differ = ours.long() != peer
    if not differ.any():
        return "0 pixels differ"
    made = padded_sizes(size)[2] if geometry == "padded" else (size, size)
    if tuple(ours.shape) != made:
        size = TOY
    logits, masks = proposals(classes, size)
    probs = logits.double().softmax(-1)[:, :-1]
    sizes = padded_sizes(size) if geometry == "padded" else ((size, size),) * 3
    scores = usual_scores(probs, masks.double(), *sizes)[:, differ]
    lost = scores.amax(0) - scores.gather(0, ours[differ].long()[None])[0]
    if lost.max() > 1e-6:
        raise AssertionError(
            f"{int(differ.sum())} pixels differ, by {float(lost.max()):g} of score"
        )
    return f"{int(differ.sum())} pixels differ, whose two best scores do by less than 1e-6"


def difference(size: int = 512) -> float:
    """Share of pixels in which the fast mode differs from the exact one, at 171 classes."""
    logits, masks = proposals(171, size)
    probs = logits.softmax(-1)[:, :-1].contiguous()
    sizes = ((size, size),) * 3
    one, other = (
        semantic_inference(probs, masks, *sizes, MEMORY_MIB, mode) for mode in ("exact", "fast")
    )
    return float((one != other).float().mean())


def fast_note(ours: Tensor, peer: Tensor) -> str:
    """Fast equals transformers' order; how far both are from the exact one."""
    differ = int((ours.long() != peer).sum())
    if differ > 1e-4 * ours.numel():
        raise AssertionError(f"{differ} of {ours.numel()} pixels differ from transformers' order")
    share = difference(ours.shape[0])
    return f"{differ} pixels differ from transformers; {100 * share:.2f} % from the exact order"


def grows_little(name: str, row: Row, quick: bool) -> Result:
    """Our memory at 20 classes over that at 847: 1 does not grow at all."""
    del name, row
    few, many = (peak_mib(f"label_map/memory_C{classes}", "ours", quick) for classes in (20, 847))
    return Result(many, few, few / many, "ours: 847 classes, peer: ours at 20 classes")


def _exact_row(goal: float, classes: int, size: int, **options: Any) -> Row:
    what = f"exact label map, {classes} classes, {size}², beside MaskFormer's order"
    build = partial(exact, classes, size)
    check = partial(equal_but_for_ties, classes, size, "plain")
    return Row(goal, what, timed, build, allocator=True, check=check, **options)


def _memory_row(goal: float, classes: int) -> Row:
    what = f"peak memory of the exact label map, {classes} classes, 1024²"
    return Row(goal, what, memory, partial(exact, classes, 1024), unit="MiB")


ROWS = {
    "label_map/C20_512": _exact_row(1.9, 20, 512),
    "label_map/C171_512": _exact_row(2.2, 171, 512),
    "label_map/C171_1024": _exact_row(2.2, 171, 1024, seconds=10.0),
    "label_map/C847_1024": _exact_row(5.0, 847, 1024, seconds=20.0, least=2),
    "label_map/padded_resized": Row(
        2.2,
        "the same, 171 classes, 512² with padding and a true second resize",
        timed,
        partial(exact, 171, 512, geometry="padded"),
        allocator=True,
        check=partial(equal_but_for_ties, 171, 512, "padded"),
    ),
    "label_map/fast": Row(
        4.5,
        "fast label map, 171 classes, 512², beside transformers' post-processing",
        timed,
        fast,
        allocator=True,
        check=fast_note,
    ),
    "label_map/memory_C20": _memory_row(0, 20),
    "label_map/memory_C171": _memory_row(15, 171),
    "label_map/memory_C847": _memory_row(15, 847),
    "label_map/memory_growth": Row(
        1 / 1.1, "our peak memory, 20 classes over 847", grows_little, unit="MiB"
    ),
}
