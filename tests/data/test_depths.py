"""Depth, orientation and kind of images and label files, in files and in memory."""

from __future__ import annotations

from pathlib import Path

import cv2
import fuzz_data
import numpy as np
import pytest
import torch
from fuzzing.data_files import png
from PIL import Image

import alignzeg
from alignzeg.data.checks import count_classes
from alignzeg.data.input_images import as_rgb
from alignzeg.data.labels import get_vocabulary, label_lookup, read_labels
from alignzeg.data.pictures import check_image, eight_bits, picture_size, read_rgb, read_values

GREY = np.array([[0, 1, 200], [255, 90, 30]], np.uint8)


@pytest.mark.parametrize(
    ("values", "fits"),
    [
        (GREY / np.float32(255), True),
        (GREY.astype(np.float32), True),
        (GREY.astype(np.uint16) * 257, True),
        (GREY.astype(np.int32) * 257, True),
        (GREY.astype(np.uint16), True),
        (GREY.astype(np.uint16) * 16, False),
        (GREY.astype(np.uint16) * 4, False),
        ((GREY.astype(np.float32) - 128) * 8, False),
        (GREY / np.float32(128), False),
        (GREY.astype(np.int32) * 9999, False),
        (np.full((2, 2), np.nan, np.float32), False),
    ],
)
def test_depths_are_scaled_or_refused(tmp_path: Path, values: np.ndarray, fits: bool) -> None:
    path = tmp_path / "deep.tif"
    Image.fromarray(values).save(path)
    if fits:
        assert np.array_equal(read_rgb(path)[..., 0], GREY)
        assert check_image(path) == (2, 3)
        return
    with pytest.raises(ValueError, match=r"deep\.tif: it"):
        read_rgb(path)
    with pytest.raises(ValueError, match=r"deep\.tif: it"):
        check_image(path)


def test_colours_of_twelve_bits_are_not_black(tmp_path: Path) -> None:
    colours = np.stack([GREY] * 3, -1).astype(np.uint16)
    cv2.imwrite(str(tmp_path / "whole.png"), colours * 257)
    assert np.array_equal(read_rgb(tmp_path / "whole.png")[..., 0], GREY)
    cv2.imwrite(str(tmp_path / "part.png"), colours * 16)
    with pytest.raises(ValueError, match=r"part\.png: its 16 bits hold no value above 4095"):
        read_rgb(tmp_path / "part.png")


@pytest.mark.parametrize(("tag", "turns"), [(1, 0), (3, 2), (6, -1), (8, 1)])
def test_a_turned_tiff_is_turned_once(tmp_path: Path, tag: int, turns: int) -> None:
    path = tmp_path / "turned.tif"
    Image.fromarray(GREY).save(path, tiffinfo={0x0112: tag})
    right = np.rot90(GREY, turns)
    assert picture_size(path) == check_image(path) == right.shape
    assert np.array_equal(read_rgb(path)[..., 0], right)
    assert np.array_equal(read_values(path), right)
    with Image.open(path) as image:
        assert np.array_equal(as_rgb(image)[..., 0], right)


@pytest.mark.parametrize("bits", [2, 4])
def test_grey_labels_that_readers_scale_are_refused(tmp_path: Path, bits: int) -> None:
    path = tmp_path / "label.png"
    path.write_bytes(png(np.array([[0, 1], [2, 3]]), bits))
    assert np.array(Image.open(path))[0, 1] == 255 // (2**bits - 1)  # not the 1 in the file
    with pytest.raises(ValueError, match=rf"label\.png: it is grey of {bits} bits"):
        read_values(path)


def test_a_label_file_of_several_frames_is_refused(tmp_path: Path) -> None:
    image = Image.fromarray(GREY)
    image.save(tmp_path / "label.tif", save_all=True, append_images=[image])
    with pytest.raises(ValueError, match="2 frames"):
        read_values(tmp_path / "label.tif")


def test_255_is_not_taken_for_a_class_among_many(tmp_path: Path) -> None:
    (tmp_path / "images" / "train").mkdir(parents=True)
    names = [f"thing {i}" for i in range(300)]
    path = tmp_path / "label.png"
    Image.fromarray(np.array([[0, 255, 299]], np.uint16)).save(path)
    alignzeg.register_folder("many", tmp_path, classes=names)
    with pytest.raises(ValueError, match=r"holds 255, which is the class 'thing 255'.*65535"):
        read_labels(str(path), "many_train")
    alignzeg.register_folder("many", tmp_path, classes=names, ignore_label=65535)
    assert read_labels(str(path), "many_train").tolist() == [[0, 255, 299]]
    with pytest.raises(ValueError, match="255.*choose another ignore_label"):
        alignzeg.register_folder("many", tmp_path, classes=names, ignore_label=255)


def test_deep_images_are_looked_at_before_the_first_step(tmp_path: Path) -> None:
    (tmp_path / "images" / "train").mkdir(parents=True)
    alignzeg.register_folder("deep", tmp_path, classes=["a", "b"])
    Image.fromarray(GREY.astype(np.uint16) * 16).save(tmp_path / "image.png")
    Image.fromarray(np.zeros_like(GREY)).save(tmp_path / "label.png")
    record = {
        "file_name": str(tmp_path / "image.png"),
        "sem_seg_file_name": str(tmp_path / "label.png"),
        "dataset_name": "deep_train",
    }
    with pytest.raises(ValueError, match=r"image\.png: its values are 0 to 4080"):
        count_classes(record, label_lookup("deep_train", get_vocabulary("deep_train")))


def test_tensors_and_arrays_of_one_image_are_the_same() -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype(np.uint8)
    tensor = torch.from_numpy(rgb)
    for given in (rgb, Image.fromarray(rgb), tensor, tensor.permute(2, 0, 1), rgb / 255):
        assert np.array_equal(as_rgb(given), rgb)
    assert np.array_equal(as_rgb(tensor.permute(2, 0, 1) / 255), rgb)
    for given in (tensor[None], tensor[:, :, :2], tensor.float(), tensor / 127 - 1, None, [rgb]):
        with pytest.raises(ValueError, match="image"):
            as_rgb(given)


def test_eight_bits_names_the_range() -> None:
    with pytest.raises(ValueError, match=r"its values are -3 to 7 \(int32\)"):
        eight_bits(np.array([-3, 7], np.int32))


def test_a_few_rounds_of_the_fuzz(capsys: pytest.CaptureFixture[str]) -> None:
    assert fuzz_data.main(["--rounds", "200"]) == 0
    out = capsys.readouterr().out
    assert "200 cases in" in out and "0 failures" in out
    for kind in ("list", "label", "folder", "image"):
        assert f"{kind:10}    50 cases: refused" in out


def test_the_fuzz_sees_what_is_read_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fuzzing.data_images.as_rgb", lambda _: np.zeros((9, 9, 3), np.uint8))
    monkeypatch.setattr("fuzzing.data_lists.class_names", lambda names, _: tuple(names))
    assert fuzz_data.main(["--rounds", "60"]) == 1
