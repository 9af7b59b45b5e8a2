"""MSRC-21: its colours, its two layouts, and what is refused."""

from __future__ import annotations

import io

import numpy as np
import official_trees
import pytest
from PIL import Image

from alignzeg.data.preparation import msrc
from alignzeg.data.preparation.command import prepare
from alignzeg.data.preparation.recipe import read_ids

# The table of the archive's description, in the order of the 23 ids; void comes last.
COLOURS = """
    128 0 0      0 128 0      128 128 0    0 0 128      128 0 128    0 128 128    128 128 128
    64 0 0       192 0 0      64 128 0     192 128 0    64 0 128     192 0 128    64 128 128
    192 128 128  0 64 0       128 64 0     0 192 0      128 64 128   0 192 128    128 192 128
    64 64 0      192 64 0     0 0 0
"""
OFFICIAL = "MSRC_ObjCategImageDatabase_v2"


def decoded(content):
    return np.asarray(Image.open(io.BytesIO(content)))


def files(root):
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}


def command(root, *more):
    return ["--root", str(root), "--workers", "1", "--partial", *more]


def test_every_official_colour_has_its_id(tmp_path):
    colours = np.array(COLOURS.split(), np.uint8).reshape(4, 6, 3)
    expected = [*range(23), 255]
    for name in ("a.bmp", "a.png"):
        Image.fromarray(colours).save(tmp_path / name)
        found = decoded(msrc.convert_colours(str(tmp_path / name)))
        assert found.dtype == np.uint8
        assert found.shape == (4, 6)
        assert found.ravel().tolist() == expected


@pytest.mark.parametrize("colour", [(0, 0, 1), (192, 64, 1), (255, 255, 255), (128, 64, 64)])
def test_an_unknown_colour_names_file_and_colour(colour, tmp_path, capsys):
    root = official_trees.msrc_official_tree(tmp_path)
    path = root / OFFICIAL / "GroundTruth/5_1_s_GT.bmp"
    wrong = np.array(Image.open(path))
    wrong[2, 3] = colour
    Image.fromarray(wrong).save(path)
    assert prepare(msrc.RECIPE, command(root)) == 1
    message = capsys.readouterr().err
    assert f"5_1_s_GT.bmp holds 1 colours that are no class of MSRC v2, as {colour}" in message
    assert not (root / "msrc21/annotations/train/5_1_s.png").exists()


@pytest.mark.parametrize("value", [23, 254])
def test_an_unknown_id_is_refused(value, tmp_path, capsys):
    root = official_trees.msrc_cleaned_tree(tmp_path)
    path = root / "msrc_v2/annotations/val/1_3_s.png"
    official_trees.grey(path, np.full((6, 8), value))
    assert prepare(msrc.RECIPE, command(root)) == 1
    assert f"1_3_s.png holds [{value}]; ids are 0 to 22, and 255" in capsys.readouterr().err


@pytest.mark.parametrize("layout", ["official", "cleaned"])
def test_missing_files_are_refused(layout, tmp_path, capsys):
    root = official_trees.TREES[f"msrc21-{layout}"].build(tmp_path)
    assert prepare(msrc.RECIPE, ["--root", str(root)]) == 1
    assert "no label source for 491 listed images, as 1_1_s" in capsys.readouterr().err
    assert not (root / "msrc21").exists()
    image = next(path for path in root.rglob("1_3_s.*"))
    image.unlink()
    assert prepare(msrc.RECIPE, command(root)) == 1
    assert f"has no image {image}" in capsys.readouterr().err


@pytest.mark.parametrize("text", [b"", b"no image"])
def test_an_unreadable_image_is_one_error(text, tmp_path, capsys):
    root = official_trees.msrc_official_tree(tmp_path)
    (root / OFFICIAL / "Images/1_3_s.bmp").write_bytes(text)
    assert prepare(msrc.RECIPE, command(root)) == 1
    assert "cannot read image file" in capsys.readouterr().err


@pytest.mark.parametrize("layout", ["official", "cleaned"])
def test_the_source_may_lie_anywhere(layout, tmp_path, capsys):
    source = official_trees.TREES[f"msrc21-{layout}"].build(tmp_path / "elsewhere")
    within = next(path for path in source.iterdir())
    before = files(source)
    for given in (within, *([source] if layout == "official" else [])):
        root = tmp_path / f"root{given.name}"
        assert prepare(msrc.RECIPE, command(root, "--source", str(given))) == 0
        assert len(files(root)) == 5
    assert files(source) == before
    assert prepare(msrc.RECIPE, command(tmp_path / "empty", "--source", str(tmp_path))) == 1
    message = capsys.readouterr().err
    assert f"no MSRC v2 in {tmp_path} or " in message
    for part in ("Images/ and GroundTruth/", "images/ and annotations/", "--archives", "--source"):
        assert part in message


def test_labels_of_the_two_layouts_are_not_mixed(tmp_path, capsys):
    root = official_trees.msrc_cleaned_tree(tmp_path)
    assert prepare(msrc.RECIPE, command(root, "--splits", "val")) == 0
    before = files(root / "msrc21")
    official_trees.msrc_official_tree(root)  # is found first
    assert prepare(msrc.RECIPE, command(root)) == 1
    message = capsys.readouterr().err
    assert "was prepared from the cleaned-up labels, not from the official archive" in message
    assert files(root / "msrc21") == before
    assert prepare(msrc.RECIPE, command(root, "--source", str(root / "msrc_v2"))) == 0
    assert len(files(root / "msrc21")) == 5


def test_the_lists_are_the_split():
    train, val = (set(read_ids(msrc.LISTS / f"msrc21_{split}.txt")) for split in ("train", "val"))
    assert (len(train), len(val), len(train & val)) == (394, 99, 0)
    scenes = [{int(name.split("_")[0]) for name in split} for split in (train, val)]
    assert scenes == 2 * [set(range(1, 21))]
