"""Predictions as what other programs read: polygons, COCO, tables, supervision."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

# Polygons follow the border of a region to within this many pixels.
_POLYGON_SLACK = 1.0


def polygons(mask: NDArray[np.bool_], slack: float = _POLYGON_SLACK) -> list[NDArray[np.int32]]:
    """The outer borders of a mask's regions, largest region first; holes are left out.

    They may leave the border of the (H, W) mask by `slack` pixels; 0 keeps every corner.

    Returns:
        One (n, 2) array of corners x, y for each region, n at least 3; regions that are a line or a
        pixel have none.
    """
    borders, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    if slack > 0:
        borders = [cv2.approxPolyDP(border, slack, True) for border in borders]
    borders = [border for border in borders if len(border) >= 3]
    largest_first = sorted(borders, key=cv2.contourArea, reverse=True)
    return [border[:, 0].astype(np.int32, copy=False) for border in largest_first]


def rle(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """COCO's compressed run lengths of a mask: {"size": [H, W], "counts": text}, ready for JSON."""
    coded = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(edge) for edge in coded["size"]], "counts": coded["counts"].decode()}


def bounding_box(mask: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """Left, top, width and height in pixels; zeros for an empty mask."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return 0, 0, 0, 0
    top, left = int(rows[0]), int(columns[0])
    return left, top, int(columns[-1]) - left + 1, int(rows[-1]) - top + 1


def detections(
    ids: Sequence[int],
    names: Sequence[str],
    masks: Sequence[NDArray[np.bool_]],
    scores: Sequence[float] | None,
) -> Any:
    """(H, W) masks as supervision.Detections, one for each class; none may be empty.

    Scores are 0 to 1, or None where there are none.

    Raises:
        ImportError: if supervision is not installed; the message says how to install it.
    """
    supervision = optional("supervision", "to_detections")
    if not masks:
        return supervision.Detections.empty()
    boxes = [bounding_box(mask) for mask in masks]
    return supervision.Detections(
        xyxy=np.array([(x, y, x + w, y + h) for x, y, w, h in boxes], dtype=np.float32),
        mask=np.stack(masks),
        confidence=None if scores is None else np.array(scores, dtype=np.float32),
        class_id=np.array(ids),
        data={"class_name": np.array(names)},
    )


def optional(package: str, method: str) -> Any:
    """A package that only one method needs.

    Raises:
        ImportError: if it is not installed.
    """
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        raise ImportError(
            f"{method}() needs {package}, which is not installed: pip install {package}"
        ) from None
