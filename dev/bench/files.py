"""Images and label maps on disk, as a data set of 171 classes that both sides know."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

CLASSES = 171


def dataset(
    root: Path, count: int, size: tuple[int, int], regions: int = 12
) -> tuple[str, list[dict[str, Any]]]:
    """Writes photographs-like JPEGs and PNG label maps, and registers them.

    Args:
        root: an empty folder.
        count: images.
        size: height and width.
        regions: classes in an image.

    Returns:
        The name of the data set, with all 171 classes seen, and its records. Ids in the label maps
        are class ids; 255 is unlabelled.
    """
    rng = np.random.default_rng(0)
    name = f"bench_{root.name}"
    height, width = size
    for index in range(count):
        coarse = rng.normal(size=(regions, max(2, height // 64), max(2, width // 64)))
        fields = [
            cv2.resize(field, (width, height), interpolation=cv2.INTER_CUBIC)
            for field in coarse.astype(np.float32)
        ]
        places = np.argmax(fields, axis=0)
        classes = rng.choice(CLASSES, regions, replace=False).astype(np.uint8)
        colors = rng.integers(0, 256, (regions, 3))
        noise = rng.normal(0, 12, (height, width, 3))
        image = np.clip(colors[places] + noise, 0, 255).astype(np.uint8)
        labels = classes[places]
        labels[: max(1, height // 16)] = 255
        Image.fromarray(image).save(root / f"{index}.jpg", quality=90)
        Image.fromarray(labels).save(root / f"{index}.png")
    records = [
        {
            "file_name": str(root / f"{index}.jpg"),
            "sem_seg_file_name": str(root / f"{index}.png"),
            "dataset_name": name,
            "height": height,
            "width": width,
        }
        for index in range(count)
    ]
    DatasetCatalog.register(name, lambda: records)
    given = MetadataCatalog.get("coco_stuff171_val").as_dict()
    kept = {
        key: given[key] for key in ("vocabulary", "stuff_classes", "pseudo_unseen") if key in given
    }
    MetadataCatalog.get(name).set(
        **kept,
        raw_ids=tuple(range(CLASSES)),
        ignored_raw_ids=(),
        ignore_label=255,
        doubtful_raw_ids=(),
    )
    return name, records
