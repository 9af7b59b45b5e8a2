"""What a label file of another tool is, told by what it holds, and what to do with it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

RECIPES = "docs/custom_data.md, 'Label files of other tools', has the lines that convert them"
# Suffixes of annotations, and the tools that write them.
_ANNOTATIONS = {
    ".json": "annotations as JSON (COCO, labelme, Label Studio)",
    ".geojson": "annotations as GeoJSON",
    ".xml": "annotations as XML (CVAT, VOC)",
    ".txt": "annotations as text (YOLO)",
    ".csv": "annotations as CSV",
    ".npy": "arrays of NumPy",
    ".npz": "arrays of NumPy",
    ".mat": "files of MATLAB",
    ".jpg": "JPEG files, whose values are not those that were saved",
    ".jpeg": "JPEG files, whose values are not those that were saved",
}
# Between a name and what a tool adds to it.
_JOINS = ("_", "-", ".", " ")
# So few pixels of a class in a whole data set tell nothing.
_FEW = 32
# Panoptic ids hold 256 of these together at least, where colours are a few.
_MANY_COLOURS = 64


def what_lies_there(folder: Path) -> str:
    """What a folder without label maps holds instead, as the end of a message; empty if nothing."""
    suffixes = {path.suffix.lower() for path in folder.rglob("*") if path.is_file()}
    found = [what for suffix, what in _ANNOTATIONS.items() if suffix in suffixes]
    return f"; it holds {', '.join(dict.fromkeys(found))}: {RECIPES}" if found else ""


def annotations_near(root: Path) -> str:
    """Annotations in a data set's folder or beside its images, as the end of a message."""
    places = [root, *(path for path in root.iterdir() if path.is_dir())] if root.is_dir() else []
    found = []
    for place in places:
        for path in sorted(place.iterdir()):
            if path.suffix.lower() in (".json", ".geojson", ".xml") and path.is_file():
                found.append(path)
            elif path.name.lower() in ("labelmap.txt", "_classes.csv", "data.yaml"):
                found.append(path)
    if not found:
        return ""
    return f"; there is {found[0]}, as another tool writes it: {RECIPES}"


def named_otherwise(label: str, images: Iterable[str]) -> str:
    """That a label's name is an image's with something added, as the end of a message.

    Args:
        label: its path in the folder of label maps, without the suffix.
        images: those of the images in theirs.
    """
    here = [image for image in images if PurePosixPath(image).parent == PurePosixPath(label).parent]
    meant = next((image for image in here if _is_of(label, image)), None)
    if meant is None:
        return ""
    return (
        f"; {meant!r} is perhaps its image: a label map has the name of its image, so rename them; "
        f"{RECIPES}"
    )


def _is_of(label: str, image: str) -> bool:
    """Such as x_mask and mask_x of x, and x_labelIds of x_leftImg8bit."""
    one, other = PurePosixPath(label).name, PurePosixPath(image).name
    if one != other and (other in one or one in other):
        return True
    shared = len(os.path.commonprefix([one, other]))
    ends = one[shared - 1 : shared], one[shared : shared + 1], other[shared : shared + 1]
    return shared > 1 and (ends[0] in _JOINS or (ends[1] in _JOINS and ends[2] in _JOINS))


def why_no_ids(labels: NDArray) -> str:
    """What an array of a label file is, if not one channel of whole numbers; ends a message."""
    if labels.ndim == 3 and labels.shape[2] >= 3:
        pixels = labels[..., :3].reshape(-1, 3)
        if (pixels[:, 0] == pixels[:, 1]).all() and (pixels[:, 0] == pixels[:, 2]).all():
            return f"its channels are the same, so save one of them; {RECIPES}"
        count = len(np.unique(pixels, axis=0))
        kind = (
            "colours of classes, as CVAT and VOC write them, or panoptic ids (R + 256 G + 65536 B)"
            if count <= _MANY_COLOURS
            else "a picture, or panoptic ids (R + 256 G + 65536 B)"
        )
        return f"its {count} colours are {kind}; {RECIPES}"
    if np.issubdtype(labels.dtype, np.floating):
        return f"it holds fractions, such as {_fraction(labels):g}; {RECIPES}"
    return RECIPES


def whole_numbers(labels: NDArray) -> NDArray:
    """Float rasters of whole numbers, as programs for maps write them, as integers; NaN is -1.

    Anything else comes back as it is.
    """
    if labels.ndim != 2 or not np.issubdtype(labels.dtype, np.floating):
        return labels
    values = np.where(np.isnan(labels), -1, labels)
    if not np.isfinite(values).all() or (np.abs(values) > 2**31 - 1).any():
        # Some write the lowest float for "no data".
        values = np.where(values < -(2**31), -1, values)
    whole = np.isfinite(values).all() and bool((values == np.round(values)).all())
    return values.astype(np.int64) if whole and np.abs(values).max(initial=0) < 2**31 else labels


def _fraction(labels: NDArray) -> float:
    odd = labels[(labels != np.round(labels)) | ~np.isfinite(labels)]
    return float(odd[0]) if odd.size else 0.0


def doubts(
    names: Iterable[str], pixels: NDArray[np.int64], inner: NDArray[np.int64], unlabelled: int
) -> list[str]:
    """What is suspicious about the labels of a whole data set, one line each.

    Args:
        names: K class names in id order.
        pixels: (K,) of each class.
        inner: (K,) those of them whose eight neighbours are of the same class.
        unlabelled: pixels of no class.
    """
    known = list(names)
    lines = []
    counts = zip(known, pixels, inner, strict=True)
    thin = [name for name, all_, inside in counts if all_ >= _FEW and not inside]
    if thin and len(thin) < len(known):
        lines.append(
            f"{', '.join(map(repr, thin[:10]))} occur in lines of one or two pixels only: were the "
            "label maps resized smoothly? Resize them by nearest neighbour"
        )
    present = np.flatnonzero(pixels)
    if len(known) > 1 and len(present) == 1 and unlabelled:
        lines.append(
            f"all pixels are {known[present[0]]!r} or 'no class' (255), as in masks of 0 and 255, "
            "where 1 should stand in place of 255"
        )
    elif len(known) > 1 and not unlabelled and not pixels[-1] and len(present) < len(known):
        lines.append(
            f"no pixel is 'no class' and none is {known[-1]!r}, the last class: if 0 means 'no "
            "class' in these files and classes count from 1, set ALIGNZEG.DATA.OWN.IGNORE_LABEL 0"
        )
    return lines


def ranges(values: Iterable[int]) -> str:
    """Ascending integers as text: {0, 1, 2, 5} -> "0-2, 5"."""
    runs: list[list[int]] = []
    for value in sorted(values):
        if runs and value == runs[-1][1] + 1:
            runs[-1][1] = value
        else:
            runs.append([value, value])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
