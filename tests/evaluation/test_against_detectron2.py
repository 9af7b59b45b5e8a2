"""Our figures beside those of Detectron2's own evaluator, where the two mean the same."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import SemSegEvaluator
from PIL import Image

from alignzeg import register_folder
from alignzeg.data.labels import get_vocabulary
from alignzeg.evaluation import ZeroShotEvaluator

CLASSES = 6


@pytest.fixture
def dataset(tmp_path: Path):
    """Ten label maps of mixed sizes; class 4 is never there, some pixels are unlabelled."""
    random = np.random.default_rng(0)
    for i in range(10):
        size = random.integers(8, 40, 2)
        labels = random.choice([0, 1, 2, 3, 5, 255], size, p=[0.4, 0.2, 0.1, 0.1, 0.1, 0.1])
        for folder, array in (("images", np.zeros((*size, 3))), ("labels", labels)):
            file = tmp_path / folder / "val" / f"{i}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array.astype(np.uint8)).save(file)
    classes = [f"class {i}" for i in range(CLASSES)]
    (name,) = register_folder("compared", tmp_path, classes=classes, unseen=classes[3:])
    yield name
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def test_figures_agree_with_detectron2(dataset: str, tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    ours = ZeroShotEvaluator(dataset, get_vocabulary(dataset), str(tmp_path / "ours"), recall=False)
    theirs = SemSegEvaluator(
        dataset,
        distributed=False,
        output_dir=str(tmp_path / "theirs"),
        sem_seg_loading_fn=lambda file, dtype: np.array(Image.open(file), dtype=dtype),
    )
    theirs.reset()
    for record in DatasetCatalog.get(dataset):
        with Image.open(record["sem_seg_file_name"]) as file:
            truth = np.asarray(file)
        wrong = random.integers(0, CLASSES, truth.shape)
        right = (random.random(truth.shape) < 0.6) & (truth < CLASSES)
        labels = np.where(right, truth, wrong)
        scores = torch.nn.functional.one_hot(torch.from_numpy(labels).long(), CLASSES)
        theirs.process([record], [{"sem_seg": scores.permute(2, 0, 1).float()}])
        ours.process([record], [{"sem_seg": labels.astype(np.uint8)}])
    mine, other = ours.evaluate()["sem_seg"], theirs.evaluate()["sem_seg"]
    assert mine["mIoU"] == pytest.approx(other["mIoU"], abs=1e-9)
    assert mine["pAcc"] == pytest.approx(other["pACC"], abs=1e-9)
    seen = np.mean([other[f"IoU-class {i}"] for i in (0, 1, 2)])
    unseen = np.mean([other[f"IoU-class {i}"] for i in (3, 5)])
    assert mine["sIoU"] == pytest.approx(seen, abs=1e-9)
    assert mine["uIoU"] == pytest.approx(unseen, abs=1e-9)
    assert mine["hIoU"] == pytest.approx(2 * seen * unseen / (seen + unseen), abs=1e-9)
    # Class 4 is predicted and never there: it counts, with 0, in the older denominator alone.
    (file,) = (tmp_path / "ours").glob("evaluation_*.json")
    written = json.loads(file.read_text())["metrics"]
    assert written["mIoU"] == pytest.approx(other["mIoU"], abs=1e-9)
    assert written["mIoU_union"] == pytest.approx(other["mIoU"] * 5 / 6, abs=1e-9)
    assert written["sIoU_union"] == pytest.approx(seen, abs=1e-9)
    assert written["uIoU_union"] == pytest.approx(unseen * 2 / 3, abs=1e-9)
