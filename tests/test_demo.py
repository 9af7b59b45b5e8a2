"""The demo as a user runs it, with two steps of training."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY, TINY_OPTS
from rich.console import Console

from alignzeg.demo import DemoError, Plan, run_demo
from alignzeg.demo.plan import identity
from alignzeg.demo.training import last_iteration

# TINY_OPTS without the number of steps, which --iterations sets.
OPTS = [*TINY_OPTS[:4], *TINY_OPTS[6:]]


def demo(folder: Path, *opts: str) -> str:
    """Runs a tiny demo in this process, its trainings in their own; returns what it prints."""
    console = Console(file=io.StringIO(), width=100)
    plan = Plan(REPOSITORY, folder / "out", 2, (8, 4), 64, 1, (*OPTS, *opts))
    run_demo(plan, console=console)
    return console.file.getvalue()


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


def test_a_failed_training_shows_the_end_of_its_log(tmp_path: Path) -> None:
    with pytest.raises(DemoError) as failure:
        demo(tmp_path, "SOLVER.IMS_PER_BATCH", "0")
    assert "demo_log.txt" in str(failure.value)
    assert "SOLVER.IMS_PER_BATCH is 0" in str(failure.value)
    assert not (tmp_path / "out" / "results.json").exists()


def test_a_wrong_key_is_refused_before_any_work(tmp_path: Path) -> None:
    command = [sys.executable, str(REPOSITORY / "tools" / "demo.py"), "--output"]
    command += [str(tmp_path / "out"), "SOLVER.MAX_ITR", "3"]
    refused = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert "did you mean SOLVER.MAX_ITER" in refused.stderr
    assert not (tmp_path / "zeroshapes").exists()


def test_identity_follows_what_the_training_depends_on(tmp_path: Path) -> None:
    plan = Plan(REPOSITORY, tmp_path, 2, (8, 4), 64)
    same = Plan(REPOSITORY, tmp_path / "elsewhere", 2, (8, 4), 64)
    assert identity(plan, "alignzeg") == identity(same, "alignzeg")
    others = [
        Plan(REPOSITORY, tmp_path, 3, (8, 4), 64),
        Plan(REPOSITORY, tmp_path, 2, (9, 4), 64),
        Plan(REPOSITORY, tmp_path, 2, (8, 4), 64, opts=("SEED", "5")),
    ]
    hashes = {identity(other, "alignzeg") for other in others} | {identity(plan, "baseline")}
    assert len(hashes) == 4
    assert identity(plan, "alignzeg") not in hashes


@pytest.mark.parametrize(
    ("text", "expected"),
    [("", -1), ('{"iteration": 4}\n{"a": 1}\n{"iter', 4), ('{"iteration": 19}\n', 19)],
)
def test_last_iteration(tmp_path: Path, text: str, expected: int) -> None:
    (tmp_path / "metrics.json").write_text(text)
    assert last_iteration(tmp_path / "metrics.json") == expected
    assert last_iteration(tmp_path / "missing.json") == -1
