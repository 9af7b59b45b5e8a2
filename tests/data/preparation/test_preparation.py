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

import cv2
import numpy as np
import official_trees
import pytest
from helpers import REPOSITORY
from official_trees import (
    RECIPES,
    SIZE,
    TREES,
    VOC_MAP,
    blocks,
    coloured_palette,
    grey,
    lines,
    pack,
)
from PIL import Image
from scipy.io import savemat

from alignzeg.data.preparation import (
    ade20k,
    archives,
    coco_stuff,
    context,
    formats,
    msrc,
    voc,
    work,
)
from alignzeg.data.preparation.archives import unpack
from alignzeg.data.preparation.command import prepare
from alignzeg.data.preparation.recipe import Archive, Task
from alignzeg.files import hidden_file


def snapshot(root):
    """Content and time of change of every file below a folder."""
    return {
        str(path.relative_to(root)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def voc_tree(tmp_path):
    return official_trees.voc_tree(tmp_path)


@pytest.fixture
def context_tree(tmp_path):
    return official_trees.context_tree(tmp_path)


@pytest.fixture
def context_json_tree(tmp_path):
    return official_trees.context_json_tree(tmp_path)


# ---------------------------------------------------------------------------- running it repeatedly
@pytest.mark.parametrize("tree", TREES.values(), ids=TREES)
def test_a_second_run_changes_nothing(tree, tmp_path, capsys):
    root = tree.build(tmp_path)
    command = ["--root", str(root), "--workers", "1", *tree.options]
    original = snapshot(root)
    assert prepare(tree.recipe, [*command, "--dry-run"]) == 0
    assert f"{tree.files} of {tree.files} files to write" in capsys.readouterr().out
    assert snapshot(root) == original
    assert prepare(tree.recipe, command) == 0
    first = snapshot(root)
    assert len(first) == len(original) + tree.files
    assert prepare(tree.recipe, command) == 0
    assert snapshot(root) == first
    assert ("0 written now" if tree.files else "used as they are") in capsys.readouterr().out


@pytest.mark.parametrize("name", [name for name, tree in TREES.items() if tree.files])
def test_an_interrupted_run_completes(name, tmp_path, monkeypatch, capsys):
    tree = TREES[name]
    root, recipe, files = tree.build(tmp_path), tree.recipe, tree.files
    command = ["--root", str(root), "--workers", "1", *tree.options]
    before = snapshot(root)
    write, done = work.atomic_write, []

    def stop_in_the_middle(path, content):
        if len(done) == files - 1:
            Path(hidden_file(path)).write_bytes(content[:10])
            raise KeyboardInterrupt
        done.append(path)
        write(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(work, "atomic_write", stop_in_the_middle)
        assert prepare(recipe, command) == 130
    assert "Run it again" in capsys.readouterr().err
    part = {name: state for name, state in snapshot(root).items() if ".tmp" not in name}
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
    assert not any(name.endswith(".tmp") for name in written)
    tasks = [dataclasses.replace(task, make=bytes_of) for task in tasks]
    assert work.run_tasks(tasks, 2, "test") == 200 - len(written)
    assert all(Path(task.target).read_bytes() == bytes(task.arguments) for task in tasks)


def fail(value):
    raise ValueError(f"source {value} is wrong")


def test_workers_start_after_opencv_has_threads(tmp_path):
    cv2.setNumThreads(4)
    cv2.resize(np.zeros((2000, 2000, 3), np.uint8), (1000, 1000))
    tasks = [Task(str(tmp_path / f"{i}"), bytes_of, (i,)) for i in range(40)]
    assert work.run_tasks(tasks, 2, "test") == 40


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
    assert "voc2012_train: 2 images" in text
    assert "voc2012_val: 1 images" in text
    assert " 16.667 %  aeroplane" in text
    assert "no pixel at all: bicycle" in text
    sheet = Image.open(voc_tree / "contact_sheets/voc2012_val.png")
    assert len(np.unique(np.asarray(sheet).reshape(-1, 3), axis=0)) > 5
    assert prepare(voc.RECIPE, [*command, "--check"]) == 1
    assert "PROBLEM: 2 images, officially 10582" in capsys.readouterr().out


@pytest.mark.parametrize("tree", TREES.values(), ids=TREES)
def test_check_accepts_and_draws_every_benchmark(tree, tmp_path, capsys):
    command = ["--root", str(tree.build(tmp_path)), "--workers", "1", *tree.options]
    assert prepare(tree.recipe, command) == 0
    assert prepare(tree.recipe, [*dict.fromkeys([*command, "--check", "--partial"])]) == 0
    text = capsys.readouterr().out
    benchmarks = [*tree.recipe.benchmarks]
    if "--full" in tree.options:
        benchmarks += tree.recipe.full_benchmarks
    for benchmark in benchmarks:
        assert f"{benchmark}_val: " in text
        sheet = Image.open(tmp_path / f"contact_sheets/{benchmark}_val.png")
        assert len(sheet.convert("RGB").getcolors(1 << 20)) > 5


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
    assert "2008_000015.jpg has 6 x 8 pixels (height x width) but its label file" in text
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


# ---------------------------------------------------------------------------------------- archives
def tar_of(path, *members, kind=tarfile.REGTYPE):
    with tarfile.open(path, "w:gz" if path.suffix in (".tgz", ".gz") else "w") as packed:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.type, info.size, info.linkname = kind, len(content), "/etc"
            packed.addfile(info, io.BytesIO(content))


PACKED = {name: tree for name, tree in TREES.items() if tree.archives}


@pytest.mark.parametrize("tree", PACKED.values(), ids=PACKED)
def test_official_archives_become_the_same_files(tree, tmp_path, capsys):
    """Only what is needed is unpacked; what goes missing comes back, and nothing is done twice."""
    folders = [tmp_path / name for name in ("unpacked", "downloads", "root")]
    for folder in folders:
        folder.mkdir()
    unpacked, downloads, root = folders
    tree.build(unpacked)
    for place in tree.archives:
        if (unpacked / place).is_dir():
            (unpacked / place / "unwanted").mkdir()
            (unpacked / place / "unwanted/file.txt").write_text("x")
    pack(tree, unpacked, downloads)
    official = snapshot(unpacked)
    by_hand = ["--root", str(unpacked), "--workers", "1", *tree.options]
    command = ["--root", str(root), "--archives", str(downloads), "--workers", "1", *tree.options]
    assert prepare(tree.recipe, [*command, "--dry-run"]) == 0
    assert "would unpack" in capsys.readouterr().out
    assert not snapshot(root)
    assert prepare(tree.recipe, by_hand) == 0
    assert prepare(tree.recipe, command) == 0
    first, wanted = snapshot(root), snapshot(unpacked)
    made = wanted.keys() - official.keys()
    assert len(made) == tree.files
    assert made <= first.keys() <= wanted.keys()
    assert all(content == wanted[name][0] for name, (content, _) in first.items())
    if all(
        inside.startswith(("VOC", "bench", "ADE", "MSRC")) for _, inside in tree.archives.values()
    ):
        assert not [name for name in first if "unwanted" in name]
    capsys.readouterr()
    assert prepare(tree.recipe, command) == 0
    assert snapshot(root) == first
    assert " 0 files unpacked" in capsys.readouterr().out
    lost = root / min(name for name in first if name.endswith((".jpg", ".bmp")))
    lost.unlink()
    assert prepare(tree.recipe, command) == 0
    assert lost.read_bytes() == first[lost.relative_to(root).as_posix()][0]


def test_interrupted_unpacking_completes(tmp_path, monkeypatch, capsys):
    tree = TREES["voc2012"]
    (tmp_path / "root").mkdir()
    pack(tree, tree.build(tmp_path / "unpacked"), tmp_path)
    command = ["--root", str(tmp_path / "root"), "--archives", str(tmp_path), "--workers", "1"]
    copy, copied = archives.shutil.copyfileobj, []

    def stop_in_the_middle(source, sink, length):
        copied.append(sink)
        if len(copied) == 4:
            sink.write(source.read(10))
            raise KeyboardInterrupt
        copy(source, sink, length)

    with monkeypatch.context() as patch:
        patch.setattr(archives.shutil, "copyfileobj", stop_in_the_middle)
        assert prepare(tree.recipe, command) == 130
    part = snapshot(tmp_path / "root")
    assert len(part) == 3
    assert prepare(tree.recipe, command) == 0
    whole = snapshot(tmp_path / "root")
    assert {name: whole[name] for name in part} == part
    assert len([name for name in whole if "annotations_raw" in name]) == 3


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
