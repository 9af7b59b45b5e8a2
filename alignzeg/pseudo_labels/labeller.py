"""One image at a time: regions, names, two files."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T  # noqa: N812 (Detectron2's own alias)
from numpy.typing import NDArray

from alignzeg.contracts import VLMContract
from alignzeg.data.labels import read_record_labels
from alignzeg.data.mapper import test_augmentations
from alignzeg.data.pictures import read_rgb
from alignzeg.data.pseudo import pseudo_files
from alignzeg.engine import AlignZegCheckpointer, Trainer
from alignzeg.files import ATTEMPTS, atomic_write
from alignzeg.pseudo_labels.classes import Classes
from alignzeg.pseudo_labels.region_labels import Thresholds, choose, name_probs, paint
from alignzeg.pseudo_labels.regions import proposal_regions, superpixel_regions
from alignzeg.registries import build_vlm
from alignzeg.structures import Vocabulary


@dataclass(frozen=True)
class RegionSource:
    """Where regions come from.

    Attributes:
        weights: a trained checkpoint whose proposals are taken; empty: superpixels.
        scale: of the superpixels, see `superpixel_regions`.
        min_share: of a proposal on pixels without a human label, see `proposal_regions`.

    Raises:
        ValueError: if a number is out of its range.
    """

    weights: str = ""
    scale: float = 300.0
    min_share: float = 0.5

    def __post_init__(self) -> None:
        if not (self.scale > 0 and 0 <= self.min_share <= 1):
            raise ValueError(
                "regions need a scale above 0 and a share in [0, 1]; got "
                f"{self.scale} and {self.min_share}"
            )


class Labeller:
    """Makes the pseudo-labels of an image."""

    def __init__(
        self,
        cfg: CfgNode,
        classes: Classes,
        source: RegionSource,
        thresholds: Thresholds,
    ) -> None:
        """Builds the frozen VLM and, for proposals, the trained model.

        Raises:
            ValueError: if the weights do not fit the config.
        """
        self.classes = classes
        self.source, self.thresholds = source, thresholds
        self.model = None
        if source.weights:
            self.model = Trainer.build_model(cfg).eval()
            AlignZegCheckpointer(self.model, strict=True).load(source.weights)
            # torch's types let a module's attributes be tensors or modules alone.
            self.vlm = cast(VLMContract, self.model.vlm)
        else:
            self.vlm = build_vlm(cfg)
            if isinstance(self.vlm, torch.nn.Module):
                self.vlm.to(cfg.MODEL.DEVICE)
        self.device = torch.device(cfg.MODEL.DEVICE)
        self.text = self.vlm.embed_text(list(classes.prompts))
        self.wanted = torch.tensor([not human for human in classes.human], device=self.device)
        self._resize = T.AugmentationList(test_augmentations(cfg))

    def __call__(self, record: Mapping[str, Any]) -> tuple[NDArray, NDArray[np.uint8]]:
        """The label map and the confidence map, (H, W) each, of one record of a data set."""
        image = read_rgb(record["file_name"])
        raw = read_record_labels(record, image.shape[:2])
        human = self.classes.human_labels(raw)
        labels = np.where(human, raw, self.classes.ignore_label).astype(self.classes.dtype)
        confidence = np.zeros(labels.shape, dtype=np.uint8)
        regions = self._regions(image, ~human)
        if len(regions):
            names, sureness = self._name(image, regions)
            painted, sure = paint(regions, names, sureness)
            given = painted >= 0
            labels[given] = np.array(self.classes.raw_ids, dtype=labels.dtype)[painted[given]]
            # Never 0 on a pseudo-label: that means a human's, or none.
            confidence[given] = np.maximum(np.rint(255 * sure[given]), 1).astype(np.uint8)
        return labels, confidence

    def write(self, record: Mapping[str, Any], root: str | Path, key: str) -> None:
        """Puts both files in their places, the label map last: it says that both are there."""
        maps = self(record)
        labels, confidence = pseudo_files(root, key)
        for path, content in ((confidence, maps[1]), (labels, maps[0])):
            done, data = cv2.imencode(".png", content)
            if not done:
                raise OSError(errno.EIO, f"cannot encode {path}")
            atomic_write(path, data.tobytes(), durable=True, attempts=ATTEMPTS)

    @torch.no_grad()
    def _regions(self, image: NDArray[np.uint8], hidden: NDArray[np.bool_]) -> NDArray[np.bool_]:
        if self.model is None:
            return superpixel_regions(image, hidden, self.source.scale, self.thresholds.min_area)
        inputs = T.AugInput(image)
        self._resize(inputs)
        names = self.classes.names
        sample = {
            "image": _channels_first(inputs.image),
            "vocabulary": Vocabulary(names, self.classes.human, self.classes.prompts),
        }
        logits = self.model([sample])[0]["mask_logits"]
        return proposal_regions(logits, hidden, self.source.min_share, self.thresholds.min_area)

    def _name(
        self, image: NDArray[np.uint8], regions: NDArray[np.bool_]
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        tensor = _channels_first(image).to(self.device).float()
        masks = torch.from_numpy(regions).to(self.device)
        probs = name_probs(self.vlm, tensor, masks, self.text)
        mirrored = None
        if self.thresholds.flips:
            mirrored = name_probs(self.vlm, tensor.flip(-1), masks.flip(-1), self.text)
        names, confidence = choose(probs, mirrored, self.wanted, self.thresholds)
        return names.cpu().numpy(), confidence.float().cpu().numpy()


def _channels_first(image: NDArray[np.uint8]) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
