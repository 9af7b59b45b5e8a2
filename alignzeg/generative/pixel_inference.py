"""Scores of the cells of a grid to a label map, in stripes of rows."""

from __future__ import annotations

import torch
from torch import Tensor

from alignzeg.modeling.interpolation import Geometry, Size, output_rows
from alignzeg.modeling.semantic_inference import name_pixels


def label_map(
    scores: Tensor, padded_size: Size, image_size: Size, output_size: Size, memory_mib: float
) -> Tensor:
    """Names every pixel by the class of the highest score, interpolated as masks are.

    Scores are (K, h, w) of the padded image, finite; sizes and memory as in `semantic_inference`.

    Returns:
        (Ho, Wo) label map on the device of the scores, uint8, or uint16 where K > 255. Equal
        scores: the lower class.
    """
    classes, (height, width) = len(scores), output_size
    geometry = Geometry((scores.shape[1], scores.shape[2]), padded_size, image_size, output_size)
    dtype = torch.uint16 if classes > 255 else torch.uint8
    labels = torch.empty(output_size, dtype=dtype, device=scores.device)
    # Scores at the width of the padded image, at that of the answer, and sorted by pixel.
    row_bytes = 4 * classes * (2 * padded_size[1] + 3 * width)
    step = max(1, min(height, int(memory_mib * 2**20) // row_bytes))
    for start in range(0, height, step):
        rows = torch.arange(start, min(height, start + step), device=scores.device)
        found = output_rows(scores.float(), rows.double(), geometry, masks=False)
        named = name_pixels(found.flatten(1).T, 0.0, 0)
        labels[start : start + len(rows)] = named.view(-1, width).to(dtype)
    return labels
