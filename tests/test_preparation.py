"""From tiny trees in the official formats to label files, pixel by pixel."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import runpy
import signal
import sys
import tarfile
import threading
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from conftest import REPOSITORY
from detectron2.data import DatasetCatalog
from PIL import Image
from pycocotools import mask as run_length
from scipy.io import savemat

from alignzeg.data import catalog
from alignzeg.data.preparation import ade20k, coco_stuff, context, formats, voc, work
from alignzeg.data.preparation.archives import unpack
from alignzeg.data.preparation.command import prepare
from alignzeg.data.preparation.recipe import Archive, Task

SIZE = (6, 8)
RECIPES = (
    voc.RECIPE,
    context.RECIPE,
    coco_stuff.RECIPE,
    ade20k.RECIPE_150,
    ade20k.RECIPE_847,
)


def blocks(*rows):
    """(6, 8) map of 3 x 2 equal blocks: rows of two values."""
    return np.kron(np.array(rows), np.ones((2, 4), int))


def picture(path, size=SIZE):
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0).integers(0, 255, (*size, 3), np.uint8)
    Image.fromarray(noise).save(path)


def grey(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(values, np.uint8)).save(path)


def coloured_palette(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.asarray(values, np.uint8)).convert("P")
    image.putdata(np.asarray(values).ravel().tolist())
    image.putpalette(np.random.default_rng(7).integers(0, 256, 768).tolist())
    image.save(path)


def lines(path, *names):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{name}\n" for name in names))


def snapshot(root):
    """Content and time of change of every file below a folder."""
    return {
        str(path.relative_to(root)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def labels_of(name, monkeypatch, root):
    """The label maps of a registered data set as ids of its own vocabulary."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root))
    catalog.register_all()
    table = catalog.label_lookup(name, catalog.get_vocabulary(name))
    return {
        Path(record["file_name"]).stem: table[
            catalog.read_labels(record["sem_seg_file_name"], name)
        ]
        for record in DatasetCatalog.get(name)
    }


# ------------------------------------------------------------------------------------- tiny trees
VOC_MAP = blocks([0, 1], [15, 20], [16, 255])
SBD_MAP = blocks([0, 3], [16, 0], [20, 20])


@pytest.fixture
def voc_tree(tmp_path):
    """VOC 2012 with a train and a val picture; SBD with the val one again and one more."""
    base = tmp_path / "VOCdevkit/VOC2012"
    for name in ("2007_000032", "2007_000033", "2008_000015", "2009_000001"):
        picture(base / f"JPEGImages/{name}.jpg")
    lines(base / "ImageSets/Segmentation/train.txt", "2007_000032")
    lines(base / "ImageSets/Segmentation/val.txt", "2007_000033")
    for name in ("2007_000032", "2007_000033"):
        coloured_palette(base / f"SegmentationClass/{name}.png", VOC_MAP)
    sbd = tmp_path / "benchmark_RELEASE/dataset"
    lines(sbd / "train.txt", "2008_000015", "2007_000032")
    lines(sbd / "val.txt", "2007_000033")
    (sbd / "cls").mkdir()
    content = {"Segmentation": SBD_MAP.astype(np.uint8), "Boundaries": np.zeros((20, 1))}
    for name in ("2008_000015", "2007_000033", "2007_000032"):
        savemat(sbd / f"cls/{name}.mat", {"GTcls": content}, do_compression=True)
    return tmp_path


CONTEXT_MAP = blocks([0, 2], [427, 431], [98, 397])


@pytest.fixture
def context_tree(tmp_path):
    base = tmp_path / "VOCdevkit/VOC2010"
    for name in ("2008_000002", "2008_000003", "2007_009999"):
        picture(base / f"JPEGImages/{name}.jpg")
    lines(base / "ImageSets/Main/train.txt", "2007_009999")
    (base / "trainval").mkdir()
    for name in ("2008_000002", "2007_009999"):
        savemat(base / f"trainval/{name}.mat", {"LabelMap": CONTEXT_MAP.astype(np.uint16)})
    return tmp_path


def rle(mask, compressed):
    coded = run_length.encode(np.asfortranarray(mask.astype(np.uint8)))
    if compressed:
        return {"size": coded["size"], "counts": coded["counts"].decode()}
    flat = mask.ravel(order="F").astype(int)
    edges = np.flatnonzero(np.diff(np.concatenate([[1 - flat[0]], flat, [-1]])))
    counts = np.diff(edges).tolist()
    return {"size": list(mask.shape), "counts": [0, *counts] if flat[0] else counts}


@pytest.fixture
def context_json_tree(context_tree):
    """The same label maps as masks; an early one is painted over."""
    base = context_tree / "VOCdevkit/VOC2010"
    for path in (base / "trainval").iterdir():
        path.unlink()
    (base / "trainval").rmdir()
    images, annotations = [], []
    for key, (name, phase) in enumerate((("2008_000002", "val"), ("2007_009999", "train"))):
        images.append(
            {
                "file_name": f"{name}.jpg",
                "image_id": key,
                "phase": phase,
                "height": SIZE[0],
                "width": SIZE[1],
            }
        )
        values = [284, *(value for value in np.unique(CONTEXT_MAP) if value)]
        for value in values:
            mask = CONTEXT_MAP == value if value != 284 else CONTEXT_MAP > 0
            coded = rle(mask, compressed=bool(key))
            annotations.append({"image_id": key, "category_id": int(value), "segmentation": coded})
    content = {"images": images, "annos_segmentation": annotations}
    (base / "trainval_merged.json").write_text(json.dumps(content))
    return context_tree


@pytest.fixture
def ade_full_tree(tmp_path):
    """Object 2978 (wall, 0), 312 (building, 1), 3148 (adding machine, 846) and 5, no class."""
    folder = tmp_path / "ADE20K_2021_17_01/images/ADE/validation/urban/street"
    ids = np.array([[2978, 312], [3148, 5]]).repeat(3, 0).repeat(4, 1)
    for number, scale in ((1, 1), (2, 172)):
        large = ids.repeat(scale, 0).repeat(scale, 1)
        picture(folder / f"ADE_val_0000000{number}.jpg", large.shape)
        colours = np.stack([large // 256 * 10, large % 256, np.full_like(large, 3)], -1)
        grey(folder / f"ADE_val_0000000{number}_seg.png", colours)
        grey(folder / f"ADE_val_0000000{number}_parts_1.png", colours)
    return tmp_path


TREES = [
    pytest.param(voc.RECIPE, "voc_tree", [], 3, id="voc"),
    pytest.param(context.RECIPE, "context_tree", ["--full", "--partial"], 3, id="context-mat"),
    pytest.param(context.RECIPE, "context_json_tree", ["--partial"], 2, id="context-json"),
    pytest.param(ade20k.RECIPE_847, "ade_full_tree", [], 4, id="ade-847"),
]


# ------------------------------------------------------------------------------------------ pixels
def test_voc_pixels(voc_tree, monkeypatch):
    assert prepare(voc.RECIPE, ["--root", str(voc_tree), "--workers", "1"]) == 0
    train = labels_of("voc2012_train", monkeypatch, voc_tree)
    assert sorted(train) == ["2007_000032", "2008_000015"]  # not SBD's copy of the val picture
    expected = blocks([255, 0], [14, 19], [15, 255])
    np.testing.assert_array_equal(train["2007_000032"], expected)  # VOC's own, not SBD's
    np.testing.assert_array_equal(train["2008_000015"], blocks([255, 2], [15, 255], [19, 19]))
    for name, background in (("voc2012_val", 255), ("voc20_val", 255)):
        found = labels_of(name, monkeypatch, voc_tree)
        assert list(found) == ["2007_000033"]
        np.testing.assert_array_equal(
            found["2007_000033"], blocks([background, 0], [14, 19], [15, 255])
        )
    for name in ("voc2012_k4_val", "pas21_val"):
        found = labels_of(name, monkeypatch, voc_tree)["2007_000033"]
        np.testing.assert_array_equal(found, VOC_MAP)
    found = labels_of("pas20b_val", monkeypatch, voc_tree)["2007_000033"]
    np.testing.assert_array_equal(found, blocks([20, 0], [14, 19], [15, 255]))


@pytest.mark.parametrize("tree", ["context_tree", "context_json_tree"])
def test_context_pixels(tree, request, monkeypatch):
    root = request.getfixturevalue(tree)
    full = [] if "json" in tree else ["--full"]
    assert prepare(context.RECIPE, ["--root", str(root), "--partial", *full]) == 0
    for split, name in (("val", "2008_000002"), ("train", "2007_009999")):
        found = labels_of(f"context59_{split}", monkeypatch, root)
        assert list(found) == [name]
        np.testing.assert_array_equal(found[name], blocks([255, 0], [54, 255], [19, 49]))
        found = labels_of(f"context60_k2_{split}", monkeypatch, root)
        np.testing.assert_array_equal(found[name], blocks([0, 1], [55, 0], [20, 50]))
    if full:
        found = labels_of("context459_val", monkeypatch, root)["2008_000002"]
        np.testing.assert_array_equal(found, blocks([65535, 1], [426, 430], [97, 396]))
        file = root / "VOCdevkit/VOC2010/annotations_context459/val/2008_000002.tif"
        assert Image.open(file).mode == "I;16"


def test_ade_847_pixels(ade_full_tree, monkeypatch):
    assert prepare(ade20k.RECIPE_847, ["--root", str(ade_full_tree)]) == 0
    found = labels_of("ade20k_847_val", monkeypatch, ade_full_tree)
    expected = np.array([[0, 1], [846, 65535]]).repeat(3, 0).repeat(4, 1)
    np.testing.assert_array_equal(found["ADE_val_00000001"], expected)
    # 1032 x 1376 becomes 512 x 683; nearest neighbours keep the four corners.
    assert found["ADE_val_00000002"].shape == (512, 683)
    np.testing.assert_array_equal(
        found["ADE_val_00000002"][[0, 0, -1, -1], [0, -1, 0, -1]], [0, 1, 846, 65535]
    )
    images = ade_full_tree / "ADE20K_2021_17_01/images_detectron2/validation"
    source = next(ade_full_tree.rglob("street/ADE_val_00000001.jpg"))
    assert (images / "ADE_val_00000001.jpg").read_bytes() == source.read_bytes()
    assert Image.open(images / "ADE_val_00000002.jpg").size == (683, 512)


def test_coco_stuff_pixels(tmp_path, monkeypatch):
    values = blocks([0, 12], [20, 181], [255, 171])
    for split in ("train2017", "val2017"):
        picture(tmp_path / f"coco/{split}/000000000139.jpg")
        grey(tmp_path / f"coco/stuffthingmaps/{split}/000000000139.png", values)
    before = snapshot(tmp_path)
    assert prepare(coco_stuff.RECIPE, ["--root", str(tmp_path)]) == 0
    assert snapshot(tmp_path) == before
    for name in ("coco_stuff_train", "coco_stuff171_val"):
        (found,) = labels_of(name, monkeypatch, tmp_path).values()
        np.testing.assert_array_equal(found, blocks([0, 11], [19, 170], [255, 160]))
    grey(tmp_path / "coco/stuffthingmaps/val2017/000000000139.png", blocks([0, 11], [0, 0], [0, 0]))
    with pytest.raises(ValueError, match=r"139\.png holds \[11\], out of range"):
        labels_of("coco_stuff_val", monkeypatch, tmp_path)


def test_ade_150_pixels(tmp_path, monkeypatch):
    for split in ("training", "validation"):
        picture(tmp_path / f"ADEChallengeData2016/images/{split}/a.jpg")
        values = blocks([0, 1], [150, 13], [8, 8])
        grey(tmp_path / f"ADEChallengeData2016/annotations/{split}/a.png", values)
    assert prepare(ade20k.RECIPE_150, ["--root", str(tmp_path)]) == 0
    (found,) = labels_of("ade20k_150_val", monkeypatch, tmp_path).values()
    np.testing.assert_array_equal(found, blocks([255, 0], [149, 12], [7, 7]))


# ---------------------------------------------------------------------------- running it repeatedly
@pytest.mark.parametrize(("recipe", "tree", "options", "files"), TREES)
def test_a_second_run_changes_nothing(recipe, tree, options, files, request, capsys):
    root = request.getfixturevalue(tree)
    command = ["--root", str(root), "--workers", "1", *options]
    original = snapshot(root)
    assert prepare(recipe, [*command, "--dry-run"]) == 0
    assert f"{files} of {files} files to write" in capsys.readouterr().out
    assert snapshot(root) == original
    assert prepare(recipe, command) == 0
    first = snapshot(root)
    assert len(first) == len(original) + files
    assert prepare(recipe, command) == 0
    assert snapshot(root) == first
    assert "0 written now" in capsys.readouterr().out


@pytest.mark.parametrize(("recipe", "tree", "options", "files"), TREES)
def test_an_interrupted_run_completes(recipe, tree, options, files, request, monkeypatch, capsys):
    root = request.getfixturevalue(tree)
    command = ["--root", str(root), "--workers", "1", *options]
    before = snapshot(root)
    write, done = work.write_atomically, []

    def stop_in_the_middle(path, content):
        if len(done) == files - 1:
            handle, _ = work.tempfile.mkstemp(dir=path.parent, prefix=work.TEMPORARY)
            os.write(handle, content[:10])
            os.close(handle)
            raise KeyboardInterrupt
        done.append(path)
        write(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(work, "write_atomically", stop_in_the_middle)
        assert prepare(recipe, command) == 130
    assert "Run it again" in capsys.readouterr().err
    part = {name: state for name, state in snapshot(root).items() if work.TEMPORARY not in name}
    assert len(part) == len(before) + files - 1
    assert prepare(recipe, command) == 0
    whole = snapshot(root)
    assert len(whole) == len(before) + files
    assert {name: whole[name] for name in part} == part


def bytes_of(value):
    return bytes([value])


def slow(value):
    time.sleep(0.02)
    return bytes([value])


def slower(value):
    time.sleep(0.3)
    return bytes([value])


def test_ctrl_c_ends_the_workers_and_the_rest_follows(tmp_path):
    # Half a minute of work, so that a busy machine does not finish it before Ctrl-C comes.
    tasks = [Task(str(tmp_path / f"out/{i}"), slower, (i,)) for i in range(200)]

    def interrupt():
        while not any((tmp_path / "out").glob("[0-9]*")):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    # A process started in the background of a script ignores SIGINT.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            work.run_tasks(tasks, 2, "test")
    finally:
        signal.signal(signal.SIGINT, before)
    thread.join()
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert 0 < len(written) < 200
    assert not any(name.startswith(work.TEMPORARY) for name in written)
    tasks = [dataclasses.replace(task, make=bytes_of) for task in tasks]
    assert work.run_tasks(tasks, 2, "test") == 200 - len(written)
    assert all(Path(task.target).read_bytes() == bytes(task.arguments) for task in tasks)


def fail(value):
    raise ValueError(f"source {value} is wrong")


@pytest.mark.parametrize("workers", [1, 2])
def test_a_wrong_source_is_one_error(tmp_path, workers):
    tasks = [Task(str(tmp_path / f"{i}"), fail if i == 20 else slow, (i,)) for i in range(40)]
    with pytest.raises(ValueError, match="source 20 is wrong"):
        work.run_tasks(tasks, workers, "test")


# -------------------------------------------------------------------------------------------- check
def test_check_tells_counts_classes_and_draws(voc_tree, capsys):
    command = ["--root", str(voc_tree), "--workers", "1"]
    prepare(voc.RECIPE, command)
    capsys.readouterr()
    assert prepare(voc.RECIPE, [*command, "--check", "--partial"]) == 0
    text = capsys.readouterr().out
    assert "voc2012_train: 2 pictures" in text
    assert "voc2012_val: 1 pictures" in text
    assert " 16.667 %  aeroplane" in text
    assert "no pixel at all: bicycle" in text
    sheet = Image.open(voc_tree / "contact_sheets/voc2012_val.png")
    assert len(np.unique(np.asarray(sheet).reshape(-1, 3), axis=0)) > 5
    assert prepare(voc.RECIPE, [*command, "--check"]) == 1
    assert "PROBLEM: 2 pictures, officially 10582" in capsys.readouterr().out


def test_check_finds_what_is_wrong(voc_tree, capsys):
    command = ["--root", str(voc_tree), "--workers", "1", "--splits", "train"]
    prepare(voc.RECIPE, command)
    folder = voc_tree / "VOCdevkit/VOC2012/annotations_raw/train"
    grey(folder / "2007_000032.png", blocks([0, 77], [1, 1], [1, 1]))
    grey(folder / "2008_000015.png", np.zeros((6, 9)))
    capsys.readouterr()
    assert prepare(voc.RECIPE, [*command, "--check", "--partial"]) == 1
    text = capsys.readouterr().out
    assert "2007_000032.png holds [77], out of range" in text
    assert "2008_000015.jpg is (6, 8), but its label file" in text
    (voc_tree / "VOCdevkit/VOC2012/JPEGImages/2008_000015.jpg").unlink()
    assert prepare(voc.RECIPE, [*command, "--check", "--partial"]) == 1
    assert "2008_000015.png has no image file" in capsys.readouterr().out


# ----------------------------------------------------------------------------------- wrong sources
@pytest.mark.parametrize(
    ("recipe", "first", "archive"),
    [
        (voc.RECIPE, "VOCdevkit/VOC2012/JPEGImages", "VOCtrainval_11-May-2012.tar"),
        (context.RECIPE, "VOCdevkit/VOC2010/JPEGImages", "VOCtrainval_03-May-2010.tar"),
        (coco_stuff.RECIPE, "coco/train2017", "train2017.zip"),
        (ade20k.RECIPE_150, "ADEChallengeData2016/images/training", "ADEChallengeData2016.zip"),
        (ade20k.RECIPE_847, "images/ADE/validation", "ADE20K_2021_17_01.zip"),
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


def test_context_wants_all_listed_pictures(context_tree, capsys):
    assert prepare(context.RECIPE, ["--root", str(context_tree)]) == 1
    assert "no label source for 5103 listed pictures" in capsys.readouterr().err
    savemat(
        context_tree / "VOCdevkit/VOC2010/trainval/2008_000002.mat",
        {"LabelMap": np.full(SIZE, 460, np.uint16)},
    )
    assert prepare(context.RECIPE, ["--root", str(context_tree), "--partial"]) == 1
    assert "2008_000002.mat holds the values 460 to 460" in capsys.readouterr().err


def test_no_picture_is_trained_on_and_tested_on(context_tree, capsys):
    lines(context_tree / "VOCdevkit/VOC2010/ImageSets/Main/train.txt", "2007_009999", "2008_000002")
    assert prepare(context.RECIPE, ["--root", str(context_tree), "--partial"]) == 1
    assert "2008_000002 is for training and for validation" in capsys.readouterr().err


def test_a_mask_of_another_size_names_its_picture(context_json_tree, capsys):
    path = context_json_tree / "VOCdevkit/VOC2010/trainval_merged.json"
    content = json.loads(path.read_text())
    content["images"][0]["height"] = 7
    path.write_text(json.dumps(content))
    assert prepare(context.RECIPE, ["--root", str(context_json_tree), "--partial"]) == 1
    assert "2008_000002.jpg: a mask of category" in capsys.readouterr().err
    path.write_text("{}")
    assert prepare(context.RECIPE, ["--root", str(context_json_tree), "--partial"]) == 1
    assert "lacks 'images' or 'annos_segmentation'" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------- archives
def tar_of(path, *members, kind=tarfile.REGTYPE):
    with tarfile.open(path, "w:gz" if path.suffix in (".tgz", ".gz") else "w") as packed:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.type, info.size, info.linkname = kind, len(content), "/etc"
            packed.addfile(info, io.BytesIO(content))


def test_archives_are_unpacked_once_and_only_what_is_wanted(voc_tree, tmp_path_factory, capsys):
    downloads, root = tmp_path_factory.mktemp("downloads"), tmp_path_factory.mktemp("root")
    for archive, top in ((voc.VOC_ARCHIVE, "VOCdevkit"), (voc.SBD_ARCHIVE, "benchmark_RELEASE")):
        (voc_tree / top / "unwanted").mkdir()
        (voc_tree / top / "unwanted/file").write_text("x")
        with tarfile.open(downloads / archive.name, "w:gz") as packed:
            packed.add(voc_tree / top, top)
    command = ["--root", str(root), "--archives", str(downloads), "--workers", "1"]
    assert prepare(voc.RECIPE, command) == 0
    first = snapshot(root)
    assert len(list(root.rglob("annotations_raw/*/*.png"))) == 3
    assert not list(root.rglob("unwanted"))
    assert prepare(voc.RECIPE, command) == 0
    assert snapshot(root) == first
    assert "0 files unpacked" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["../outside", "/outside", "a/../../outside", "c:/outside"])
@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_no_archive_writes_outside_its_folder(tmp_path, name, kind):
    path = tmp_path / f"evil.{kind}"
    if kind == "tar":
        tar_of(path, ("fine", b"1"), (name, b"2"))
    else:
        with zipfile.ZipFile(path, "w") as packed:
            packed.writestr("fine", b"1")
            packed.writestr(name, b"2")
    with pytest.raises(ValueError, match="leaves the target folder; nothing was unpacked"):
        unpack(Archive(path.name, "somewhere", "data"), tmp_path, tmp_path / "root")
    assert not list(tmp_path.rglob("*outside"))
    assert not list(tmp_path.rglob("fine"))


def test_links_and_damaged_archives_are_refused(tmp_path):
    archive = Archive("a.tar", "somewhere")
    tar_of(tmp_path / "a.tar", ("link", b""), kind=tarfile.SYMTYPE)
    with pytest.raises(ValueError, match="'link' is a link or a device"):
        unpack(archive, tmp_path, tmp_path / "root")
    tar_of(tmp_path / "whole.tgz", ("file", os.urandom(100_000)))
    content = (tmp_path / "whole.tgz").read_bytes()
    for name in ("half.tgz", "half.zip"):
        (tmp_path / name).write_bytes(content[:50_000] if "tgz" in name else b"PK\x03\x04half")
        with pytest.raises(ValueError, match=r"cannot unpack .*Is the download complete"):
            unpack(Archive(name, "somewhere"), tmp_path, tmp_path / "root")
    assert not [path for path in (tmp_path / "root").rglob("*") if path.is_file()]


def test_an_empty_folder_of_downloads_names_the_archives(tmp_path, capsys):
    assert prepare(voc.RECIPE, ["--archives", str(tmp_path), "--root", str(tmp_path)]) == 1
    assert "VOCtrainval_11-May-2012.tar, benchmark.tgz" in capsys.readouterr().err


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_the_scripts_start(recipe, monkeypatch, capsys):
    script = REPOSITORY / f"datasets/prepare_{recipe.name}.py"
    monkeypatch.setattr(sys, "argv", [str(script), "--help"])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(script), run_name="__main__")
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    options = (
        "--check",
        "--dry-run",
        "--archives",
        "--partial",
        *(a.name for a in recipe.archives),
    )
    for option in options:
        assert option in text


def test_png_and_tiff_keep_every_value():
    small = np.arange(256, dtype=np.uint8).reshape(16, 16)
    large = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    for values, encode in ((small, formats.encode_png), (large, formats.encode_tiff)):
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(encode(values)))), values)
