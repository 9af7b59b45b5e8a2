"""Label files of every depth and folders of every shape, for dev/fuzz_data.py."""

from __future__ import annotations

import os
import random
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog
from numpy.typing import NDArray
from PIL import Image

from alignzeg import register_folder
from alignzeg.data.labels import read_labels
from fuzzing.data_lists import ReadCase

_COUNTS = (3, 20, 255, 256, 300)


def registered(count: int, folder: Path) -> str:
    """A data set of so many classes, registered once; its folder need not stay."""
    name = f"fuzzed{count}"
    if f"{name}_train" not in DatasetCatalog:
        (folder / "images" / "train").mkdir(parents=True)
        register_folder(name, folder, classes=[f"thing {i}" for i in range(count)])
    return f"{name}_train"


def png(values: NDArray, bits: int) -> bytes:
    """A grey PNG of 1, 2, 4, 8 or 16 bits, written by hand: Pillow writes 8 or 16."""
    height, width = values.shape
    if bits == 16:
        rows = values.astype(">u2")[..., None].view(np.uint8).reshape(height, -1)
    else:
        planes = [(values >> shift) & 1 for shift in range(bits - 1, -1, -1)]
        rows = np.packbits(np.stack(planes, -1).reshape(height, -1), axis=1)
    raw = b"".join(b"\0" + row.tobytes() for row in rows)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    ends = chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(raw)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(ends)


def label_case(folder: Path, rng: random.Random) -> ReadCase:
    """One label file: values and depth that fit the data set, or not."""
    count = rng.choice(_COUNTS)
    name = registered(count, folder)
    random_ = np.random.default_rng(rng.randrange(2**32))
    values = random_.integers(0, count, (rng.randrange(1, 20), rng.randrange(1, 20)))
    ignore = 255 if count <= 255 else 65535
    values[values == 255] = 0
    wrong = ""
    if rng.random() < 0.3:
        values[0, 0] = ignore
    if rng.random() < 0.25:
        bad = {"too high": count if count != 255 else 300, "other": 40000, "255": 255}
        wrong = rng.choice([key for key in bad if key != "255" or count > 255])
        values[-1, -1] = bad[wrong]
    kind = rng.choice(list(LABEL_FILES))
    path, expected = LABEL_FILES[kind](folder, values, rng)
    expected = None if wrong or path is None else expected
    if path is None:  # this depth cannot hold these values
        path = folder / "label.png"
        path.write_bytes(png(values, 16))
        expected, kind = (None if wrong else values), "png 16"
    return ReadCase(
        f"{kind}, {count} classes {wrong}",
        lambda: read_labels(str(path), name),
        expected,
        lambda found, right: found.shape == right.shape and bool((found == right).all()),
    )


_Made = tuple[Path | None, NDArray | None]


def _png(bits: int) -> Callable[[Path, NDArray, random.Random], _Made]:
    def make(folder: Path, values: NDArray, rng: random.Random) -> _Made:  # noqa: ARG001
        if values.max() >= 2**bits:
            return None, None
        path = folder / "label.png"
        path.write_bytes(png(values, bits))
        # Grey of 2 and 4 bits is scaled by every reader, and so means two things.
        return path, None if bits in (2, 4) else values

    return make


def _pillow(
    dtype: Any, suffix: str, mode: str = "", most: int = 2**31, fits: bool = True
) -> Callable[[Path, NDArray, random.Random], _Made]:
    def make(folder: Path, values: NDArray, rng: random.Random) -> _Made:  # noqa: ARG001
        if values.max() > most:
            return None, None
        path = folder / f"label{suffix}"
        image = Image.fromarray(values.astype(dtype))
        if mode == "P":
            image.putpalette(bytes(range(256)) * 3)
        elif mode:
            image = image.convert(mode)
        image.save(path)
        return path, values if fits else None

    return make


def _turned(folder: Path, values: NDArray, rng: random.Random) -> _Made:
    """With an orientation tag, which every viewer follows: 6 turns to the right, 3 by half."""
    path = folder / "label.tif"
    tag, turns = rng.choice(((6, -1), (8, 1), (3, 2)))
    Image.fromarray(values.astype(np.uint16)).save(path, tiffinfo={0x0112: tag})
    return path, np.rot90(values, turns)


def _frames(folder: Path, values: NDArray, rng: random.Random) -> _Made:  # noqa: ARG001
    path = folder / "label.tif"
    image = Image.fromarray(values.astype(np.uint16))
    image.save(path, save_all=True, append_images=[image])
    return path, None


LABEL_FILES: dict[str, Callable[[Path, NDArray, random.Random], _Made]] = {
    **{f"png {bits}": _png(bits) for bits in (1, 2, 4, 8, 16)},
    "palette": _pillow(np.uint8, ".png", "P", 255),
    "bmp": _pillow(np.uint8, ".bmp", "", 255),
    "tiff 8": _pillow(np.uint8, ".tif", "", 255),
    "tiff 16": _pillow(np.uint16, ".tif"),
    "tiff 32": _pillow(np.int32, ".tif"),
    "float": _pillow(np.float32, ".tif"),
    "colours": _pillow(np.uint8, ".png", "RGB", 255, fits=False),
    "alpha": _pillow(np.uint8, ".png", "LA", 255, fits=False),
    "turned": _turned,
    "frames": _frames,
}


def folder_case(folder: Path, rng: random.Random) -> ReadCase:
    """Image and label folders with sub-folders, links and odd files; nothing is in the files."""
    for kind, suffixes in (("images", (".jpg", ".PNG", ".webp")), ("labels", (".png", ".TIF"))):
        place = random.Random(1)
        for number in range(6):
            sub = ("", "a", "a/b", "c.png", "ü", "")[number]
            _touch(folder / kind / "train" / sub / f"{number}{place.choice(suffixes)}")
    what = rng.choice(list(FOLDERS))
    fits = all([FOLDERS[what](folder / kind / "train", kind, rng) for kind in ("images", "labels")])
    register_folder("fuzzed_folder", folder, classes=["a", "b"])
    expected = walked(folder / "images" / "train") if fits else None

    def read() -> list[str]:
        records = DatasetCatalog.get("fuzzed_folder_train")
        return sorted(record["file_name"] for record in records)

    return ReadCase(what, read, expected)


def walked(folder: Path) -> list[str]:
    """What os.walk finds with links followed, hidden files and folders left out."""
    found = []
    for place, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        ends = (".jpg", ".png", ".webp")
        names = [name for name in files if name[0] != "." and name.lower().endswith(ends)]
        found += [os.path.join(place, name) for name in names]
    return sorted(found)


def _touch(path: Path) -> bool:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return True


def _linked(folder: Path, kind: str, rng: random.Random) -> bool:  # noqa: ARG001
    """A folder elsewhere, a link to it, and a link to that link."""
    elsewhere = folder.parent.parent / f"elsewhere_{kind}"
    _touch(elsewhere / "deep" / "x.png")
    (folder / "link").symlink_to(elsewhere, target_is_directory=True)
    (folder / "again").symlink_to(folder / "link", target_is_directory=True)
    return True


def _both(make: Callable[[Path], Any], fits: bool) -> Callable[[Path, str, random.Random], bool]:
    def act(folder: Path, kind: str, rng: random.Random) -> bool:  # noqa: ARG001
        make(folder)
        return fits

    return act


def _one(make: Callable[[Path], Any], kinds: str) -> Callable[[Path, str, random.Random], bool]:
    def act(folder: Path, kind: str, rng: random.Random) -> bool:  # noqa: ARG001
        if kind == kinds:
            make(folder)
            return False
        return True

    return act


def _file_link(folder: Path) -> None:
    _touch(folder.parent / "beside" / "y.png")
    (folder / "y.png").symlink_to(folder.parent / "beside" / "y.png")


FOLDERS: dict[str, Callable[[Path, str, random.Random], bool]] = {
    "plain": _both(lambda folder: folder, True),
    "hidden": _both(lambda folder: _touch(folder / ".cache" / "z.png"), True),
    "hidden file": _both(lambda folder: _touch(folder / "._0.png"), True),
    "other files": _both(lambda folder: _touch(folder / "Thumbs.db"), True),
    "empty sub-folder": _both(lambda folder: (folder / "none").mkdir(), True),
    "linked file": _both(_file_link, True),
    "linked folder": _linked,
    "dangling folder": _one(lambda folder: (folder / "gone").symlink_to("nowhere"), "images"),
    "dangling file": _one(lambda folder: (folder / "g.png").symlink_to("nowhere"), "labels"),
    "loop": _one(lambda folder: (folder / "loop").symlink_to(folder), "images"),
    "loop above": _one(lambda folder: (folder / "loop").symlink_to(folder.parent), "labels"),
    "no label": _one(lambda folder: _touch(folder / "q.png"), "images"),
    "no image": _one(lambda folder: _touch(folder / "q.png"), "labels"),
    "linked images only": _one(lambda folder: _linked(folder, "i", random.Random(1)), "images"),
    "two suffixes": _one(lambda folder: _touch(folder / "0.bmp"), "images"),
    "other kind": _one(lambda folder: _touch(folder / "w.gif"), "images"),
    "jpeg label": _one(lambda folder: _touch(folder / "w.jpg"), "labels"),
}
