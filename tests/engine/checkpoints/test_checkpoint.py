"""What is kept of checkpoints, and that kills lose nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from checkpoint_cases import checkpointer, names, save
from helpers import REPOSITORY, TOY_PLUGIN

from alignzeg import files
from alignzeg.__main__ import main
from alignzeg.engine.checkpoints.reading import prune, read_checkpoint
from alignzeg.engine.processes.process_exit import StopRequest
from alignzeg.engine.training.hooks import EvaluationHook, KeepBest, selects_on_the_test
from alignzeg.files import hidden_file
from alignzeg.structures import Vocabulary


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "WAIT_S", 0.0)


def test_the_last_few_are_kept(tmp_path: Path) -> None:
    for step in range(5):
        save(tmp_path, step, keep=2)
    checkpointer(tmp_path, keep=2).save("model_final", iteration=5)
    Path(hidden_file(str(tmp_path / "model_0000009.pth"))).write_bytes(b"left by a kill")
    kept = ["last_checkpoint", "model_0000003.pth", "model_0000004.pth", "model_final.pth"]
    prune(str(tmp_path), 0)
    assert names(tmp_path) == kept
    # One of another, longer run is not taken for the newest.
    save(tmp_path, 99)
    os.utime(tmp_path / "model_0000099.pth", (0, 0))
    save(tmp_path, 5, keep=2)
    assert names(tmp_path) == [
        *("last_checkpoint", "model_0000004.pth", "model_0000005.pth", "model_0000099.pth"),
        "model_final.pth",
    ]


def test_the_best_is_kept_and_not_resumed_from(tmp_path: Path) -> None:
    save(tmp_path, 1)
    storage = type("Storage", (), {"figures": {}, "latest": lambda self: self.figures})()
    best = KeepBest(checkpointer(tmp_path, 7.0), "sem_seg/sIoU")
    for step, value in ((1, 30.0), (2, 20.0), (3, float("nan")), (4, 31.0), (5, 31.0)):
        storage.figures = {"sem_seg/sIoU": (value, step)}
        best.consider(storage, step)
    assert (best.value, best.iteration) == (31.0, 4)
    found = read_checkpoint(str(tmp_path / "model_best.pth"))
    assert found["selected"] == {"sem_seg/sIoU": 31.0} and found["iteration"] == 4
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000001.pth"


def test_a_best_that_is_never_defined_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    storage = type("Storage", (), {"latest": lambda self: {"sem_seg/hIoU": (float("nan"), 1)}})()
    KeepBest(checkpointer(tmp_path), "sem_seg/hIoU").consider(storage, 1)
    assert "hIoU is not defined after iteration 1, so there is no model_best.pth" in caplog.text
    assert not (tmp_path / "model_best.pth").exists()


def test_the_best_by_another_figure_does_not_count_after_a_resume(tmp_path: Path) -> None:
    hooks = [
        EvaluationHook(1, dict, StopRequest(1.0), KeepBest(checkpointer(tmp_path), metric))
        for metric in ("sem_seg/pAcc", "sem_seg/pAcc", "sem_seg/hIoU")
    ]
    first, same, other = (hook._best for hook in hooks)
    assert first and same and other
    first.value, first.iteration = 90.0, 3
    for hook in hooks[1:]:
        hook.load_state_dict(hooks[0].state_dict())
    assert (same.value, same.iteration) == (90.0, 3)
    assert other.value == float("-inf")


def test_weights_of_which_nothing_or_a_part_fits(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"model": {"student.layer.weight": torch.zeros(100, 100)}}, path)
    with pytest.raises(ValueError, match=r"nothing of .* fits.*student\.layer\.weight"):
        checkpointer(tmp_path).load(str(path))
    torch.save({"model": {"layer.weight": torch.zeros(3)}}, path)
    with pytest.raises(ValueError, match="nothing of"):
        checkpointer(tmp_path).load(str(path))
    torch.save({"model": {"layer.weight": torch.ones(100, 100)}}, path)
    loader = checkpointer(tmp_path)
    loader.load(str(path))
    assert "1 of 2 tensors of the model are loaded, the others (layer.bias, ...)" in caplog.text
    assert bool((loader.model.layer.weight == 1).all())


def test_choosing_on_unseen_classes_is_called_what_it_is() -> None:
    mixed = Vocabulary(("cat", "dog"), (True, False))
    assert selects_on_the_test("sem_seg/hIoU", [mixed], "")
    assert selects_on_the_test("a/sem_seg/mIoU", [mixed.seen_part(), mixed], "")
    assert not selects_on_the_test("sem_seg/sIoU", [mixed], "")
    assert not selects_on_the_test("sem_seg/hIoU", [mixed.seen_part()], "")
    # These are taken from the seen classes.
    assert not selects_on_the_test("sem_seg/hIoU", [mixed], "pseudo_unseen")


def test_export_can_be_loaded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = save(tmp_path, 4)
    assert main(["export", path]) == 0
    exported = path.replace(".pth", ".safetensors")
    assert f"{exported}: 2 tensors" in capsys.readouterr().out
    loader = checkpointer(tmp_path)
    loader.strict = True
    loader.load(exported)
    assert loader.model.layer.weight[0, 0] == 4
    about = read_checkpoint(exported)["alignzeg"]
    assert about == read_checkpoint(path)["alignzeg"] and json.dumps(about)
    loader.model.vlm = type("Other", (), {"id": "toy", "hash": "4567"})
    with pytest.raises(ValueError, match="their hash was 0123, here it is 4567"):
        loader.load(exported)
    for words in ([str(tmp_path / "none.pth")], [path, "x.bin"], [path, "no/where.safetensors"]):
        assert main(["export", *words]) == 2
        assert capsys.readouterr().err.startswith("error: ")


@pytest.mark.parametrize(
    ("code", "requeued"), [(75, True), (138, True), (143, True), (0, False), (3, False)]
)
def test_a_stopped_job_goes_back_into_the_queue(tmp_path: Path, code: int, requeued: bool) -> None:
    for name, lines in (
        ("srun", 'shift; exec "$@"'),
        ("scontrol", f'echo "$@" > {tmp_path}/scontrol.txt'),
        ("python", f'echo "$@" > {tmp_path}/python.txt; exit {code}'),
    ):
        (tmp_path / name).write_text(f"#!/bin/bash\n{lines}\n")
        (tmp_path / name).chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [str(REPOSITORY / "tools" / "slurm_requeue.sh"), "--config-file", "a b.yaml"],
        env={"PATH": path, "PYTHON": str(tmp_path / "python"), "SLURM_JOB_ID": "17"},
        timeout=30,
    )
    assert done.returncode == code
    words = (tmp_path / "python.txt").read_text()
    assert words == "tools/train_net.py --resume --config-file a b.yaml\n"
    assert (tmp_path / "scontrol.txt").exists() == requeued
    if requeued:
        assert (tmp_path / "scontrol.txt").read_text() == "requeue 17\n"


def test_a_few_kills_lose_nothing(tmp_path: Path) -> None:
    toy = ["ALIGNZEG.PLUGINS", str(TOY_PLUGIN)]
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "dev" / "stress_kills.py"), "--kills", "6"]
        + ["--steps", "12", "--period", "3", *toy, "MODEL.META_ARCHITECTURE", "ToySegmenter"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    tally = json.loads(done.stdout.splitlines()[-1])
    assert tally["kills"] == 6 and tally["in_save"] >= 2 and tally["finished"] >= 1
    assert tally["unreadable"] == tally["lost"] == tally["different"] == 0
