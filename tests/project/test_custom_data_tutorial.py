"""docs/custom_data.md: its files are written and its commands run, with fewer steps."""

from __future__ import annotations

import json
import re
import runpy
import shlex
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from helpers import REPOSITORY, TINY_OPTS
from PIL import Image

from alignzeg.__main__ import main
from alignzeg.data.catalog import dataset_root
from alignzeg.data.labels import get_vocabulary

TEXT = (REPOSITORY / "docs" / "custom_data.md").read_text(encoding="utf-8")
COMMANDS = [
    line
    for block in re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL)
    for line in block.split("\n")
]
SMALLER = [*TINY_OPTS, "ALIGNZEG.DATA.CROP_SIZE", "64", "INPUT.MIN_SIZE_TEST", "64"]
SMALLER += ["INPUT.MIN_SIZE_TRAIN", "(64,)", "DATALOADER.NUM_WORKERS", "0"]
SMALLER += ["ALIGNZEG.VLM.IMAGE_SIZE", "64"]
CAMVID_CLASSES = 11
MORE = ("train", "evaluate", "calibrate")


def block(language: str, holds: str) -> str:
    """The code block of a language that holds a text."""
    (found,) = [b for b in re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL) if holds in b]
    return found


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like a clone, with the files that the text has the reader write."""
    folder = tmp_path_factory.mktemp("clone")
    (folder / "configs").symlink_to(REPOSITORY / "configs")
    (folder / "draw_garden.py").write_text(block("python", "COLORS"))
    (folder / "garden.yaml").write_text(block("yaml", "ROOT: garden"))
    (folder / "camvid.yaml").write_text(block("yaml", "ROOT: camvid"))
    (folder / "plain_segmentor.py").write_text(block("python", "PlainSegmentor"))
    return folder


@pytest.fixture
def camvid(workplace: Path) -> Path:
    """CamVid itself if DETECTRON2_DATASETS has it, else noise in its layout."""
    folder = workplace / "camvid"
    real = dataset_root()[0] / "camvid"
    if real.is_dir():
        folder.symlink_to(real)
        return folder
    random = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 1), ("test", 1)):
        for i in range(count):
            for name, array in (
                (f"images/{split}/{i}.jpg", random.integers(0, 256, (72, 96, 3))),
                (f"annotations/{split}/{i}.png", np.indices((72, 96)).sum(0) // 8 % CAMVID_CLASSES),
            ):
                file = folder / name
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array.astype(np.uint8)).save(file)
    return folder


@pytest.fixture(autouse=True)
def there(workplace: Path, monkeypatch: pytest.MonkeyPatch):
    """Works in that folder, and forgets the data sets of a test afterwards."""
    monkeypatch.chdir(workplace)
    monkeypatch.setenv("HOME", str(workplace))
    before = set(DatasetCatalog.list())
    yield
    for name in set(DatasetCatalog.list()) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def run(line: str) -> int:
    """Runs one command of the text in this process; its exit code."""
    words = shlex.split(line)
    if words[0] == "alignzeg":
        return main([*words[1:], *(SMALLER if words[1] in MORE else ())])
    assert words[0] == "python"
    runpy.run_path(words[1], run_name="__main__")
    return 0


def test_the_garden_is_drawn_trained_evaluated_and_predicted(workplace: Path) -> None:
    lines = [line for line in COMMANDS if line and "camvid" not in line]
    assert len(lines) == 8
    for line in lines:
        assert run(line) == 0 or "vocabulary" in line, line
    assert get_vocabulary("garden_val").unseen_ids == (3,)
    report = json.loads(
        (workplace / "output/garden/inference/evaluation_garden_val.json").read_text()
    )
    assert report["protocol"]["images"] == 8
    assert [row["name"] for row in report["classes"]] == ["grass", "sky", "red ball", "blue box"]
    assert (workplace / "output/pseudo/calibration.png").is_file()
    assert "GAMMA" in (workplace / "best.yaml").read_text()
    with Image.open(workplace / "output/predict/00_labels.png") as answer:
        size = answer.size
    with Image.open(workplace / "garden/images/val/00.png") as image:
        assert size == image.size


def test_the_call_registers_it(workplace: Path) -> None:
    if not Path("garden").exists():
        run("python draw_garden.py")
    exec(block("python", "register_folder"), {})
    assert len(DatasetCatalog.get("garden_train")) == 40


def test_camvid_trains_as_it_lies(workplace: Path, camvid: Path) -> None:
    assert len(block("yaml", "ROOT: camvid").splitlines()) < 20
    for line in (line for line in COMMANDS if "camvid" in line):
        assert run(line) == 0
    for name in ("camvid", "camvid_plain"):
        folder = workplace / "output" / name
        metrics = json.loads((folder / "metrics.json").read_text().splitlines()[-1])
        assert {"sem_seg/sIoU", "sem_seg/uIoU"} <= set(metrics)
        assert (folder / "model_final.pth").is_file()
    plain = json.loads((folder / "inference/evaluation_camvid_val.json").read_text())
    assert plain["groups"]["seen"]["unseen"] == 0  # it knows no unseen class
    assert get_vocabulary("camvid_train").unseen_ids == (6, 7, 10)
    assert len(DatasetCatalog.get("camvid_val")) == len([*camvid.glob("annotations/val/*.png")])
