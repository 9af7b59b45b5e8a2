"""Record -> image and targets. In training no trace of a hidden class leaves this file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import transforms as T  # noqa: N812 (Detectron2's own alias)

from alignzeg.data.color_jitter import ColorJitter
from alignzeg.data.labels import (
    eval_vocabulary,
    ignore_value,
    label_lookup,
    read_record_labels,
    training_vocabulary,
)
from alignzeg.data.pictures import read_rgb, read_values
from alignzeg.structures import IGNORE_LABEL, Targets, Vocabulary


class ZeroShotMapper:
    """Turns a record of the catalog into what the model takes.

    Pixels of classes outside the vocabulary are turned into "unlabelled" before anything else sees
    the labels, random cropping included, so a training sample does not depend on them.

    All randomness comes from the global generators of `numpy` and `random`, which Detectron2
    seeds in every worker.
    """

    @configurable
    def __init__(
        self,
        *,
        is_train: bool,
        vocabularies: Mapping[str, Vocabulary],
        augmentations: Sequence[T.Augmentation | T.Transform],
        ignore_as_negative: bool = False,
        pseudo_weight: float = 1.0,
    ) -> None:
        """Takes everything as values; see `from_config` for the config keys.

        Args:
            is_train: whether to read labels and build targets.
            vocabularies: data set name -> classes to train on, or to ask for in a test.
            augmentations: applied to RGB images and labels together.
            ignore_as_negative: as in `build_targets`.
            pseudo_weight: what a pixel with a pseudo-label counts, in [0, 1].
        """
        self.is_train = is_train
        self.vocabularies = dict(vocabularies)
        self.augmentations = T.AugmentationList(list(augmentations))
        self.ignore_as_negative = ignore_as_negative
        self.pseudo_weight = pseudo_weight
        self._lookups = {
            name: label_lookup(name, vocabulary) for name, vocabulary in self.vocabularies.items()
        }

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        """Reads `INPUT`, `DATASETS` and `ALIGNZEG.DATA`."""
        names = cfg.DATASETS.TRAIN if is_train else cfg.DATASETS.TEST
        if is_train:
            vocabularies = dict.fromkeys(names, training_vocabulary(cfg))
        else:
            vocabularies = {name: eval_vocabulary(cfg, name) for name in names}
        return {
            "is_train": is_train,
            "vocabularies": vocabularies,
            "augmentations": (
                training_augmentations(cfg, ignore_value(training_vocabulary(cfg)))
                if is_train
                else test_augmentations(cfg)
            ),
            "ignore_as_negative": cfg.ALIGNZEG.DATA.IGNORE_AS_NEGATIVE,
            "pseudo_weight": cfg.ALIGNZEG.DATA.PSEUDO.WEIGHT,
        }

    def __call__(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """Maps one record.

        Args:
            record: `file_name`, `dataset_name`, and `sem_seg_file_name` in training;
                `pseudo_file_name` where some of its labels are no human's.

        Returns:
            `image` (3, H, W) uint8 RGB after augmentation, `vocabulary`, `file_name`, and `height`,
            `width` of the image on disk; in training `targets`, else `sem_seg_file_name`.

        Raises:
            ValueError: if a file cannot be read, a label is out of range, image and label differ
                in size, or the data set is not one this mapper was built for.
        """
        dataset_name = record["dataset_name"]
        if dataset_name not in self.vocabularies:
            raise ValueError(
                f"{record['file_name']} belongs to data set {dataset_name!r}, but this mapper was "
                f"built for {sorted(self.vocabularies)}"
            )
        image = read_rgb(record["file_name"])
        height, width = image.shape[:2]
        sample: dict[str, Any] = {
            "vocabulary": self.vocabularies[dataset_name],
            "file_name": record["file_name"],
            "height": height,
            "width": width,
        }
        if self.is_train:
            inputs = T.AugInput(image, sem_seg=self._labels(record, (height, width)))
            transforms = self.augmentations(inputs)
            sample["targets"] = build_targets(
                inputs.sem_seg,
                len(sample["vocabulary"]),
                record["file_name"],
                self.ignore_as_negative,
                self._weights(record, (height, width), transforms),
            )
        else:
            inputs = T.AugInput(image)
            self.augmentations(inputs)
            if "sem_seg_file_name" in record:
                sample["sem_seg_file_name"] = record["sem_seg_file_name"]
        sample["image"] = torch.from_numpy(np.ascontiguousarray(inputs.image.transpose(2, 0, 1)))
        return sample

    def _weights(
        self, record: Mapping[str, Any], size: tuple[int, int], transforms: T.TransformList
    ) -> np.ndarray | None:
        """What each pixel counts, after the transforms; None where all labels are human."""
        if "pseudo_file_name" not in record:
            return None
        file_name = record["pseudo_file_name"]
        confidence = read_values(file_name)
        if confidence.shape != size:
            raise ValueError(
                f"image {record['file_name']} has {size[0]} x {size[1]} pixels (height x width) "
                f"but the confidence of its pseudo-labels, {file_name}, has {confidence.shape}"
            )
        pseudo = transforms.apply_segmentation((confidence > 0).astype(np.uint8))
        return np.where(pseudo, self.pseudo_weight, 1.0).astype(np.float32)

    def _labels(self, record: Mapping[str, Any], size: tuple[int, int]) -> np.ndarray:
        labels = self._lookups[record["dataset_name"]][read_record_labels(record, size)]
        # Detectron2 resizes anything but uint8 through torch, which knows no uint16.
        return labels if labels.dtype == np.uint8 else labels.astype(np.float32)


class ShorterSide(T.ResizeShortestEdge):
    """Detectron2's, which makes strips of no pixels where the longer side reaches its limit."""

    def get_transform(self, image: np.ndarray) -> T.Transform:
        """A resize whose sides are 1 pixel or more."""
        found = super().get_transform(image)
        if isinstance(found, T.ResizeTransform) and min(found.new_h, found.new_w) < 1:
            size = (max(1, found.new_h), max(1, found.new_w))
            return T.ResizeTransform(found.h, found.w, *size, found.interp)
        return found


def test_augmentations(cfg: CfgNode) -> list[T.Augmentation | T.Transform]:
    """Resizes the shorter side to `INPUT.MIN_SIZE_TEST` pixels; 0 leaves the image as it is.

    With `TEST.AUG.ENABLED` it stays too: the model makes all of its sizes from the original.
    """
    size = 0 if cfg.TEST.AUG.ENABLED else cfg.INPUT.MIN_SIZE_TEST
    return [ShorterSide([size, size], cfg.INPUT.MAX_SIZE_TEST)] if size else []


test_augmentations.__test__ = False  # type: ignore[attr-defined]  # pytest takes it for a test


def training_augmentations(
    cfg: CfgNode, ignore_label: int = IGNORE_LABEL
) -> list[T.Augmentation | T.Transform]:
    """Detectron2's augmentations in the usual order: size, crop, colour, flip.

    A size of 0 in `INPUT.MIN_SIZE_TRAIN` leaves the image as it is.
    """
    data = cfg.ALIGNZEG.DATA
    steps: list[T.Augmentation | T.Transform] = []
    if any(cfg.INPUT.MIN_SIZE_TRAIN):
        steps.append(
            ShorterSide(
                cfg.INPUT.MIN_SIZE_TRAIN,
                cfg.INPUT.MAX_SIZE_TRAIN,
                cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING,
            )
        )
    if data.CROP_SIZE:
        steps.append(
            T.RandomCrop_CategoryAreaConstraint(
                "absolute", [data.CROP_SIZE] * 2, data.CROP_MAX_CLASS_SHARE, ignore_label
            )
        )
    if data.COLOR_JITTER:
        steps.append(ColorJitter())
    if cfg.INPUT.RANDOM_FLIP != "none":
        steps.append(
            T.RandomFlip(
                horizontal=cfg.INPUT.RANDOM_FLIP == "horizontal",
                vertical=cfg.INPUT.RANDOM_FLIP == "vertical",
            )
        )
    return steps


def build_targets(
    labels: np.ndarray,
    num_classes: int,
    name: str = "",
    ignore_as_negative: bool = False,
    weights: np.ndarray | None = None,
) -> Targets:
    """One mask per class that occurs.

    Args:
        labels: (H, W) class ids, whole numbers of any dtype; values >= num_classes are unlabelled.
        num_classes: classes trained on.
        name: for error messages.
        ignore_as_negative: unlabelled pixels are valid too, and so negatives of every mask, as in
            the published peers, instead of being left out of the losses.
        weights: (H, W) float32 in [0, 1], what a pixel counts; None: 1.

    Returns:
        Targets with classes ascending; no masks, and nothing valid but by `ignore_as_negative`, if
        no pixel is labelled.
    """
    if labels.dtype != np.uint8:
        labels = labels.astype(np.uint16)
    present = np.flatnonzero(np.bincount(labels.ravel(), minlength=num_classes)[:num_classes])
    masks = labels[None] == present.astype(labels.dtype)[:, None, None]
    return Targets(
        labels=torch.from_numpy(present),
        masks=torch.from_numpy(masks),
        valid=torch.from_numpy((labels < num_classes) | ignore_as_negative),
        name=name,
        weights=None if weights is None else torch.from_numpy(np.ascontiguousarray(weights)),
    )
