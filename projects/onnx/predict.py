"""Names every pixel of an image with an exported graph; needs numpy, Pillow and ONNX Runtime only.

    python projects/onnx/predict.py output/model.onnx image.png

reads `output/model.onnx` and `output/model_classes.npz`, which `alignzeg export` wrote, prints the
share of each class and writes `image_labels.png`, whose values are class ids.

Images are read with the files of `alignzeg/data`, so that both see the same pixels; PyTorch is not
needed for them.
"""

from __future__ import annotations

import argparse
import json
import sys
from importlib.machinery import ModuleSpec
from importlib.util import module_from_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image

# As alignzeg/modeling/vlm/encoding.py.
MOST_SQUARES = 4
STRIPE = 64


def picture_reader() -> Any:
    """`read_rgb` of `alignzeg/data` around or beside this script, without the rest of alignzeg."""
    reader = Path("alignzeg", "data", "pictures.py")
    root = next((p for p in Path(__file__).resolve().parents if (p / reader).is_file()), None)
    if root is None:
        raise SystemExit(f"error: {reader} is not there; copy what reads images with this script")
    stubs = [name for name in ("alignzeg", "alignzeg.data") if name not in sys.modules]
    for name in stubs:
        # The packages themselves would load PyTorch.
        spec = ModuleSpec(name, None, is_package=True)
        spec.submodule_search_locations = [str(root / name.replace(".", "/"))]
        sys.modules[name] = module_from_spec(spec)
    try:
        from alignzeg.data.pictures import read_rgb
    finally:
        for name in stubs:
            del sys.modules[name]
    return read_rgb


def test_size(height: int, width: int, shorter: int, longest: int) -> tuple[int, int]:
    """The size that the network was tested at; 0 leaves it as it is."""
    if not shorter:
        return height, width
    scale = shorter / min(height, width)
    scale = min(scale, longest / max(height, width))
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


def vlm_size(height: int, width: int, side: int, cell: list[int]) -> tuple[int, int]:
    """The size that the frozen vision-language model reads, in whole patches."""
    short, long = sorted((height, width))
    scale = min(
        side / short, side * (MOST_SQUARES / (short * long)) ** 0.5, side * MOST_SQUARES**2 / long
    )
    rows, columns = (
        max(1, round(n * scale / step)) * step
        for n, step in zip((height, width), cell, strict=True)
    )
    return rows, columns


def resize(planes: np.ndarray, size: tuple[int, int], how: Image.Resampling) -> np.ndarray:
    """(n, *size) float32 of (n, h, w), without rounding."""
    if planes.shape[1:] == tuple(size):
        return planes
    images = (Image.fromarray(plane.astype(np.float32)) for plane in planes)
    return np.stack([np.asarray(image.resize(size[::-1], how)) for image in images])


def linear(length: int, size: int) -> np.ndarray:
    """(size, length) weights of a linear resize without smoothing, as PyTorch's."""
    place = ((np.arange(size) + 0.5) * length / size - 0.5).clip(0, length - 1)
    low = place.astype(int)
    high = np.minimum(low + 1, length - 1)
    weights = np.zeros((size, length), np.float32)
    np.add.at(weights, (np.arange(size), low), 1 - (place - low))
    np.add.at(weights, (np.arange(size), high), place - low)
    return weights


def label_map(
    masks: np.ndarray,
    votes: np.ndarray,
    padded: tuple[int, int],
    inside: tuple[int, int],
    size: tuple[int, int],
) -> np.ndarray:
    """Class ids of every pixel: argmax over k of the sum over q of votes[q, k] * mask q.

    Masks (Q, h, w) cover the padded image; `inside` of it is the picture, which gets `size`.
    """
    rows, columns = (
        linear(n, m)[:k] for n, m, k in zip(masks.shape[1:], padded, inside, strict=True)
    )
    probs = 1 / (1 + np.exp(-(rows @ masks @ columns.T)))
    rows, columns = (linear(n, m) for n, m in zip(inside, size, strict=True))
    labels = np.zeros(size, np.uint16)
    for start in range(0, size[0], STRIPE):
        part = rows[start : start + STRIPE] @ probs @ columns.T
        labels[start : start + STRIPE] = np.tensordot(votes.T, part, axes=1).argmax(axis=0)
    return labels


def predict(model: str | Path, picture: Image.Image) -> tuple[list[str], np.ndarray]:
    """Class names, and the (H, W) ids of a picture."""
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    about = json.loads(session.get_modelmeta().custom_metadata_map["alignzeg"])
    classes = np.load(Path(model).with_name(f"{Path(model).stem}_classes.npz"))
    size = (picture.height, picture.width)
    inside = test_size(*size, about["min_size"], about["max_size"])
    if inside != size:
        picture = picture.resize(inside[::-1], Image.Resampling.BILINEAR)
    edges = [(0, -side % about["divisor"]) for side in inside]
    image = np.pad(np.asarray(picture, np.float32).transpose(2, 0, 1), [(0, 0), *edges])
    padded = image.shape[1:]
    seen_by_vlm = vlm_size(*padded, about["vlm_size"], about["vlm_cell"])
    vlm_image = resize(image, seen_by_vlm, Image.Resampling.BICUBIC).clip(0, 255)
    masks, _, scores, weights = session.run(
        ["masks", "embeds", "scores", "weights"],
        {
            "image": image[None],
            "vlm_image": vlm_image[None],
            "text": classes["text"],
            "unseen": classes["unseen"],
        },
    )
    votes = weights[:, None] * scores[:, :-1]  # the background, which is last, is never named
    return classes["names"].tolist(), label_map(masks, votes, padded, inside, size)


def main() -> None:
    """Reads the command line, predicts, and writes."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", help="an .onnx file that `alignzeg export` wrote")
    parser.add_argument("image", help="an image file")
    parser.add_argument(
        "--output", help="the label map; IMAGE_labels.png by default, in this folder"
    )
    args = parser.parse_args()
    try:
        picture = Image.fromarray(picture_reader()(args.image))
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error
    names, labels = predict(args.model, picture)
    shares = np.bincount(labels.ravel(), minlength=len(names)) / labels.size
    for index in np.argsort(-shares)[: np.count_nonzero(shares)]:
        sys.stdout.write(f"{names[index]}: {100 * shares[index]:.1f} %\n")
    output = args.output or f"{Path(args.image).stem}_labels.png"
    kind = np.uint8 if len(names) <= 256 else np.uint16
    Image.fromarray(labels.astype(kind)).save(output)


if __name__ == "__main__":
    main()
