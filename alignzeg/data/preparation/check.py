"""What a prepared data set holds: counts, classes, wrong files, and a contact sheet to look at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from alignzeg.colors import class_colors
from alignzeg.data.checks import count_classes
from alignzeg.data.labels import (
    get_vocabulary,
    ignore_value,
    label_lookup,
    read_labels,
)
from alignzeg.data.pictures import read_rgb
from alignzeg.data.preparation.work import each
from alignzeg.fonts import font
from alignzeg.visualize import blend, colorize

_PAIRS, _COLUMNS, _TILE, _LINE = 12, 4, 160, 20
_SHOWN = 10


@dataclass
class Findings:
    """What `check` saw in one data set.

    Attributes:
        name: of the data set.
        images: pairs of image and label file.
        pixels: class name -> labelled pixels; "(no class)" for all others.
        problems: one line each; empty if all is well.
    """

    name: str
    images: int = 0
    pixels: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """The findings as text."""
        total = max(1, sum(self.pixels.values()))
        absent = [name for name, count in self.pixels.items() if not count and name[0] != "("]
        rows = sorted(self.pixels.items(), key=lambda item: -item[1])
        return [
            f"{self.name}: {self.images} images",
            *(f"  {100 * count / total:7.3f} %  {name}" for name, count in rows if count),
            *([f"  no pixel at all: {', '.join(absent)}"] if absent else []),
            *(f"  PROBLEM: {problem}" for problem in self.problems),
        ]


def check(name: str, workers: int, counts: bool = True) -> Findings:
    """Reads every pair of a data set; `counts` compares their number with the official one.

    Returns:
        Counts, pixels of each class, and problems: wrong number of images, values out of range,
        unreadable files, sizes that differ, missing partners.
    """
    found = Findings(name)
    try:
        records = DatasetCatalog.get(name)
    except ValueError as error:
        found.problems.append(str(error))
        return found
    found.images = len(records)
    benchmark = MetadataCatalog.get(name).benchmark
    official = benchmark.counts.get(name.removeprefix(f"{benchmark.name}_"))
    if counts and official and len(records) not in official:
        expected = " or ".join(map(str, official))
        found.problems.append(f"{len(records)} images, officially {expected}")
    vocabulary = get_vocabulary(name)
    pixels = np.zeros(len(vocabulary) + 1, np.int64)
    wrong = []
    for result in each(partial(_examine, name), records, workers, f"checking {name}"):
        if isinstance(result, str):
            wrong.append(result)
        else:
            pixels += result
    found.problems += sorted(wrong)[:_SHOWN]
    if len(wrong) > _SHOWN:
        found.problems.append(f"and {len(wrong) - _SHOWN} more files")
    found.pixels = dict(zip((*vocabulary.names, "(no class)"), pixels.tolist(), strict=True))
    return found


def _examine(name: str, record: dict[str, str]) -> NDArray[np.int64] | str:
    """Pixels of each class and of none, or what is wrong with this pair."""
    vocabulary = get_vocabulary(name)
    try:
        counts = count_classes(record, label_lookup(name, vocabulary))
    except ValueError as error:
        return str(error)
    length = len(vocabulary)
    return np.append(counts[:length], counts[length:].sum())


def contact_sheet(name: str, path: Path) -> None:
    """Draws up to 12 evenly spread images of a data set, each beside its labels in colour.

    Below are the names of the classes that occur in them.
    """
    records: Sequence[dict[str, str]] = DatasetCatalog.get(name)
    chosen = records[:: -(-len(records) // _PAIRS)]
    vocabulary = get_vocabulary(name)
    lookup = label_lookup(name, vocabulary)
    colours = class_colors(vocabulary.names)
    high = -(-len(chosen) // _COLUMNS) * _TILE
    sheet = Image.new("RGB", (_COLUMNS * 2 * _TILE, high), "white")
    present: set[int] = set()
    for index, record in enumerate(chosen):
        labels = lookup[read_labels(record["sem_seg_file_name"], name)]
        present |= set(np.unique(labels).tolist())
        image = read_rgb(record["file_name"])
        labelled = labels != ignore_value(vocabulary)
        drawn = colorize(labels, colours)
        if image.shape[:2] == labels.shape:
            drawn = np.where(labelled[..., None], blend(image, labels, colours, 0.8), drawn)
        row, column = divmod(index, _COLUMNS)
        for place, array in enumerate((image, drawn)):
            tile = Image.fromarray(array)
            tile.thumbnail((_TILE - 4, _TILE - 4))
            sheet.paste(tile, ((2 * column + place) * _TILE + 2, row * _TILE + 2))
    shown = [i for i in sorted(present) if i < len(vocabulary)]
    whole = Image.new("RGB", (sheet.width, high + -(-len(shown) // _COLUMNS) * _LINE), "white")
    whole.paste(sheet)
    draw = ImageDraw.Draw(whole)
    for place, i in enumerate(shown):
        row, column = divmod(place, _COLUMNS)
        x, y = column * 2 * _TILE + 4, high + row * _LINE
        draw.rectangle((x, y + 4, x + 12, y + 16), tuple(colours[i].tolist()), "black")
        draw.text((x + 18, y + 2), f"{i} {vocabulary.names[i]}", "black", font(13))
    path.parent.mkdir(parents=True, exist_ok=True)
    whole.save(path)
