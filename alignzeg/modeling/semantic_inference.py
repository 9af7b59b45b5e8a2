"""Proposals to a label map: class probabilities times masks, in parts with the argmax inside.

The usual order upsamples all Q masks, multiplies by all K classes and takes the argmax of a
(K, H, W) map, which at 1024 x 1024 pixels and 847 classes needs 7 GB. Here a part of the answer
goes all the way to labels before the next one starts: small tiles on a CPU, see `label_tiles`,
stripes of as many rows as the memory allows elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from alignzeg.modeling.interpolation import (
    Geometry,
    Size,
    interpolate,
    output_rows,
    temporary_bytes,
)
from alignzeg.modeling.label_tiles import named_in_tiles


def semantic_inference(
    class_probs: Tensor,
    mask_logits: Tensor,
    padded_size: Size,
    image_size: Size,
    output_size: Size,
    memory_mib: float,
    mode: str = "exact",
    reject_below: float = 0.0,
    confidence: Tensor | None = None,
) -> Tensor:
    """Names every pixel: argmax over k of sum over q of class_probs[q, k] * sigmoid(mask q).

    The order of Detectron2: masks are upsampled bilinearly to the padded size and cropped to the
    image; where the output has another size, the class scores are resized bilinearly once more.
    A resize is linear, so the second one is done on the Q mask probabilities, before the product:
    the same scores up to rounding, without a map of K channels.

    Args:
        class_probs: (Q, K) 0 or more, without the background.
        mask_logits: (Q, h, w) of the padded image, usually at stride 4; finite.
        padded_size: height and width in pixels that (h, w) covers.
        image_size: height and width of the image inside the padding, at its top left.
        output_size: height and width of the answer.
        memory_mib: what the temporaries may take on a CPU, MiB; 16 times as much elsewhere. At
            least one tile or row is done at a time, also where that needs more.
        mode: "exact", or "fast": the product at the size of the logits, then the classes
            interpolated straight to the output. It differs in 1 to 2 % of the pixels, at edges.
        reject_below: pixels whose best score is lower get the highest number of the dtype.
        confidence: (Ho, Wo) floats that become the best score of each pixel, 0 or more.

    Returns:
        (Ho, Wo) label map on the device of the logits, uint8, or uint16 where K > 255. In "exact"
        mode it equals the plain formula except where the best two scores of a pixel differ by
        less than 1e-6, where rounding decides. Scores that are equal to the bit: the lower class.

    Raises:
        ValueError: if shapes do not fit, a size is not positive, or the mode is unknown.
    """
    sizes = (padded_size, image_size, output_size)
    _check(class_probs, mask_logits, *sizes, memory_mib, mode)
    dtype = torch.uint16 if class_probs.shape[1] > 255 else torch.uint8
    labels = torch.empty(output_size, dtype=dtype, device=mask_logits.device)
    geometry = Geometry((mask_logits.shape[1], mask_logits.shape[2]), *sizes)
    scored = reject_below > 0 or confidence is not None
    memory = temporary_bytes(memory_mib, labels.device)
    named = named_in_tiles if labels.device.type == "cpu" else named_in_stripes
    # Autocast would round the scores to eight bits.
    with torch.autocast(labels.device.type, enabled=False):
        parts = (class_probs.float(), mask_logits, geometry, memory, mode == "fast", scored)
        for rows, names, best in named(*parts):
            if best is not None and reject_below > 0:
                names = names.masked_fill(best < reject_below, torch.iinfo(dtype).max)
            labels[rows] = names.to(dtype)
            if best is not None and confidence is not None:
                confidence[rows] = best
    return labels


def named_in_stripes(
    class_probs: Tensor, logits: Tensor, geometry: Geometry, memory: int, fast: bool, scored: bool
) -> Iterator[tuple[slice, Tensor, Tensor | None]]:
    """As `named_in_tiles`, of all classes and as many rows at a time as the memory allows.

    It never waits for the device.
    """
    height, width = geometry.output
    values, by_class = logits.float(), class_probs.T.contiguous()
    if fast:
        scores = by_class @ values.sigmoid().flatten(1)
        values = scores.view(-1, *values.shape[1:])
        index = torch.arange(width, device=values.device)
        columns = geometry.direct_positions(index, 1).taps(geometry.low[1])
    # Of each row: masks or scores before and after an interpolation, and the scores.
    row_bytes = 4 * (2 * len(values) * max(width, geometry.padded[1]) + len(by_class) * width)
    step = max(1, memory // row_bytes)
    for start in range(0, height, step):
        rows = torch.arange(start, min(start + step, height), device=values.device)
        if fast:
            taps = geometry.direct_positions(rows, 0).taps(geometry.low[0])
            scores = interpolate(interpolate(values, taps, 1), columns, 2)
        else:
            masks = output_rows(values, rows, geometry)
            scores = (by_class @ masks.flatten(1)).view(-1, *masks.shape[1:])
        best, names = scores.max(0) if scored else (None, scores.argmax(0))
        yield slice(start, start + len(rows)), names, best


def background_wins(class_probs: Tensor, mask_logits: Tensor, memory_mib: float) -> Tensor:
    """Where the background, which is never named, would beat every class.

    Args:
        class_probs: (Q, K+1) in [0, 1], background last, as `semantic_inference` would sum them up.
        mask_logits: (Q, h, w).
        memory_mib: as there.

    Returns:
        (h, w) bool, at the size of the logits.
    """
    size = (mask_logits.shape[1], mask_logits.shape[2])
    labels = semantic_inference(class_probs, mask_logits, size, size, size, memory_mib)
    # Torch knows too few operations on uint16.
    return labels.int() == class_probs.shape[1] - 1


def _check(
    probs: Tensor, logits: Tensor, padded: Size, image: Size, output: Size, mib: float, mode: str
) -> None:
    if probs.dim() != 2 or logits.dim() != 3 or probs.shape[0] != logits.shape[0]:
        raise ValueError(
            "expected class_probs (Q, K) and mask_logits (Q, h, w) of the same Q; "
            f"got {tuple(probs.shape)} and {tuple(logits.shape)}"
        )
    if 0 in probs.shape or 0 in logits.shape:
        raise ValueError(f"no proposals in {tuple(probs.shape)} and {tuple(logits.shape)}")
    if min(*padded, *image, *output) < 1 or image[0] > padded[0] or image[1] > padded[1]:
        raise ValueError(
            f"sizes must be positive and the image inside its padding; got padded {padded}, "
            f"image {image}, output {output}"
        )
    if mib <= 0:
        raise ValueError(f"memory_mib must be positive; got {mib}")
    if mode not in ("exact", "fast"):
        raise ValueError(f'mode must be "exact" or "fast"; got {mode!r}')


def name_pixels(scores: Tensor, below: float, reject_as: int) -> Tensor:
    """(P, K) scores to (P,) int32 labels."""
    if below <= 0:
        return scores.argmax(-1).int()
    best, label = scores.max(-1)
    return label.int().masked_fill_(best < below, reject_as)
