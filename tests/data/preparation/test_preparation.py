"""Data sets are prepared again, in spite of interruptions, by the scripts."""

from __future__ import annotations

import dataclasses
import io
import os
import runpy
import signal
import sys
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers import REPOSITORY
from official_trees import (
    RECIPES,
    TREES,
)
from PIL import Image
from preparation_cases import snapshot

from alignzeg.data.preparation import (
    formats,
    work,
)
from alignzeg.data.preparation.command import prepare
from alignzeg.data.preparation.recipe import Task
from alignzeg.files import hidden_file


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
