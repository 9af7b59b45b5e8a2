"""Damaged label files and images."""

from __future__ import annotations

import io
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from fuzzing.common import SMALL, TRAIN, Case, Source, damage_bytes, nested


def other_image(image: Image.Image, rng: random.Random) -> Image.Image:
    """The same image in another shape, mode or range."""
    values = np.asarray(image)
    flat = values if values.ndim == 2 else values[..., 0]
    makers: tuple[Callable[[], Image.Image], ...] = (
        lambda: image.resize((1, 1)),
        lambda: image.resize((7, 500)),
        lambda: Image.new("L", (3, 3), 200),
        lambda: Image.fromarray(flat).convert("RGBA"),
        lambda: Image.fromarray(flat).convert("P"),
        lambda: Image.fromarray(flat).convert("1"),
        lambda: Image.fromarray(flat).convert("F"),
        lambda: Image.fromarray(flat.astype(np.uint16) * 200),
        lambda: Image.fromarray(flat.astype(np.int32) - 5),
        lambda: Image.fromarray(np.full_like(flat, rng.randrange(256))),
        lambda: Image.fromarray(np.full_like(flat, 255)),
        lambda: image.rotate(90, expand=True).crop((0, 0, 40, 64)),
    )
    return rng.choice(makers)()


def labels_case(source: Source, folder: Path, rng: random.Random) -> Case:
    """One damaged label file or image, or one that is missing, misnamed or a folder."""
    data = folder / "data"
    shutil.copytree(source.data, data)
    kind = rng.choice(("annotations", "annotations", "images"))
    split = rng.choice(("train", "val"))
    path = rng.choice(sorted((data / "zeroshapes" / kind / split).iterdir()))
    how = rng.choice(("bytes", "bytes", "image", "image", "value", "file"))
    if how == "bytes":
        path.write_bytes(damage_bytes(path.read_bytes(), rng))
    elif how == "image":
        with Image.open(path) as image:
            image.load()
        buffer, changed = io.BytesIO(), other_image(image, rng)
        changed.save(buffer, "TIFF" if changed.mode in "FI" else rng.choice(("PNG", "TIFF")))
        path.write_bytes(buffer.getvalue())
    elif how == "value":
        with Image.open(path) as image:
            values = np.asarray(image).copy()
        values[..., rng.randrange(values.shape[-1])] = rng.randrange(256)
        Image.fromarray(values).save(path)
    else:
        action = rng.randrange(5)
        target = path.read_bytes()
        path.unlink()
        if action == 1:
            path.with_name("other.png").write_bytes(target)
        elif action == 2:
            path.mkdir()
        elif action == 3:
            path.symlink_to("nowhere")
        elif action == 4:
            path.write_bytes(target)
            path.with_suffix(".bmp").write_bytes(target)
    (folder / "config.yaml").write_text(
        yaml.safe_dump({"_BASE_": str(source.config), **nested(SMALL)})
    )
    argv: tuple[str, ...] = ("--config-file", "config.yaml")
    if rng.random() < 0.3:
        argv += ("--eval-only", "MODEL.WEIGHTS", str(source.checkpoint))
    return Case("labels", f"{how} of {kind}/{split}/{path.name}", TRAIN, argv, data)
