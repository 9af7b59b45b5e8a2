"""Training as users call it: one process, two processes, torchrun, and mistakes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from helpers import CONFIGS, REPOSITORY, TINY_OPTS

from alignzeg.__main__ import main
from alignzeg.commands import guarded
from alignzeg.commands.train import parse_args
from alignzeg.data.zeroshapes import write_dataset
from alignzeg.engine import read_checkpoint
from alignzeg.engine.processes.errors import RunFailed
from alignzeg.engine.processes.launch import launch

TRAIN_NET = REPOSITORY / "tools" / "train_net.py"
ALIGNZEG = str(CONFIGS / "zeroshapes" / "alignzeg.yaml")


def here(argv: list[str]) -> int:
    """Runs the command in this process."""
    return main(["train", *argv])


def tiny(output: Path) -> list[str]:
    return [*TINY_OPTS, "OUTPUT_DIR", str(output), "ALIGNZEG.VLM.CACHE_DIR", str(output / "text")]


def environment(root: Path, **more: str) -> dict[str, str]:
    return {**os.environ, "DETECTRON2_DATASETS": str(root), "OMP_NUM_THREADS": "1", **more}


def matrix(output: Path) -> np.ndarray:
    (file,) = (output / "inference").glob("*.json")
    return np.array(json.loads(file.read_text())["confusion"])


@pytest.fixture(scope="module")
def trained(zeroshapes_files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of two steps of AlignZeg, evaluated, all in one process."""
    output = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(zeroshapes_files))
        assert here(["--config-file", ALIGNZEG, *tiny(output)]) == 0
    return output


def test_one_process_trains_and_evaluates(trained: Path) -> None:
    files = {path.name for path in trained.iterdir()}
    assert {"config.yaml", "log.txt", "metrics.json", "last_checkpoint", "model_final.pth"} <= files
    metrics = json.loads((trained / "metrics.json").read_text().splitlines()[0])
    assert {
        "loss_mask",
        "loss_dice",
        "loss_class",
        "loss_diversity",
        "total_loss",
    } <= metrics.keys()
    saved = read_checkpoint(str(trained / "model_final.pth"))
    assert not [key for key in saved["model"] if {"vlm", "clip", "visual"} & {*key.split(".")}]
    assert saved["alignzeg"]["vlm_id"].startswith("alignzeg-tiny") and saved["alignzeg"]["vlm_hash"]
    assert matrix(trained).sum() > 0


def test_two_processes_count_the_same(
    trained: Path, zeroshapes_files: Path, tmp_path: Path
) -> None:
    words = [sys.executable, "-m", "alignzeg", "evaluate", "--config-file", ALIGNZEG]
    words += ["--weights", str(trained / "model_final.pth")]
    spawned = subprocess.Popen(
        [*words, "--num-gpus", "2", *tiny(tmp_path / "spawned")],
        env=environment(zeroshapes_files),
        stdout=subprocess.DEVNULL,
    )
    assert spawned.wait(500) == 0
    assert np.array_equal(matrix(tmp_path / "spawned"), matrix(trained))


def test_runs_are_reported_side_by_side(
    trained: Path, zeroshapes: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    other = shutil.copytree(trained, tmp_path / "other")
    page = tmp_path / "new" / "report.html"
    words = ["report", str(trained), str(other), "--images", "1", "--output", str(page)]
    assert main(words) == 0
    assert capfd.readouterr().out == f"{page}\n"
    text = page.read_text()
    for expected in (
        f"<title>{trained.name} and other on zeroshapes_val</title>",
        f"alignzeg report {trained} {other}",
        f': {trained.name}" src="data:image/png',
        ': other" src="data:image/png',
    ):
        assert expected in text, expected
    for wrong, message in (
        ([str(tmp_path / "none")], "holds no evaluation"),
        ([str(other), str(other)], "a run is given twice"),
        ([str(other)] * 5, "one to four runs"),
        ([str(other), "--dataset", "voc2012_val"], "no evaluation_voc2012_val.json"),
    ):
        assert main(["report", *wrong, "--output", str(page)]) == 2
        (line,) = capfd.readouterr().err.splitlines()
        assert line.startswith("error: ") and message in line


def test_torchrun_trains_with_accumulation(zeroshapes_files: Path, tmp_path: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    opts = ["SOLVER.IMS_PER_BATCH", "4", "ALIGNZEG.SOLVER.ACCUMULATE", "2"]
    words = [*torchrun, "--nproc-per-node", "2", str(TRAIN_NET), "--config-file", ALIGNZEG]
    done = subprocess.run(
        [*words, *tiny(tmp_path), *opts],
        env=environment(zeroshapes_files),
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    first = (tmp_path / "log.txt").read_text().splitlines()[0]
    assert "total batch 4 = 2 processes x 1 images x 2 accumulated" in first
    assert (tmp_path / "model_final.pth").is_file() and matrix(tmp_path).sum() > 0


def test_another_class_list_is_refused(
    trained: Path, zeroshapes: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    weights = ["MODEL.WEIGHTS", str(trained / "model_final.pth")]
    hold_out = ["ALIGNZEG.DATA.HOLD_OUT", "pseudo_unseen"]
    words = ["--config-file", ALIGNZEG, "--eval-only", *tiny(tmp_path), *weights, *hold_out]
    assert here(words) == 2
    error = capfd.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and "seen classes" in error and "HOLD_OUT" in error


def test_another_number_of_processes_has_to_be_allowed(
    trained: Path, zeroshapes: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    saved = read_checkpoint(str(trained / "model_final.pth"))
    # As if two processes had shared the work.
    torch.save({**saved, "ranks": saved["ranks"] * 2}, tmp_path / "model_final.pth")
    (tmp_path / "last_checkpoint").write_text("model_final.pth")
    words = ["--config-file", ALIGNZEG, *tiny(tmp_path), "SOLVER.MAX_ITER", "3"]
    words += ["DATASETS.TEST", "()"]
    assert here(["--resume", *words]) == 2
    error = capfd.readouterr().err.splitlines()[-1]
    assert "saved by 2 processes, now there are 1; use as many, or add --allow-rescale" in error
    assert here(["--resume", "--allow-rescale", *words]) == 0
    assert read_checkpoint(str(tmp_path / "model_final.pth"))["iteration"] == 2


def test_another_model_is_not_gone_on_with(
    trained: Path, zeroshapes: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(trained / "model_final.pth", tmp_path)
    (tmp_path / "last_checkpoint").write_text("model_final.pth")
    wider = ["SOLVER.MAX_ITER", "3", "ALIGNZEG.EXTRACTOR.HIDDEN_DIM", "64"]
    assert here(["--resume", "--config-file", ALIGNZEG, *tiny(tmp_path), *wider]) == 2
    error = capfd.readouterr().err.splitlines()[-1]
    assert "do not fit the model of this config" in error and "of another shape" in error


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--config-file", "no.yaml"], "config file 'no.yaml' does not exist"),
        (["--config-file", ALIGNZEG, "SOLVER.MAX_ITR", "1"], "did you mean SOLVER.MAX_ITER?"),
        (["--config-file", ALIGNZEG, "SEED", "1", "--num-gpus", "2"], "--num-gpus comes after"),
        (["--config-file", ALIGNZEG, "DATASETS.TEST", "coco"], "unknown data set 'coco'"),
        (["--config-file", ALIGNZEG, "ALIGNZEG.HEAD.NAME", "Mine"], "ALIGNZEG.HEAD.NAME is 'Mine'"),
        (["--config-file", ALIGNZEG, "--num-gpus", "3"], "a multiple of 3 processes"),
        (["--config-file", ALIGNZEG, "--eval-only"], "MODEL.WEIGHTS is empty"),
        (
            ["--config-file", ALIGNZEG, "--eval-only", "MODEL.WEIGHTS", "x.pth"],
            "'x.pth', but there is no",
        ),
        (["--gpus"], "--help"),
    ],
)
def test_mistakes_are_one_line_before_any_work(
    zeroshapes: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    argv: list[str],
    message: str,
) -> None:
    opts = [] if "SEED" in argv or "--gpus" in argv else ["OUTPUT_DIR", str(tmp_path / "output")]
    assert here([*argv, *opts]) == 2
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and message in lines[0]
    assert not (tmp_path / "output").exists()


def test_a_missing_gpu_is_one_line(
    zeroshapes: Path, tiny_cfg: CfgNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    with pytest.raises(ValueError, match="2 processes need as many GPUs, but this machine has 1"):
        launch(str, parse_args(["--num-gpus", "2"]), "cuda")


def test_an_error_in_a_started_process_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def fail(code: int) -> None:
        raise RunFailed("process 1: label file a.png holds [77]", code, "Traceback:\n  x\n")

    assert guarded(lambda: fail(2)) == 2
    assert capsys.readouterr().err == "error: process 1: label file a.png holds [77]\n"
    assert guarded(lambda: fail(1)) == 1
    line = capsys.readouterr().err
    assert line.startswith("error: process 1") and "--debug" in line and line.count("\n") == 1


def test_a_label_out_of_range_names_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    write_dataset(tmp_path, "train", 2, size=64, workers=1)
    write_dataset(tmp_path, "val", 2, size=64, workers=1)
    for file in (tmp_path / "zeroshapes" / "annotations" / "train").glob("*.png"):
        labels = cv2.imread(str(file), cv2.IMREAD_UNCHANGED)
        labels[0, 0] = 99
        cv2.imwrite(str(file), labels)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    assert here(["--config-file", ALIGNZEG, *tiny(tmp_path / "output")]) == 2
    error = capfd.readouterr().err.splitlines()[-1]
    assert error.startswith("error: label file ") and ".png holds [99]" in error
