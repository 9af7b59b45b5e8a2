"""What was found in one image, as numbers: areas, scores, masks, and forms that others read."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignzeg.arguments import did_you_mean
from alignzeg.inference import conversion
from alignzeg.structures import Vocabulary, spelling


class Findings:
    """A label map with its classes.

    Attributes:
        labels: (H, W) uint8 or uint16 index into `names`; the highest number of the dtype is "none
            of these".
        vocabulary: the classes asked for.
        confidence: (H, W) float16 score of the best class, 0 to 1, or None.
    """

    labels: NDArray[np.uint8] | NDArray[np.uint16]
    vocabulary: Vocabulary
    confidence: NDArray[np.float16] | None

    @property
    def names(self) -> tuple[str, ...]:
        """The classes asked for, in id order."""
        return self.vocabulary.names

    @property
    def areas(self) -> dict[str, int]:
        """Pixels of every class that occurs, the largest first."""
        return dict(self._areas)

    @property
    def rejected(self) -> int:
        """Pixels that are none of the classes."""
        return self.labels.size - sum(self.areas.values())

    @property
    def scores(self) -> dict[str, float]:
        """Mean confidence, 0 to 1, of the pixels of every class that occurs, the largest first.

        Raises:
            ValueError: if the model gives no scores.
        """
        if self.confidence is None:
            raise ValueError("this model names pixels without scores, so there is no confidence")
        return {name: float(self._sums[self._id(name)] / n) for name, n in self.areas.items()}

    def mask(self, name: str) -> NDArray[np.bool_]:
        """(H, W) where a class is, by the name it was asked for or one of its other names.

        Raises:
            ValueError: if it was not asked for.
        """
        return self.labels == self._id(name)

    def polygons(self, name: str) -> list[NDArray[np.int32]]:
        """Outer borders of a class's regions as (n, 2) corners x, y; see `conversion.polygons`.

        Raises:
            ValueError: if the class was not asked for.
        """
        return conversion.polygons(self.mask(name))

    def rle(self, name: str) -> dict[str, Any]:
        """COCO's compressed run lengths of a class's mask, ready for JSON.

        Raises:
            ValueError: if the class was not asked for.
        """
        return conversion.rle(self.mask(name))

    def to_dict(self) -> dict[str, Any]:
        """`summary`, with COCO's run lengths of every class that occurs as "rle"."""
        result = self.summary()
        for row in result["classes"]:
            if row["pixels"]:
                row["rle"] = self.rle(row["name"])
        return result

    def to_coco(self, image_id: int = 1, first_id: int = 1) -> list[dict[str, Any]]:
        """Annotations in COCO's format, one for each class that occurs, as `loadRes` takes them.

        COCO counts from 1: a category's id is ours + 1. `first_id` is that of the first annotation.
        """
        scores = self.scores if self.confidence is not None else {}
        annotations: list[dict[str, Any]] = []
        for name, pixels in self.areas.items():
            mask = self.mask(name)
            annotations.append(
                {
                    "id": first_id + len(annotations),
                    "image_id": image_id,
                    "category_id": self._id(name) + 1,
                    "category": name,
                    "segmentation": conversion.rle(mask),
                    "bbox": list(conversion.bounding_box(mask)),
                    "area": pixels,
                    "iscrowd": 0,
                    **({"score": scores[name]} if scores else {}),
                }
            )
        return annotations

    @staticmethod
    def coco_file(predictions: Mapping[str, Findings]) -> dict[str, Any]:
        """A whole file of COCO's format: images, by their file names, categories and annotations.

        Images count from 1 in the order given.

        Raises:
            ValueError: if there is none, or they were asked for different classes.
        """
        asked = {found.names for found in predictions.values()}
        if len(asked) != 1:
            raise ValueError(f"a COCO file has one list of classes; {len(asked)} are given")
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for number, (file, found) in enumerate(predictions.items(), 1):
            height, width = found.labels.shape
            images.append({"id": number, "file_name": file, "height": height, "width": width})
            annotations += found.to_coco(number, len(annotations) + 1)
        categories = [
            {"id": i, "name": name, "supercategory": ""} for i, name in enumerate(asked.pop(), 1)
        ]
        return {"images": images, "categories": categories, "annotations": annotations}

    def to_df(self) -> Any:
        """A pandas.DataFrame with a row for each class: id, name, seen, pixels, share, score.

        Raises:
            ImportError: if pandas is not installed.
        """
        return conversion.optional("pandas", "to_df").DataFrame(self.summary()["classes"])

    def to_detections(self) -> Any:
        """A supervision.Detections with a mask, box and score for each class that occurs.

        Raises:
            ImportError: if supervision is not installed.
        """
        found = list(self.areas)
        scores = None if self.confidence is None else list(self.scores.values())
        ids = [self._id(name) for name in found]
        return conversion.detections(ids, found, [self.mask(name) for name in found], scores)

    def summary(self) -> dict[str, Any]:
        """All classes with id, seen flag, pixels, share of the image and score, ready for JSON.

        There is no score where there is no confidence, and none, null, of a class without pixels.
        """
        areas, total = self.areas, self.labels.size
        scores = {} if self.confidence is None else self.scores
        classes = [
            {
                "id": i,
                "name": name,
                "seen": self.vocabulary.seen[i],
                "pixels": areas.get(name, 0),
                "share": areas.get(name, 0) / total,
                **({} if self.confidence is None else {"score": scores.get(name)}),
            }
            for i, name in enumerate(self.names)
        ]
        none = {"id": self._none, "pixels": self.rejected, "share": self.rejected / total}
        height, width = self.labels.shape
        return {"height": height, "width": width, "classes": classes, "none_of_these": none}

    def _id(self, name: str) -> int:
        """The id of a class by its name or a synonym."""
        found = self._ids.get(spelling(name)) if isinstance(name, str) else None
        if found is not None:
            return found
        hint = did_you_mean(name, self.names)
        raise ValueError(f"{name!r} is none of the classes asked for; {hint}{list(self.names)}")

    @cached_property
    def _ids(self) -> dict[str, int]:
        """Ids by the spelling of every word for a class; names win over synonyms of others."""
        found: dict[str, int] = {}
        for i, words in enumerate(self.vocabulary.synonyms()):
            for word in words:
                found.setdefault(spelling(word), i)
        found.update((spelling(name), i) for i, name in enumerate(self.names))
        return found

    @property
    def _none(self) -> int:
        return int(np.iinfo(self.labels.dtype).max)

    @cached_property
    def _areas(self) -> dict[str, int]:
        counts = np.zeros(self._none + 1, dtype=np.int64)
        # Row by row: counting makes 64-bit numbers of the labels.
        for row in self.labels:
            counts += np.bincount(row, minlength=len(counts))
        counts = counts[: len(self.names)]
        order = np.argsort(-counts, kind="stable")
        return {self.names[i]: int(counts[i]) for i in order if counts[i]}

    @cached_property
    def _sums(self) -> NDArray[np.float64]:
        """Sum of the confidence over each class's pixels."""
        assert self.confidence is not None
        sums = np.zeros(self._none + 1)
        for row, values in zip(self.labels, self.confidence, strict=True):
            sums += np.bincount(row, weights=values, minlength=len(sums))
        return sums
