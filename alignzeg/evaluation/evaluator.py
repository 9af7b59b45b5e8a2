"""The evaluator of generalized zero-shot segmentation, for Detectron2's `inference_on_dataset`."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from detectron2.utils.logger import create_small_table
from numpy.typing import NDArray

from alignzeg.data.labels import ignore_value, label_lookup, read_labels
from alignzeg.evaluation.metrics import (
    class_iou,
    confusion,
    group_confusion,
    metrics_from_confusion,
)
from alignzeg.evaluation.per_image import FILE_PATTERN, PerImage, sparse
from alignzeg.evaluation.proposals import (
    RECALL_THRESHOLDS,
    background_counts,
    background_metrics,
    recall,
    recall_metrics,
    segment_counts,
)
from alignzeg.files import atomic_write
from alignzeg.structures import Vocabulary

logger = logging.getLogger(__name__)

# What goes to the log and to metrics.json; the report holds everything.
_HEADLINES = (
    *("pAcc", "mIoU", "sIoU", "uIoU", "hIoU"),
    *("unseen_to_seen", "seen_to_unseen", "unseen_to_background", "seen_to_background"),
)


class ZeroShotEvaluator(DatasetEvaluator):
    """Integer confusion matrix -> pAcc, mIoU, sIoU, uIoU, hIoU, a bias audit and mask recall.

    Mask recall is class-agnostic: the share of ground-truth segments that some proposal covers with
    an IoU of at least 0.5 (`AR50`) or 0.75 (`AR75`). A segment is **all pixels of one class in one
    image**, so two separate objects of one class are one segment: a label map cannot tell them
    apart. Segments below `min_segment` pixels are left out.

    The bias audit counts pixels of unseen classes that were named as seen ones, and those where the
    background, which is never named, would beat every class (`unseen_to_background`).

    Over several processes only the counts are summed; predictions never travel. Every rate is in
    percent; a rate without a pixel to measure it on is null in the JSON and missing in the result.
    """

    def __init__(
        self,
        dataset_name: str,
        vocabulary: Vocabulary,
        output_dir: str | None = None,
        *,
        recall: bool = True,
        hold_out: str = "",
        min_segment: int = 16,
        per_image: bool = False,
        made_by: Mapping[str, Any] | None = None,
    ) -> None:
        """Prepares an evaluation.

        Args:
            dataset_name: a registered data set; its label files are the ground truth.
            vocabulary: the classes that were asked for, in the order of the predicted ids.
            output_dir: where `evaluation_<dataset_name>.json` is written; None writes nothing.
            recall: whether to measure mask recall; it needs `mask_logits` in the outputs.
            hold_out: the `ALIGNZEG.DATA.HOLD_OUT` the vocabulary was made with; reported.
            min_segment: pixels a segment needs to count in the recall.
            per_image: whether `per_image_<dataset_name>.npz` is written too, see `PerImage`.
            made_by: what the answers are of, written as it is.

        Raises:
            ValueError: on an unknown data set, or one without any class of the vocabulary.
        """
        self.dataset_name = dataset_name
        self.vocabulary = vocabulary
        self.output_dir = output_dir
        self.recall = recall
        self.hold_out = hold_out
        self.min_segment = min_segment
        self.per_image = per_image
        self.made_by = made_by
        self._lookup = label_lookup(dataset_name, vocabulary)
        self.reset()

    def reset(self) -> None:
        """Forgets everything counted so far."""
        k = len(self.vocabulary)
        self._matrix = np.zeros((k, k + 1), dtype=np.int64)
        self._segments = np.zeros((k, 1 + len(RECALL_THRESHOLDS)), dtype=np.int64)
        self._background = np.zeros((2, 2), dtype=np.int64)
        self._images = 0
        self._rows: list[tuple[str, NDArray, NDArray]] = []
        self._error = ""

    def process(
        self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]
    ) -> None:
        """Counts a batch: `sem_seg_file_name` of the inputs, `sem_seg` (`mask_logits`) of outputs.

        Raises:
            ValueError: if a label file cannot be read or holds a wrong value, or a prediction
                has another size or an impossible class. With several processes it is raised by
                all of them in `evaluate`, so that none waits for another in vain.
        """
        if self._error:
            return
        try:
            for record, output in zip(inputs, outputs, strict=True):
                self._count(record, output)
        except ValueError as error:
            if comm.get_world_size() == 1:
                raise
            self._error = str(error)

    def _count(self, record: Mapping[str, Any], output: Mapping[str, Any]) -> None:
        file_name = record["sem_seg_file_name"]
        gt = self._lookup[read_labels(file_name, self.dataset_name)]
        pred = output["sem_seg"]
        pred = pred.cpu().numpy() if isinstance(pred, torch.Tensor) else np.asarray(pred)
        if gt.shape != pred.shape:
            raise ValueError(
                f"label file {file_name} has shape {gt.shape} but the prediction {pred.shape}"
            )
        matrix = confusion(gt, self._checked(pred, file_name), len(self.vocabulary))
        self._matrix += matrix
        if self.per_image:
            self._rows.append((str(file_name), *sparse(matrix)))
        self._images += 1
        if self.recall:
            if output.get("mask_logits") is None:
                raise ValueError(
                    "mask recall needs 'mask_logits' in the model's outputs; "
                    "set ALIGNZEG.TEST.RECALL to False for models without proposals"
                )
            self._segments += segment_counts(
                gt, output["mask_logits"], len(self.vocabulary), self.min_segment
            )
        if output.get("background") is not None:
            background = output["background"].cpu().numpy()
            self._background += background_counts(gt, background, self.vocabulary.seen)

    def _checked(self, pred: NDArray, file_name: str) -> NDArray:
        """The prediction, after a check that each value is a class or the reject value."""
        k, reject = len(self.vocabulary), ignore_value(self.vocabulary)
        if not np.issubdtype(pred.dtype, np.integer):
            raise ValueError(f"the prediction for {file_name} is {pred.dtype}, not integer ids")
        wrong = (pred < 0) | ((pred >= k) & (pred != reject))
        if wrong.any():
            raise ValueError(
                f"the prediction for {file_name} holds class {int(pred[wrong][0])}; "
                f"allowed are 0-{k - 1} and {reject} (rejected)"
            )
        return pred

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """Sums the counts of all processes and reports; must be called by all of them.

        Returns:
            {"sem_seg": {name: figure in percent}} of the headline figures on the main process, None
            on the others.

        Raises:
            ValueError: on every process, if one of them met a wrong file, or no image was counted.
        """
        errors = [error for error in comm.all_gather(self._error) if error]
        if errors:
            raise ValueError(errors[0])
        matrix, segments, background, (images,) = self._reduced()
        if images == 0:
            raise ValueError(f"no image of data set {self.dataset_name!r} was evaluated")
        self._save_per_image()
        if not comm.is_main_process():
            return None
        report = self._report(matrix, segments, background, int(images))
        self._write(report)
        flat = {
            name: value
            for name, value in report["metrics"].items()
            if value is not None and (name in _HEADLINES or name.startswith("AR"))
        }
        logger.info(
            "Evaluation of %s in percent:\n%s\nProtocol: %s",
            self.dataset_name,
            create_small_table(flat),
            json.dumps(report["protocol"]),
        )
        return {"sem_seg": flat}

    def _reduced(self) -> list[NDArray]:
        """The counts of all processes together; the same on every process."""
        images = np.array([self._images], dtype=np.int64)
        parts = [self._matrix, self._segments, self._background, images]
        if comm.get_world_size() == 1:
            return parts
        counts = torch.from_numpy(np.concatenate([part.ravel() for part in parts]))
        if dist.get_backend() == dist.Backend.NCCL:
            counts = counts.to(torch.device("cuda", torch.cuda.current_device()))
        dist.all_reduce(counts)
        split = np.split(counts.cpu().numpy(), np.cumsum([part.size for part in parts])[:-1])
        return [flat.reshape(part.shape) for flat, part in zip(split, parts, strict=True)]

    def _report(
        self, matrix: NDArray, segments: NDArray, background: NDArray, images: int
    ) -> dict[str, Any]:
        seen = self.vocabulary.seen
        metrics = metrics_from_confusion(matrix, seen) | background_metrics(background)
        if self.recall:
            metrics |= recall_metrics(segments, self.vocabulary)
        return {
            "metrics": metrics,
            "protocol": self._protocol(images),
            "groups": group_confusion(matrix, seen),
            "classes": self._class_table(matrix, segments),
            "confusion": matrix.tolist(),
            "made_by": self.made_by,
        }

    def _protocol(self, images: int) -> dict[str, Any]:
        return {
            "dataset": self.dataset_name,
            "images": images,
            "classes": len(self.vocabulary),
            "seen": len(self.vocabulary.seen_ids),
            "unseen": len(self.vocabulary.unseen_ids),
            "hold_out": self.hold_out,
            "setting": "generalized: every pixel is named among all seen and unseen classes",
            "background": "never named; unlabelled pixels are not scored",
            "denominator": "classes present in the ground truth; *_union: or in the prediction",
            "ignore_label": ignore_value(self.vocabulary),
            "unit": "percent",
            "recall": (
                f"class-agnostic, one segment per class and image of at least {self.min_segment} "
                "pixels, labelled pixels only"
                if self.recall
                else "not measured"
            ),
        }

    def _class_table(self, matrix: NDArray, segments: NDArray) -> list[dict[str, Any]]:
        """One row per class; IoU and accuracy in percent, or None without ground truth."""
        true, predicted = matrix.sum(1), matrix[:, : len(matrix)].sum(0)
        rows = []
        for i, iou in enumerate(class_iou(matrix)):
            row = {
                "name": self.vocabulary.names[i],
                "seen": self.vocabulary.seen[i],
                "IoU": iou,
                "acc": 100.0 * int(matrix[i, i]) / int(true[i]) if true[i] else None,
                "gt_pixels": int(true[i]),
                "predicted_pixels": int(predicted[i]),
            }
            if self.recall:
                row["segments"] = int(segments[i, 0])
                for column, name in enumerate(RECALL_THRESHOLDS, start=1):
                    row[name] = recall(segments[i], column)
            rows.append(row)
        return rows

    def _write(self, report: Mapping[str, Any]) -> None:
        """Writes the JSON, one line for each part: 847 x 847 counts do not become as many lines."""
        if self.output_dir is None:
            return
        parts = [f"{json.dumps(key)}: {json.dumps(report[key], allow_nan=False)}" for key in report]
        path = Path(self.output_dir) / f"evaluation_{self.dataset_name}.json"
        atomic_write(path, "{\n" + ",\n".join(parts) + "\n}\n", durable=True)

    def _save_per_image(self) -> None:
        """Writes the counts of every image, on the main process; called by all of them."""
        if not self.per_image:
            return
        rows = [row for part in comm.gather(self._rows) for row in part]
        if comm.is_main_process() and self.output_dir is not None:
            kept = PerImage.collect(self.vocabulary.names, self.vocabulary.seen, rows)
            kept.save(Path(self.output_dir) / FILE_PATTERN.format(self.dataset_name))
