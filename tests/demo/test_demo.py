"""The demo as a user runs it, with a few steps of training: on scenes, and on photographs."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import official_trees
import pytest
import torch
from helpers import REPOSITORY, TINY_OPTS
from rich.console import Console
from tiny_imagenet import tiny_imagenet, write_classifier

from alignzeg.arguments import TrainingError
from alignzeg.demo import Photographs, Plan, Scenes, run_plan
from alignzeg.demo.training import identity, last_iteration
from alignzeg.files import PACKAGE, SOURCES, source_files

# TINY_OPTS without the number of steps, which --iterations sets.
OPTS = [*TINY_OPTS[:4], *TINY_OPTS[6:]]
PHOTO_OPTS = [
    *(*OPTS, "INPUT.MIN_SIZE_TRAIN", "(48,)", "INPUT.MIN_SIZE_TEST", "48"),
    *("ALIGNZEG.DATA.CROP_SIZE", "32", "MODEL.FPN.OUT_CHANNELS", "32", "TEST.EVAL_PERIOD", "0"),
    *("ALIGNZEG.EXTRACTOR.LAYERS", "1"),
]
SCENES = Scenes((8, 4), 64)
STEPS = 30


def said(plan: Plan) -> str:
    """Runs a plan in this process, its trainings in their own; returns what it prints."""
    console = Console(file=io.StringIO(), width=100)
    run_plan(plan, console=console)
    return console.file.getvalue()


def demo(folder: Path, *opts: str) -> str:
    """What a tiny demo prints."""
    return said(Plan(REPOSITORY, folder / "out", SCENES, 2, 1, (*OPTS, *opts)))


def photos(folder: Path, source: object, *opts: str, partial: bool = True) -> Plan:
    """A tiny run on photographs, with pretrained weights that are random and need no package."""
    small = [*PHOTO_OPTS, *tiny_imagenet(folder), "ALIGNZEG.VLM.CACHE_DIR", str(folder / "text")]
    data = Photographs(str(source), partial)
    return Plan(REPOSITORY, folder / "out", data, STEPS, 1, (*small, *opts))


@pytest.fixture(autouse=True)
def data_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))


# Three trainings as processes of their own; most of the time they import.
@pytest.mark.timeout(900)
def test_demo_makes_results_and_report_and_reuses_them(tmp_path: Path) -> None:
    assert "hIoU" in demo(tmp_path)
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    for name in ("baseline", "alignzeg"):
        assert list(results[name]) == ["pAcc", "mIoU", "sIoU", "uIoU", "hIoU"]
        assert all(0 <= value <= 100 for value in results[name].values())
    assert set(results["seconds"]) == {"prepare", "train_baseline", "train_alignzeg", "report"}
    report = (tmp_path / "out" / "report.html").read_text()
    assert f"{results['alignzeg']['pAcc']:.1f}" in report
    assert "data:image/png;base64," in report
    weights = tmp_path / "out" / "baseline" / "model_final.pth"
    made = weights.stat().st_mtime_ns
    # Without its end, a run is taken up again; the other one is left alone.
    (tmp_path / "out" / "alignzeg" / "demo_done.json").unlink()
    said = demo(tmp_path)
    assert "Baseline: trained already" in said
    assert "AlignZeg: trained already" not in said
    assert weights.stat().st_mtime_ns == made
    again = json.loads((tmp_path / "out" / "results.json").read_text())
    assert again["alignzeg"] == results["alignzeg"]


# Three trainings, one of them in two pieces.
@pytest.mark.timeout(900)
def test_photographs_go_on_after_ctrl_c_and_are_reused(tmp_path: Path) -> None:
    plan = photos(tmp_path, official_trees.msrc_official_tree(tmp_path / "official"))
    interrupted(plan, tmp_path / "said.txt")
    assert not (tmp_path / "out" / "results.json").exists()
    text = said(plan)
    assert "Preparing msrc21" in text and "hIoU" in text and "used again" not in text
    entries = [history(plan.folder(name)) for name in ("baseline", "alignzeg")]
    assert entries[0][1]["resumed"]
    # The second training may have begun by the time that the signal came.
    assert len(entries[0]) == 2 and len(entries[1]) in (1, 2)
    spent = json.loads(plan.record("baseline", "spent.json").read_text())["seconds"]
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["seconds"]["train_baseline"] > spent > 0
    report = (tmp_path / "out" / "report.html").read_text()
    for expected in (
        "AlignZeg against its baseline on MSRC-21",
        "17 classes and are asked to name 21",
        "such as “cow”, were visible in the training photographs",
        "<dt>photographs</dt><dd>1 to train on, 1 to judge by</dd>",
        "<dt>labels</dt><dd>the official archive</dd>",
        'alt="1_3_s: photograph" src="data:image/png;base64,',
        f"make photos DATA={tmp_path / 'official'}\n",
        "python datasets/prepare_msrc21.py --source",
        "alignzeg train --config-file configs/msrc21/alignzeg.yaml ",
        "OUTPUT_DIR output/msrc21/alignzeg",
    ):
        assert expected in report, expected
    assert 'alt="1_3_s: image"' not in report
    assert said(plan).count("used again") == 2
    assert [history(plan.folder(name)) for name in ("baseline", "alignzeg")] == entries


def interrupted(plan: Plan, log: Path) -> None:
    """Runs the command until its first training has made a step, then types Ctrl-C."""
    command = [sys.executable, "-m", "alignzeg", "photos", "--data", plan.data.source]
    command += ["--partial", "--output", str(plan.output), "--iterations", str(STEPS)]
    command += ["--jobs", "1", *plan.opts]
    with open(log, "w") as stream:
        process = subprocess.Popen(
            command,
            stdout=stream,
            stderr=subprocess.STDOUT,
            # A terminal interrupts all processes of a group.
            start_new_session=True,
            # What runs the tests may have been started in the background, ignoring SIGINT.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        try:
            curve = plan.folder("baseline") / "losses.jsonl"
            while not curve.exists() or not curve.stat().st_size:
                assert process.poll() is None, log.read_text()
                time.sleep(0.05)
            os.killpg(process.pid, signal.SIGINT)
            assert process.wait(300) == 130
            assert (plan.folder("baseline") / "last_checkpoint").exists()
        finally:
            process.kill()
    assert log.read_text().endswith("stopped; run the same command to go on\n")


def history(folder: Path) -> list[dict]:
    """Starts and resumes of a run."""
    return json.loads((folder / "provenance.json").read_text())["history"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("", "no folder of photographs was given, as DATA=FOLDER"),
        ("gone", "there is no folder 'gone'"),
        ("file.zip", "there is no folder 'file.zip'"),
        ("other", "the folder 'other' has another layout"),
        ("coco", "the folder 'coco' holds other images"),
    ],
)
def test_a_folder_without_photographs_is_refused_in_one_line(
    source: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file.zip").touch()
    (tmp_path / "other" / "images").mkdir(parents=True)
    (tmp_path / "coco" / "annotations" / "train2017").mkdir(parents=True)
    plan = photos(tmp_path, source)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match="it has to be MSRC v2, unpacked: Images/") as refused:
        run_plan(plan)
    for part in (message, "images/ and annotations/, each with train/", "comes from http"):
        assert part in str(refused.value)
    assert "\n" not in str(refused.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_lacking_images_packages_and_other_labels_are_refused_before_any_work(
    tmp_path: Path,
) -> None:
    source = official_trees.msrc_official_tree(tmp_path / "official")
    package = ("ALIGNZEG.VLM.WEIGHTS", "package:no-such")
    for plan, message in (
        (photos(tmp_path, source, partial=False), "no label source for 491 listed"),
        (photos(tmp_path, source, *package), "not installed: pip install"),
    ):
        with pytest.raises(ValueError, match=message) as refused:
            run_plan(plan)
        assert "\n" not in str(refused.value)
    assert not (tmp_path / "msrc21").exists()
    photos(tmp_path, source).data.prepare()
    cleaned = official_trees.msrc_cleaned_tree(tmp_path / "cleaned") / "msrc_v2"
    with pytest.raises(ValueError, match="prepared from the official archive, not from the clean"):
        run_plan(photos(tmp_path, cleaned))
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
@pytest.mark.parametrize("source", ["", "gone", "other"])
def test_make_refuses_a_folder_before_the_set_up(source: str, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    command = ["make", "-f", str(REPOSITORY / "Makefile"), "photos", f"DATA={source}"]
    # The test itself may run beneath a make, which would then count as the caller of this one.
    alone = {
        key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "MFLAGS"))
    }
    refused = subprocess.run(
        command, cwd=tmp_path, env=alone, capture_output=True, text=True, check=False
    )
    assert refused.returncode == 2
    line, last = refused.stderr.splitlines()
    assert line.startswith(f"error: DATA is '{source}'; make photos DATA=FOLDER needs MSRC v2")
    assert "http://" in line and "images/ and annotations/" in line
    assert last.startswith("make: ***")
    assert not refused.stdout
    assert not (tmp_path / ".venv").exists()


def test_a_failed_training_shows_the_end_of_its_log(tmp_path: Path) -> None:
    with pytest.raises(TrainingError) as failure:
        demo(tmp_path, "SOLVER.IMS_PER_BATCH", "0")
    assert "demo_log.txt" in str(failure.value)
    assert "SOLVER.IMS_PER_BATCH is 0" in str(failure.value)
    assert not (tmp_path / "out" / "results.json").exists()


def test_a_wrong_key_is_refused_before_any_work(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "alignzeg", "demo", "--output"]
    command += [str(tmp_path / "out"), "SOLVER.MAX_ITR", "3"]
    refused = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert "did you mean SOLVER.MAX_ITER" in refused.stderr
    assert not (tmp_path / "zeroshapes").exists()


def test_identity_follows_what_the_training_depends_on(tmp_path: Path) -> None:
    plan = Plan(REPOSITORY, tmp_path, SCENES, 2)
    SCENES.prepare()
    first = identity(plan, "alignzeg")
    assert identity(Plan(REPOSITORY, tmp_path / "elsewhere", SCENES, 2), "alignzeg") == first
    others = [
        Plan(REPOSITORY, tmp_path, SCENES, 3),
        Plan(REPOSITORY, tmp_path, SCENES, 2, opts=("SEED", "5")),
    ]
    hashes = {identity(other, "alignzeg") for other in others} | {identity(plan, "baseline")}
    Scenes((9, 4), 64).prepare()
    hashes.add(identity(plan, "alignzeg"))
    assert len(hashes) == 4
    assert first not in hashes


def change_weights(path: Path) -> None:
    """Other numbers in a weight file."""
    state = torch.load(path, weights_only=True)
    next(iter(state.values())).add_(1)
    torch.save(state, path)


def test_identity_follows_labels_and_pretrained_weights(tmp_path: Path) -> None:
    source = official_trees.msrc_official_tree(tmp_path / "official")
    encoder = write_classifier(tmp_path / "official")
    plan = photos(tmp_path, source, "ALIGNZEG.ENCODER.TIMM_WEIGHTS", encoder)
    plan.data.prepare()
    hashes = [identity(plan, "baseline")]
    assert identity(plan, "baseline") == hashes[0]
    label = tmp_path / "msrc21/annotations/val/1_3_s.png"
    for change in (
        lambda: official_trees.grey(label, np.full((6, 8), 2)),
        lambda: change_weights(Path(encoder)),
        lambda: change_weights(tmp_path / Path(encoder).name),
    ):
        change()
        hashes.append(identity(plan, "baseline"))
    assert len(set(hashes)) == 4


def test_identity_reads_the_sources_that_it_lists() -> None:
    found = {file.relative_to(PACKAGE).as_posix() for file in source_files(SOURCES)}
    assert {"config/__init__.py", "config/table.py", "data/mapper.py", "structures.py"} <= found
    assert "assets/alignzeg-tiny.safetensors" in found
    for stale in ("config.py", "gone", "assets/*.pth"):
        with pytest.raises(RuntimeError, match=r"there is no .*; mend the list in .*files"):
            list(source_files(["data", stale]))


@pytest.mark.parametrize(
    ("text", "expected"),
    [("", -1), ('{"iteration": 4}\n{"a": 1}\n{"iter', 4), ('{"iteration": 19}\n', 19)],
)
def test_last_iteration(tmp_path: Path, text: str, expected: int) -> None:
    (tmp_path / "metrics.json").write_text(text)
    assert last_iteration(tmp_path / "metrics.json") == expected
    assert last_iteration(tmp_path / "missing.json") == -1
