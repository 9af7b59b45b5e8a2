"""The data set on disk: two files per scene, written once."""

from __future__ import annotations

import json
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import cv2
import numpy as np

from alignzeg.data.zeroshapes.names import class_names
from alignzeg.data.zeroshapes.scenes import render_scene, scene_rng
from alignzeg.files import atomic_write

DEFAULT_COUNTS = {"train": 1200, "val": 200, "calib": 100}


def _encode(array: np.ndarray) -> bytes:
    done, data = cv2.imencode(".png", array, [cv2.IMWRITE_PNG_COMPRESSION, 1])
    assert done
    return data.tobytes()


def _write_range(root: str, split: str, indices: range, size: int, seed: int) -> int:
    """Write some scenes; those whose two files exist are skipped. Returns how many were written."""
    cv2.setNumThreads(1)
    images = Path(root) / "zeroshapes" / "images" / split
    labels = Path(root) / "zeroshapes" / "annotations" / split
    written = 0
    for index in indices:
        image_path, label_path = images / f"{index:05d}.png", labels / f"{index:05d}.png"
        if image_path.exists() and label_path.exists():
            continue
        scene = render_scene(scene_rng(seed, split, index), size)
        atomic_write(image_path, _encode(np.ascontiguousarray(scene.image[..., ::-1])))
        atomic_write(label_path, _encode(scene.label))
        written += 1
    return written


def write_dataset(
    root: str | Path,
    split: str,
    count: int | None = None,
    size: int = 128,
    seed: int = 0,
    workers: int = 2,
) -> int:
    """Write one split as ``<root>/zeroshapes/{images,annotations}/<split>/NNNNN.png``.

    Files appear atomically. What exists and came from the same arguments is kept; other arguments,
    or another version of the split file, rewrite the split. A smaller count removes the surplus.

    By default there are 1200 scenes for train, 200 for val and 100 for calib. One worker renders in
    this process.

    Returns:
        The number of scenes written now; 0 when everything was there.

    Raises:
        ValueError: for an unknown split, a count below 1 or a size below 32.
    """
    if split not in DEFAULT_COUNTS:
        raise ValueError(f"unknown split {split!r}: choose one of {sorted(DEFAULT_COUNTS)}")
    count = DEFAULT_COUNTS[split] if count is None else count
    if count < 1:
        raise ValueError(f"count is {count}: write at least one scene")
    if size < 32:
        raise ValueError(f"size is {size}: scenes need at least 32 pixels a side")
    base = Path(root) / "zeroshapes"
    folders = [base / kind / split for kind in ("images", "annotations")]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    stamp_path = base / f"{split}.json"
    stamp = json.dumps({"format": 3, "size": size, "seed": seed, "classes": class_names()}).encode()
    fresh = stamp_path.exists() and stamp_path.read_bytes() == stamp
    for folder in folders:
        for path in folder.glob("*.png"):
            if not fresh or int(path.stem) >= count:
                path.unlink()
    if not fresh:
        atomic_write(stamp_path, stamp)
    chunks = [range(start, min(start + 50, count)) for start in range(0, count, 50)]
    if workers <= 1 or len(chunks) == 1:
        return sum(_write_range(str(root), split, chunk, size, seed) for chunk in chunks)
    with ProcessPoolExecutor(workers) as pool:
        jobs = [pool.submit(_write_range, str(root), split, chunk, size, seed) for chunk in chunks]
        return sum(job.result() for job in jobs)
