"""Sources of a data set that are not as they should be: one error each."""

from __future__ import annotations

import json

import numpy as np
import official_trees
import pytest
from helpers import REPOSITORY
from official_trees import (
    SIZE,
    VOC_MAP,
    blocks,
    coloured_palette,
    grey,
    lines,
)
from scipy.io import savemat

from alignzeg.data.preparation import (
    ade20k,
    coco_stuff,
    context,
    msrc,
    voc,
)
from alignzeg.data.preparation.command import prepare


@pytest.fixture
def context_tree(tmp_path):
    return official_trees.context_tree(tmp_path)


@pytest.fixture
def context_json_tree(tmp_path):
    return official_trees.context_json_tree(tmp_path)


@pytest.mark.parametrize(
    ("recipe", "first", "archive"),
    [
        (voc.RECIPE, "VOCdevkit/VOC2012/JPEGImages", "VOCtrainval_11-May-2012.tar"),
        (context.RECIPE, "VOCdevkit/VOC2010/JPEGImages", "VOCtrainval_03-May-2010.tar"),
        (coco_stuff.RECIPE, "coco/train2017", "train2017.zip"),
        (ade20k.RECIPE_150, "ADEChallengeData2016/images/training", "ADEChallengeData2016.zip"),
        (ade20k.RECIPE_847, "images/ADE/validation", "ADE20K_2021_17_01.zip"),
        (msrc.RECIPE, "MSRC_ObjCategImageDatabase_v2", "msrc_objcategimagedatabase_v2.zip"),
    ],
)
def test_a_missing_archive_is_named_with_the_way_on(recipe, first, archive, tmp_path, capsys):
    assert prepare(recipe, ["--root", str(tmp_path)]) == 1
    message = capsys.readouterr().err
    for part in (first, archive, "http", f"datasets/prepare_{recipe.name}.py", "--archives"):
        assert part in message
    assert (REPOSITORY / "datasets" / f"prepare_{recipe.name}.py").is_file()


def test_wrong_voc_sources(voc_tree, capsys):
    command = ["--root", str(voc_tree), "--workers", "1"]
    source = voc_tree / "VOCdevkit/VOC2012/SegmentationClass/2007_000032.png"
    grey(source, np.zeros((6, 8, 3)))
    assert prepare(voc.RECIPE, command) == 1
    assert "2007_000032.png holds colours" in capsys.readouterr().err
    coloured_palette(source, blocks([0, 21], [1, 1], [1, 1]))
    assert prepare(voc.RECIPE, command) == 1
    assert "2007_000032.png holds [21]; VOC's values are" in capsys.readouterr().err
    coloured_palette(source, VOC_MAP)
    matlab = voc_tree / "benchmark_RELEASE/dataset/cls/2008_000015.mat"
    savemat(matlab, {"GTinst": np.zeros((2, 2))})
    assert prepare(voc.RECIPE, command) == 1
    assert "2008_000015.mat does not hold GTcls.Segmentation" in capsys.readouterr().err
    # The first 128 bytes of a MATLAB 7.3 file; HDF5 follows.
    matlab.write_bytes(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + b"\x89HDF\r\n\x1a\n")
    assert prepare(voc.RECIPE, command) == 1
    assert "2008_000015.mat is a MATLAB 7.3 file" in capsys.readouterr().err
    for content in (b"", b"no matlab"):
        matlab.write_bytes(content)
        assert prepare(voc.RECIPE, command) == 1
        assert "2008_000015.mat" in capsys.readouterr().err
    matlab.unlink()
    assert prepare(voc.RECIPE, command) == 1
    assert "benchmark.tgz" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a\xff\xfe\n", "cannot read the id list"),
        (b"", "got 0 ids"),
        (b"a\na\n", "got 2 ids, 1 different"),
        (b"../../etc\n", "must hold unique ids"),
    ],
)
def test_a_wrong_id_list_is_one_error(voc_tree, capsys, content, message):
    (voc_tree / "VOCdevkit/VOC2012/ImageSets/Segmentation/train.txt").write_bytes(content)
    assert prepare(voc.RECIPE, ["--root", str(voc_tree)]) == 1
    assert message in capsys.readouterr().err


def test_context_wants_all_listed_images(context_tree, capsys):
    assert prepare(context.RECIPE, ["--root", str(context_tree)]) == 1
    assert "no label source for 5103 listed images" in capsys.readouterr().err
    savemat(
        context_tree / "VOCdevkit/VOC2010/trainval/2008_000002.mat",
        {"LabelMap": np.full(SIZE, 460, np.uint16)},
    )
    assert prepare(context.RECIPE, ["--root", str(context_tree), "--partial"]) == 1
    assert "2008_000002.mat holds the values 460 to 460" in capsys.readouterr().err


def test_no_image_is_trained_on_and_tested_on(context_tree, capsys):
    lines(context_tree / "VOCdevkit/VOC2010/ImageSets/Main/train.txt", "2007_009999", "2008_000002")
    assert prepare(context.RECIPE, ["--root", str(context_tree), "--partial"]) == 1
    assert "2008_000002 is for training and for validation" in capsys.readouterr().err


def test_a_mask_of_another_size_names_its_image(context_json_tree, capsys):
    path = context_json_tree / "VOCdevkit/VOC2010/trainval_merged.json"
    content = json.loads(path.read_text())
    content["images"][0]["height"] = 7
    path.write_text(json.dumps(content))
    assert prepare(context.RECIPE, ["--root", str(context_json_tree), "--partial"]) == 1
    assert "2007_009999.jpg: a mask of category" in capsys.readouterr().err
    path.write_text("{}")
    assert prepare(context.RECIPE, ["--root", str(context_json_tree), "--partial"]) == 1
    assert "lacks 'images' or 'annos_segmentation'" in capsys.readouterr().err
