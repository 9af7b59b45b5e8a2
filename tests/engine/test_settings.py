"""Configs: what is read, what is merged in which order, what is refused."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from helpers import CONFIGS, plain
from PIL import Image

import alignzeg
from alignzeg.config.plugins import import_plugin
from alignzeg.config.reading import default_config, flat_keys
from alignzeg.config.values import RENAMED
from alignzeg.engine import config_from_yaml, setup_config, validate
from alignzeg.engine.run import run_line
from alignzeg.engine.settings import validate_datasets

ALIGNZEG = CONFIGS / "zeroshapes" / "alignzeg.yaml"


# ---- settings


@pytest.mark.parametrize(("old", "new"), RENAMED.items())
def test_an_old_key_is_answered_with_the_new_one(old: str, new: str) -> None:
    assert new in flat_keys(default_config())
    with pytest.raises(ValueError, match=f"{re.escape(old)} is now called {re.escape(new)}$"):
        setup_config("", [old, "1"])


def test_a_checkpoint_with_old_keys_is_read() -> None:
    text = "ALIGNZEG:\n  TEST:\n    COPY_IOU: 0.25\n"
    cfg = config_from_yaml(text)
    assert cfg.ALIGNZEG.TEST.DUPLICATE_IOU == 0.25


def test_file_and_pairs_are_merged_in_order(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("SOLVER:\n  MAX_ITER: 5\n  IMS_PER_BATCH: 4\n")
    (tmp_path / "run.yaml").write_text("_BASE_: base.yaml\nSOLVER:\n  MAX_ITER: 6\n")
    cfg = setup_config(tmp_path / "run.yaml", ["SOLVER.BASE_LR", "1", "SEED", "7"])
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.IMS_PER_BATCH) == (6, 4)
    assert cfg.SOLVER.BASE_LR == 1.0 and isinstance(cfg.SOLVER.BASE_LR, float)
    assert cfg.SEED == 7


@pytest.mark.parametrize(
    ("key", "word", "value"),
    [
        ("DATASETS.TRAIN", "zeroshapes_train", ("zeroshapes_train",)),
        ("DATASETS.TRAIN", "['a', 'b']", ("a", "b")),
        ("SOLVER.BASE_LR", "1e-4", 1e-4),
        ("SOLVER.AMP.ENABLED", "true", True),
        ("MODEL.WEIGHTS", "123", "123"),
        ("ALIGNZEG.SYNTHESIZER.NAME", "", ""),
        ("ALIGNZEG.VLM.TEMPLATES", "single", ["single"]),
    ],
)
def test_words_become_the_type_of_the_default(key: str, word: str, value: object) -> None:
    node = setup_config("", [key, word])
    for part in key.split("."):
        node = node[part]
    assert node == value and type(node) is type(value)


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (
            ["SOLVER.MAX_ITR", "3"],
            "unknown config key SOLVER.MAX_ITR; did you mean SOLVER.MAX_ITER?",
        ),
        (["ALIGNZEG.CLASSIFIER", "3"], "config key ALIGNZEG.CLASSIFIER is a section"),
        (["SOLVER.MAX_ITER", "many"], r"SOLVER.MAX_ITER is of type int .* got 'many'"),
        (["SOLVER.MAX_ITER", "2.5"], r"SOLVER.MAX_ITER is of type int"),
        (["SOLVER.AMP.ENABLED", "1"], r"SOLVER.AMP.ENABLED is of type bool"),
        (["SOLVER.MAX_ITER"], "come in pairs KEY VALUE, but 1 words were given"),
        (["SEED", "1", "--resume"], "--resume comes after the KEY VALUE pairs"),
        (["ALIGNZEG.PLUGINS", "no.py"], "lists 'no.py', but there is no such file"),
    ],
)
def test_wrong_pairs_are_refused(opts: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        setup_config("", opts)


def test_wrong_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="config file 'no.yaml' does not exist"):
        setup_config("no.yaml")
    bad = tmp_path / "bad.yaml"
    for text, message in (
        ("SOLVER: {MAX_ITER: 3", "not plain YAML"),
        ("SEED: !!python/object/apply:os.getpid []", "not plain YAML"),
        (
            "SOLVER:\n  MAXITER: 3",
            "unknown config key SOLVER.MAXITER; did you mean SOLVER.MAX_ITER",
        ),
        ("_BASE_: gone.yaml", "gone.yaml"),
    ):
        bad.write_text(text)
        with pytest.raises(ValueError, match=message):
            setup_config(bad)


def test_plugin_is_found_beside_the_config_and_brings_its_keys(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from detectron2.config import CfgNode\n"
        "def add_config(cfg):\n    cfg.MINE = CfgNode({'SIZE': 1})\n"
    )
    (tmp_path / "run.yaml").write_text("ALIGNZEG:\n  PLUGINS: [mine.py]\nMINE:\n  SIZE: 2\n")
    cfg = setup_config(tmp_path / "run.yaml", ["MINE.SIZE", "3"])
    assert cfg.MINE.SIZE == 3
    assert cfg.ALIGNZEG.PLUGINS == [str((tmp_path / "mine.py").resolve())]
    again = config_from_yaml(cfg.dump(), trust_code=True)
    assert plain(again) == plain(cfg)
    (tmp_path / "mine2.py").write_text("raise RuntimeError('oh')\n")
    with pytest.raises(ValueError, match=r"plugin .*mine2.py: RuntimeError: oh"):
        setup_config("", ["ALIGNZEG.PLUGINS", str(tmp_path / "mine2.py")])


def test_a_plugin_below_the_current_folder_is_told_by_its_relative_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a checkpoint can be used where the folder was moved to, and from elsewhere."""
    work, moved = tmp_path / "work", tmp_path / "moved"
    (work / "parts").mkdir(parents=True)
    (work / "parts" / "mine.py").write_text("MINE = 1\n")
    monkeypatch.chdir(work)
    for given in ("parts/mine.py", str(work / "parts" / "mine.py")):
        cfg = setup_config("", ["ALIGNZEG.PLUGINS", given])
        assert cfg.ALIGNZEG.PLUGINS == ["parts/mine.py"]
    text = cfg.dump()
    assert str(tmp_path) not in text
    work.rename(moved)
    monkeypatch.chdir(moved)
    assert config_from_yaml(text, trust_code=True).ALIGNZEG.PLUGINS == ["parts/mine.py"]
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="lists 'parts/mine.py', but there is no such file"):
        config_from_yaml(text, trust_code=True)
    beside = config_from_yaml(text, folder=moved / "output" / "run", trust_code=True)
    assert beside.ALIGNZEG.PLUGINS == ["moved/parts/mine.py"]


def test_dump_of_the_defaults_reads_back() -> None:
    assert plain(config_from_yaml(default_config().dump())) == plain(setup_config())
    assert "ALIGNZEG.VLM.MODEL" in flat_keys(default_config())


def test_device_falls_back_to_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    cfg = setup_config("", ["MODEL.DEVICE", "cuda"])
    assert cfg.MODEL.DEVICE == "cpu"
    assert "cpu (no CUDA device is available)" in run_line(cfg, 1)


# ---- validation


def test_an_output_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    cfg = setup_config("", ["OUTPUT_DIR", str(tmp_path / "file" / "run")])
    with pytest.raises(ValueError, match="OUTPUT_DIR is '.*run', but .*file is a file"):
        validate(cfg)
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["MODEL.META_ARCHITECTURE", "AlignZig"], "did you mean 'AlignZeg'"),
        (["ALIGNZEG.HEAD.NAME", "x"], "ALIGNZEG.HEAD.NAME is 'x', which is unknown"),
        (["ALIGNZEG.CRITERIA", "['MaskCriterion', 'x']"], "ALIGNZEG.CRITERIA is 'x'"),
        (
            ["DATASETS.TRAIN", "x"],
            r"DATASETS.TRAIN names the unknown data set 'x'; registered: .*zeroshapes_train",
        ),
        (["DATASETS.TRAIN", "()"], "DATASETS.TRAIN is empty"),
        (["MODEL.WEIGHTS", "no.pth"], "MODEL.WEIGHTS is 'no.pth', but there is no such file"),
        (
            ["SOLVER.IMS_PER_BATCH", "5", "ALIGNZEG.SOLVER.ACCUMULATE", "2"],
            "a multiple of 1 processes x ALIGNZEG.SOLVER.ACCUMULATE 2, such as 4",
        ),
        (["ALIGNZEG.SOLVER.ACCUMULATE", "0"], "ACCUMULATE is 0"),
        (["SOLVER.LR_SCHEDULER_NAME", "Poly"], "SOLVER.LR_SCHEDULER_NAME is 'Poly'"),
        (["ALIGNZEG.SOLVER.AMP_DTYPE", "half"], "AMP_DTYPE is 'half'"),
        (
            ["SOLVER.REFERENCE_WORLD_SIZE", "8", "ALIGNZEG.SOLVER.REFERENCE_BATCH", "16"],
            "both scale",
        ),
    ],
)
def test_what_cannot_run_is_refused(
    zeroshapes: Path, tiny_opts: list[str], opts: list[str], message: str
) -> None:
    cfg = setup_config(ALIGNZEG, [*tiny_opts, *opts])
    with pytest.raises(ValueError, match=message):
        validate(cfg)


def test_a_number_is_no_data_set(tmp_path: Path) -> None:
    # Detectron2's default, an empty tuple, does not say what it holds.
    file = tmp_path / "numbers.yaml"
    file.write_text(f"_BASE_: {ALIGNZEG}\nDATASETS:\n  TRAIN: [1, 2]\n")
    with pytest.raises(ValueError, match="names the unknown data set 1; registered"):
        validate(setup_config(file, ["MODEL.DEVICE", "cpu"]))


def test_what_can_run_is_accepted(tiny_cfg: CfgNode) -> None:
    validate(tiny_cfg, world_size=2)
    with pytest.raises(ValueError, match="a multiple of 3 processes"):
        validate(tiny_cfg, world_size=3)
    with pytest.raises(ValueError, match="MODEL.WEIGHTS is empty"):
        validate(tiny_cfg, training=False, needs_weights=True)


def test_missing_data_is_found_early(
    tiny_cfg: CfgNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match=r"nowhere.* does not exist.*prepare_zeroshapes"):
        validate(tiny_cfg)


def test_a_best_checkpoint_needs_pixels_of_the_classes_of_its_figure(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            (tmp_path / kind / split).mkdir(parents=True)
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "images" / split / "0.png")
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "labels" / split / "0.png")
    alignzeg.register_folder("lacking", tmp_path, classes=["grass", "ball"], unseen=["ball"])
    opts = ["DATASETS.TRAIN", "lacking_train", "DATASETS.TEST", "lacking_val"]
    for figure, fine in {"hIoU": False, "uIoU": False, "sIoU": True, "mIoU": True}.items():
        cfg = setup_config(ALIGNZEG, [*opts, "ALIGNZEG.CHECKPOINT.BEST", f"sem_seg/{figure}"])
        if fine:
            validate_datasets(cfg, training=True)
            continue
        with pytest.raises(
            ValueError, match="no pixel of lacking_val is of a class that is unseen"
        ):
            validate_datasets(cfg, training=True)


def test_a_copy_of_an_imported_plugin_is_that_plugin(tmp_path: Path) -> None:
    (tmp_path / "copies").mkdir()
    text = "COUNT = []\nCOUNT.append(1)\nNAME = 'a copy of an imported plugin'\n"
    for place in (tmp_path / "first.py", tmp_path / "copies" / "second.py"):
        place.write_text(text)
    first = import_plugin(tmp_path / "first.py")
    assert import_plugin(tmp_path / "copies" / "second.py") is first and first.COUNT == [1]
    (tmp_path / "third.py").write_text(text + "OTHER = 1\n")
    assert import_plugin(tmp_path / "third.py") is not first
