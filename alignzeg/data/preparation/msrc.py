"""MSRC-21: the MSRC object category image database, version 2, without horse and mountain.

Source: Shotton et al., TextonBoost, ECCV 2006; the official archive holds 591 images. The 394
training and 99 validation images are a split of our own, shipped as lists, not the published one;
images on neither list are passed over. Two layouts are read, told apart by their folders:

    Images/NAME.bmp, GroundTruth/NAME_GT.bmp             the official archive; labels are colours
    images/SPLIT/NAME.png, annotations/SPLIT/NAME.png    the same images with cleaned-up labels

Label files hold the 23 official classes as 0 to 22, and 255 (void); the split file says which of
them count. The labels of the two layouts differ in pixels, so their numbers do not compare.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from alignzeg.data.pictures import read_rgb
from alignzeg.data.preparation.formats import encode_png, read_index_image
from alignzeg.data.preparation.recipe import Archive, Plan, Recipe, Request, Task, read_ids

OFFICIAL = "MSRC_ObjCategImageDatabase_v2"
CLEANED = "msrc_v2"
# Says where the label files beside it came from, as both layouts are prepared into one folder.
LABELS = "msrc21/labels.txt"
LISTS = Path(__file__).parent / "lists"
ARCHIVE = Archive(
    name="msrc_objcategimagedatabase_v2.zip",
    source="http://research.microsoft.com/en-us/um/people/antcrim/data_objrec/"
    "msrc_objcategimagedatabase_v2.zip (if it is gone: web.archive.org has it)",
    wanted=(f"{OFFICIAL}/Images/", f"{OFFICIAL}/GroundTruth/"),
    md5="8fcd292c7f1e69f91a2ef513746bd52c",
)
# The two layouts in words; what is unpacked has one of them.
EXPECTED = (
    f"Images/ and GroundTruth/, as in {ARCHIVE.name}, or images/ and annotations/, each with "
    "train/ and val/"
)
VOID = 255
# Official colours, red, green, blue, in the order of the 23 ids.
COLOURS = {
    "building": (128, 0, 0),
    "grass": (0, 128, 0),
    "tree": (128, 128, 0),
    "cow": (0, 0, 128),
    "horse": (128, 0, 128),
    "sheep": (0, 128, 128),
    "sky": (128, 128, 128),
    "mountain": (64, 0, 0),
    "aeroplane": (192, 0, 0),
    "water": (64, 128, 0),
    "face": (192, 128, 0),
    "car": (64, 0, 128),
    "bicycle": (192, 0, 128),
    "flower": (64, 128, 128),
    "sign": (192, 128, 128),
    "bird": (0, 64, 0),
    "book": (128, 64, 0),
    "chair": (0, 192, 0),
    "road": (128, 64, 128),
    "cat": (0, 192, 128),
    "dog": (128, 192, 128),
    "body": (64, 64, 0),
    "boat": (192, 64, 0),
}


def _codes(colours: NDArray) -> NDArray[np.int32]:
    """One number for each (..., 3) colour."""
    return colours.astype(np.int32) @ np.array([1 << 16, 1 << 8, 1], np.int32)


_CODES = _codes(np.array([(0, 0, 0), *COLOURS.values()]))
_IDS = np.array([VOID, *range(len(COLOURS))], np.uint8)[np.argsort(_CODES)]
_SORTED = np.sort(_CODES)


@dataclass(frozen=True)
class _Layout:
    """What converts an image and its labels, and where they lie; {split} and {name} are filled in.

    `name` is what the folder is called in messages and in `LABELS`.
    """

    name: str
    image: str
    label: str
    convert_image: Callable[[str], bytes]
    convert_label: Callable[[str], bytes]


def plan(request: Request) -> Plan:
    """Two tasks for each listed image, a PNG of it and its label file; one that says their source.

    Raises:
        ValueError: if there is no source, a listed image lacks, or the folder was prepared from
            the other layout.
    """
    base, layout = _find(request)
    tasks = [_source_task(request.root / LABELS, layout)]
    lacking = []
    for split in request.splits:
        for name in read_ids(LISTS / f"msrc21_{split}.txt"):
            image = base / layout.image.format(split=split, name=name)
            label = base / layout.label.format(split=split, name=name)
            if not label.is_file():
                lacking.append(name)
                continue
            if not image.is_file():
                raise ValueError(f"{label} has no image {image}; take {layout.name} anew")
            for kind, convert, source in (
                ("images", layout.convert_image, image),
                ("annotations", layout.convert_label, label),
            ):
                target = request.root / "msrc21" / kind / split / f"{name}.png"
                tasks.append(Task(str(target), convert, (str(source),)))
    return Plan(tasks, lacking)


def _find(request: Request) -> tuple[Path, _Layout]:
    """The source folder and its layout; the official archive comes first.

    Raises:
        ValueError: if no folder has one of the two layouts.
    """
    bases = [request.root / OFFICIAL, request.root / CLEANED]
    if request.source is not None:
        bases = [request.source, request.source / OFFICIAL]
    for base in bases:
        layout = layout_of(base)
        if layout is not None:
            return base, layout
    raise ValueError(
        f"no MSRC v2 in {' or '.join(map(str, bases))}, which would be {EXPECTED}.\n"
        f"The archive comes from {ARCHIVE.source}\n"
        f"Put it into a folder of downloads and go on with:\n"
        f"  {request.command} --archives FOLDER\n"
        f"or name the unpacked folder: --source FOLDER"
    )


def layout_of(folder: Path) -> _Layout | None:
    """The layout of a folder of unpacked files, if it has one."""
    found = (layout for name, layout in _LAYOUTS.items() if (folder / name).is_dir())
    return next(found, None)


def _source_task(path: Path, layout: _Layout) -> Task:
    """Writes the layout's name; refuses another one that is there already."""
    if path.is_file():
        there = path.read_text(encoding="utf-8", errors="replace").strip()
        if there not in ("", layout.name):
            raise ValueError(
                f"{path.parent} was prepared from {there}, not from {layout.name}; their labels "
                "differ: remove that folder, or choose another data root"
            )
    return Task(str(path), say, (layout.name,))


def say(name: str) -> bytes:
    """A line that says where the labels came from."""
    return f"{name}\n".encode()


def copy(source: str) -> bytes:
    """The file as it is."""
    return Path(source).read_bytes()


def convert_image(source: str) -> bytes:
    """A PNG of an image, pixel by pixel the same."""
    stream = io.BytesIO()
    Image.fromarray(read_rgb(source)).save(stream, "PNG")
    return stream.getvalue()


def convert_colours(source: str) -> bytes:
    """A label file from a colour-coded one.

    Raises:
        ValueError: if the source is unreadable or holds a colour that is not in the table.
    """
    codes = _codes(read_rgb(source))
    places = np.searchsorted(_SORTED, codes).clip(max=len(_SORTED) - 1)
    unknown = np.unique(codes[_SORTED[places] != codes])
    if unknown.size:
        shown = [(int(c) >> 16, int(c) >> 8 & 255, int(c) & 255) for c in unknown[:3]]
        raise ValueError(
            f"{source} holds {unknown.size} colours that are no class of MSRC v2, as "
            f"{', '.join(map(str, shown))} (red, green, blue)"
        )
    return encode_png(_IDS[places])


def convert_ids(source: str) -> bytes:
    """A label file from one that holds ids already.

    Raises:
        ValueError: if the source is unreadable or holds another value than 0 to 22 and 255.
    """
    values = read_index_image(source)
    wrong = np.setdiff1d(values, _IDS)
    if wrong.size:
        raise ValueError(f"{source} holds {wrong.tolist()[:5]}; ids are 0 to 22, and 255")
    return encode_png(values.astype(np.uint8))


# By a folder that only this layout has: where case does not count, "images" is in both.
_LAYOUTS = {
    "GroundTruth": _Layout(
        "the official archive",
        "Images/{name}.bmp",
        "GroundTruth/{name}_GT.bmp",
        convert_image,
        convert_colours,
    ),
    "annotations": _Layout(
        "the cleaned-up labels",
        "images/{split}/{name}.png",
        "annotations/{split}/{name}.png",
        copy,
        convert_ids,
    ),
}
RECIPE = Recipe(
    name="msrc21",
    about="MSRC-21 (msrc21, its K-splits)",
    archives=(ARCHIVE,),
    plan=plan,
    benchmarks=("msrc21",),
    takes_source=True,
)
