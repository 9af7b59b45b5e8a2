"""A user's own folders: registration by one call or one config block, and what is refused."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from helpers import CONFIGS
from PIL import Image

import alignzeg
from alignzeg.data.checks import check_files
from alignzeg.data.labels import get_vocabulary, training_vocabulary
from alignzeg.data.mapper import ZeroShotMapper
from alignzeg.data.pictures import picture_size, read_rgb
from alignzeg.engine import setup_config, validate
from alignzeg.inference.checkpoint_classes import provide_seen

OWN = "ALIGNZEG.DATA.OWN."
ALIGNZEG = CONFIGS / "own" / "alignzeg.yaml"


@pytest.fixture(autouse=True)
def clean_catalog():
    """Removes whatever a test registers."""
    before = set(DatasetCatalog.list())
    yield
    for name in set(DatasetCatalog.list()) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def write(path: Path, value: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(value).save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three classes, the last one unseen; two pairs of odd, mixed sizes in each split."""
    root = tmp_path / "mine"
    for split in ("train", "val"):
        for stem, size in (("a", (37, 50)), ("sub/b", (64, 41))):
            labels = np.indices(size).sum(0) // 20 % 3
            write(root / "images" / split / f"{stem}.jpg", np.zeros((*size, 3), np.uint8))
            write(root / "labels" / split / f"{stem}.png", labels.astype(np.uint8))
    (root / "classes.txt").write_text("sky\n\nred car\n  old dog \n")
    (root / "unseen.txt").write_text("old dog\n")
    return root


def config(root: Path, *opts: str):
    return setup_config(ALIGNZEG, [f"{OWN}NAME", "mine", f"{OWN}ROOT", str(root), *opts])


def test_one_call_registers_the_folder(folder: Path) -> None:
    assert alignzeg.register_folder("mine", folder) == ["mine_train", "mine_val"]
    vocabulary = get_vocabulary("mine_train")
    assert vocabulary.names == ("sky", "red car", "old dog")
    assert vocabulary.unseen_ids == (2,)
    records = DatasetCatalog.get("mine_val")
    assert [Path(r["file_name"]).stem for r in records] == ["a", "b"]
    assert check_files("mine_val") == 2


def test_one_config_block_registers_it_and_names_the_sets(folder: Path) -> None:
    cfg = config(folder)
    assert tuple(cfg.DATASETS.TRAIN) == ("mine_train",)
    assert tuple(cfg.DATASETS.TEST) == ("mine_val",)
    validate(cfg)


def test_names_and_folders_can_stand_in_the_config(folder: Path) -> None:
    (folder / "labels").rename(folder / "masks")
    (folder / "classes.txt").unlink()
    more = [f"{OWN}LABELS", "masks", f"{OWN}CLASSES", "['sky', 'car', 'dog']"]
    more += [f"{OWN}UNSEEN", "car", f"{OWN}PSEUDO_UNSEEN", "['dog']", "DATASETS.TEST", "()"]
    (folder / "unseen.txt").write_text("not read")
    validate(config(folder, *more))
    assert get_vocabulary("mine_train").unseen_ids == (1,)
    held = get_vocabulary("mine_train", "pseudo_unseen")
    assert (held.names, held.seen) == (("sky", "dog"), (True, False))


def test_data_sets_that_are_named_stay(folder: Path) -> None:
    cfg = config(folder, "DATASETS.TEST", "['zeroshapes_val']")
    assert (cfg.DATASETS.TRAIN, cfg.DATASETS.TEST) == (("mine_train",), ("zeroshapes_val",))


def test_synonyms_are_said_and_not_named(folder: Path) -> None:
    (folder / "classes.txt").write_text("sky; heaven\nred car\nold dog; hound\n")
    alignzeg.register_folder("mine", folder)
    vocabulary = get_vocabulary("mine_train")
    assert vocabulary.names == ("sky", "red car", "old dog")
    assert vocabulary.prompts == ("sky; heaven", "red car", "old dog; hound")
    assert vocabulary.unseen_ids == (2,)


def test_an_edited_list_is_read_anew(folder: Path) -> None:
    alignzeg.register_folder("mine", folder)
    (folder / "unseen.txt").write_text("red car\n")
    alignzeg.register_folder("mine", folder)
    assert get_vocabulary("mine_val").unseen_ids == (1,)


def test_a_shipped_name_is_not_replaced(folder: Path) -> None:
    with pytest.raises(ValueError, match="'zeroshapes_train' is already registered"):
        alignzeg.register_folder("zeroshapes", folder)
    assert MetadataCatalog.get("zeroshapes_train").benchmark.root is None


def test_a_checkpoint_keeps_its_classes_though_the_folder_has_others(folder: Path) -> None:
    cfg = config(folder)
    provide_seen(cfg, ["sky", "red car"])
    assert tuple(cfg.DATASETS.TRAIN) == ("mine_train",)
    (folder / "classes.txt").write_text("sky\nred car\nold dog\ncow\n")
    cfg = config(folder)
    provide_seen(cfg, ["sky", "red car"])
    assert training_vocabulary(cfg).names == ("sky", "red car")


def put(file: str, value: np.ndarray) -> Callable[[Path], object]:
    return lambda root: write(root / file, value)


def text(file: str, content: bytes) -> Callable[[Path], object]:
    return lambda root: (root / file).write_bytes(content)


def empty(split: str) -> Callable[[Path], object]:
    def act(root: Path) -> None:
        for path in (root / "images" / split).rglob("*.jpg"):
            path.unlink()

    return act


LABEL = "labels/train/a.png"
WRONG = {
    "one too high": (
        put(LABEL, np.full((37, 50), 3, np.uint8)),
        r"a\.png holds \[3\].*allowed are 0-2 and 255.*position in the list of names, from 0",
    ),
    "colours": (put(LABEL, np.zeros((37, 50, 3), np.uint8)), r"a\.png.*must be one channel"),
    "another size": (
        put(LABEL, np.zeros((50, 37), np.uint8)),
        r"a\.jpg has 37 x 50 pixels.*a\.png has 50 x 37",
    ),
    "no label file": (
        lambda root: (root / LABEL).unlink(),
        r"train/a\.jpg has no label file .*labels/train/a\.",
    ),
    "no image file": (
        lambda root: (root / "images/val/a.jpg").unlink(),
        r"val/a\.png has no image file",
    ),
    "nothing learnable": (
        lambda root: [
            write(root / "labels/train" / f"{stem}.png", np.full(size, 2, np.uint8))
            for stem, size in (("a", (37, 50)), ("sub/b", (64, 41)))
        ],
        r"'mine_train': no pixel of 2 label files has a seen class",
    ),
    "broken image": (text("images/val/a.jpg", b"no image"), r"cannot read image.*val/a\.jpg"),
    "empty split": (empty("train"), r"'mine_train': folder .*images/train holds no"),
    "no labels at all": (
        lambda root: (root / "labels").rename(root / "masks"),
        r"folder .*labels/\w+ does not exist.*needs images/<split> and labels/<split>",
    ),
    "not UTF-8": (
        text("classes.txt", "sky\nBär\n".encode("latin-1")),
        r"classes\.txt is not UTF-8 text \(byte 0xe4 at position 5\); save it as UTF-8",
    ),
    "no class list": (lambda root: (root / "classes.txt").unlink(), r"cannot read .*classes\.txt"),
    "a name twice": (
        text("classes.txt", b"sky\nold dog\nsky\n"),
        r"'mine' in .*more than once: \['sky'\]",
    ),
    "unknown unseen": (text("unseen.txt", b"cat\n"), r"unseen classes \['cat'\] are not among"),
    "no images": (
        lambda root: (root / "images").rename(root / "photos"),
        r"holds none of the folders images/train, images/val, images/test",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_said_before_the_first_step(folder: Path, case: str) -> None:
    break_it, message = WRONG[case]
    break_it(folder)
    with pytest.raises(ValueError, match=message) as caught:
        validate(config(folder))
    assert "\n" not in str(caught.value)


def test_a_root_without_a_name_and_a_name_that_is_none(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"OWN\.NAME is not"):
        setup_config(ALIGNZEG, [f"{OWN}ROOT", str(folder)])
    with pytest.raises(ValueError, match="cannot be called 'a/b'"):
        setup_config(ALIGNZEG, [f"{OWN}NAME", "a/b", f"{OWN}ROOT", str(folder)])


@pytest.mark.parametrize("key", ["CLASSES", "UNSEEN", "PSEUDO_UNSEEN"])
def test_names_in_the_config_are_words(folder: Path, key: str) -> None:
    named = [f"{OWN}NAME", "mine", f"{OWN}ROOT", str(folder)]
    with pytest.raises(ValueError, match=rf"OWN\.{key} lists \[\]; it lists class names"):
        setup_config(ALIGNZEG, [*named, f"{OWN}{key}", "['sky', []]"])


def test_a_byte_order_mark_is_no_part_of_a_name(folder: Path) -> None:
    (folder / "classes.txt").write_bytes("sky\r\nred car\r\nold dog".encode("utf-8-sig"))
    alignzeg.register_folder("mine", folder)
    assert get_vocabulary("mine_val").names == ("sky", "red car", "old dog")


def test_absent_classes_are_mentioned(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "classes.txt").write_text("sky\nred car\nold dog\ncow\n")
    with caplog.at_level(logging.WARNING):
        validate(config(folder))
    assert "mine_val: no pixel of 2 label files is cow" in caplog.text


def test_a_turned_photograph_has_the_size_that_is_read(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.zeros((4, 9, 3), np.uint8)).save(tmp_path / "phone.jpg", exif=exif)
    assert picture_size(str(tmp_path / "phone.jpg")) == (9, 4)
    assert read_rgb(str(tmp_path / "phone.jpg")).shape[:2] == (9, 4)


def test_training_sees_what_prediction_sees(folder: Path) -> None:
    """Sixteen bits and transparency are no other image in training."""
    deep = np.linspace(0, 65535, 37 * 50).reshape(37, 50).astype(np.uint16)
    clear = np.zeros((64, 41, 4), np.uint8)
    clear[:9] = (10, 200, 30, 255)
    for stem, array in (("a", deep), ("sub/b", clear)):
        (folder / f"images/val/{stem}.jpg").unlink()
        write(folder / f"images/val/{stem}.png", array)
    mapper = ZeroShotMapper(config(folder, "INPUT.MIN_SIZE_TEST", "0"), is_train=False)
    seen = [mapper(record)["image"].permute(1, 2, 0) for record in DatasetCatalog.get("mine_val")]
    assert np.array_equal(seen[0][..., 1], np.round(deep / 257).astype(np.uint8))
    assert (seen[1][0, 0].tolist(), seen[1][-1, -1].tolist()) == ([10, 200, 30], [255, 255, 255])


def test_files_are_checked_up_to_the_limit(folder: Path) -> None:
    alignzeg.register_folder("mine", folder)
    assert [check_files("mine_val", limit) for limit in (-1, 0, 1, 99)] == [2, 0, 1, 2]


def test_a_thousand_pairs_are_checked_in_seconds(folder: Path) -> None:
    image = (folder / "images/train/a.jpg").read_bytes()
    label = (folder / "labels/train/a.png").read_bytes()
    for i in range(1000):
        (folder / "images/train" / f"{i}.jpg").write_bytes(image)
        (folder / "labels/train" / f"{i}.png").write_bytes(label)
    alignzeg.register_folder("mine", folder)
    started = time.perf_counter()
    assert check_files("mine_train") == 1002
    assert time.perf_counter() - started < 30
