"""What --check tells of a prepared data set."""

from __future__ import annotations

import numpy as np
import pytest
from official_trees import (
    TREES,
    blocks,
    grey,
)
from PIL import Image

from alignzeg.data.preparation import (
    voc,
)
from alignzeg.data.preparation.command import prepare


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
