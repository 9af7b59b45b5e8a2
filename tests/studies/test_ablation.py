"""The ablation runs what is missing, keeps what is done, and adds up by hand."""

from __future__ import annotations

import dataclasses
import json
import statistics
import sys
from pathlib import Path

import pytest
import torch
import yaml
from helpers import CONFIGS, TINY_OPTS

from alignzeg.arguments import TrainingError
from alignzeg.commands import guarded
from alignzeg.engine.checkpoints.reading import read_checkpoint
from alignzeg.studies.ablation import MARKER, Plan, Row, check, run, table

# Stands in for the training script: the command line contract is what the ablation relies on.
SCRIPT = """
import json, pathlib, sys
args = dict(zip(sys.argv[1::1], sys.argv[2::1]))
out = pathlib.Path(args["OUTPUT_DIR"])
(out / "inference").mkdir(parents=True, exist_ok=True)
runs = out / "runs.txt"
runs.write_text((runs.read_text() if runs.exists() else "") + " ".join(sys.argv[1:]) + "\\n")
if "SEED: 66" in pathlib.Path(args["--config-file"]).read_text():
    sys.exit("the reason of the failure")
source = pathlib.Path(args["MODEL.WEIGHTS"]).read_text() if "MODEL.WEIGHTS" in args else ""
text = pathlib.Path(args["--config-file"]).read_text()
(out / "model_final.pth").write_text(f"weights of {text} from {source}")
seed = int(args["SEED"])
metrics = {"hIoU": 10.0 * seed, "uIoU": 5.0 + seed, "sIoU": None}
(out / "inference" / "evaluation_x.json").write_text(json.dumps({"metrics": metrics}))
"""


@pytest.fixture
def plan(tmp_path) -> Plan:
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    rows = []
    for name, source in (("a", ""), ("b", ""), ("c", "a")):
        path = tmp_path / f"{name}.yaml"
        path.write_text("SEED: 1\n")
        rows.append(Row(name, path, source))
    return Plan(
        tuple(rows),
        (1, 2, 4),
        tmp_path / "out",
        ("SOLVER.MAX_ITER", "3"),
        2,
        (sys.executable, str(script)),
    )


def runs(plan: Plan, row: str, seed: int) -> list[str]:
    return (plan.folder(row, seed) / "runs.txt").read_text().splitlines()


def test_mean_and_spread_by_hand(plan):
    summary = run(plan)
    row = summary["rows"]["a"]
    assert row["mean"] == {"hIoU": pytest.approx(70 / 3), "uIoU": pytest.approx(22 / 3)}
    assert row["spread"]["hIoU"] == pytest.approx(statistics.stdev([10, 20, 40]))
    stored = json.loads((plan.output / "ablation.json").read_text())
    assert stored["rows"]["c"]["mean"] == row["mean"]
    assert "| a |  |  |  | 7.3 ± 1.5 | 23.3 ± 15.3 |" in table(summary)


def test_a_second_run_repeats_nothing_and_a_changed_config_only_its_own(plan):
    run(plan)
    run(plan)
    assert len(runs(plan, "a", 1)) == 1
    plan.rows[1].config.write_text("SOLVER: {BASE_LR: 0.5}\n")
    run(plan)
    assert len(runs(plan, "a", 1)) == 1
    # From an empty folder; what was there is kept beside it.
    assert len(runs(plan, "b", 1)) == 1
    aside = plan.folder("b", 1).with_name("seed_1_before_1")
    assert (aside / "model_final.pth").is_file()
    assert len(runs(plan, "c", 1)) == 1


def test_rows_follow_the_rows_that_they_take_weights_from(plan):
    a, b, c = plan.rows
    rows = (a, dataclasses.replace(b, starts_from="a"), dataclasses.replace(c, weights_from="b"))
    chain = dataclasses.replace(plan, rows=rows, seeds=(1,))
    run(chain)
    run(chain)
    assert [len(runs(chain, name, 1)) for name in "abc"] == [1, 1, 1]
    chain.rows[0].config.write_text("SOLVER: {BASE_LR: 0.5}\n")
    run(chain)
    assert [len(runs(chain, name, 1)) for name in "abc"] == [1, 1, 1]
    for name in "abc":
        assert chain.folder(name, 1).with_name("seed_1_before_1").is_dir()
        assert "BASE_LR" in (chain.folder(name, 1) / "model_final.pth").read_text()


def test_a_run_that_was_cut_off_goes_on_only_with_its_own_settings(plan):
    run(plan)
    for name in "ab":
        marker = plan.folder(name, 1) / MARKER
        marker.write_text(json.dumps(json.loads(marker.read_text()) | {"done": False}))
    plan.rows[1].config.write_text("SOLVER: {BASE_LR: 0.5}\n")
    run(plan)
    assert len(runs(plan, "a", 1)) == 2
    assert len(runs(plan, "b", 1)) == 1


def test_figures_and_weights_are_those_of_an_edited_config(zeroshapes, tmp_path):
    """With the real training: the new config trains anew, from nothing."""
    config = tmp_path / "mine.yaml"
    base = f"_BASE_: {CONFIGS / 'zeroshapes' / 'baseline.yaml'}\n"
    config.write_text(base)
    opts = (
        *TINY_OPTS,
        "SOLVER.MAX_ITER",
        "2",
        "TEST.EVAL_PERIOD",
        "0",
        "DATALOADER.NUM_WORKERS",
        "0",
    )
    real = Plan((Row("mine", config),), (1,), tmp_path / "out", opts, 1)
    run(real)
    first = read_checkpoint(str(real.folder("mine", 1) / "model_final.pth"))
    config.write_text(base + "SOLVER: {BASE_LR: 0.03}\n")
    run(real)
    second = read_checkpoint(str(real.folder("mine", 1) / "model_final.pth"))
    assert yaml.safe_load(second["alignzeg"]["config"])["SOLVER"]["BASE_LR"] == 0.03
    assert second["iteration"] == first["iteration"] == 1
    same = [torch.equal(value, second["model"][name]) for name, value in first["model"].items()]
    assert not all(same)
    kept = real.folder("mine", 1).with_name("seed_1_before_1") / "model_final.pth"
    assert all(
        torch.equal(value, read_checkpoint(str(kept))["model"][name])
        for name, value in first["model"].items()
    )


def test_reused_weights_are_evaluated_not_trained(plan):
    run(plan)
    (command,) = runs(plan, "c", 2)
    assert "--eval-only" in command
    assert str(plan.folder("a", 2) / "model_final.pth") in command
    assert "SOLVER.MAX_ITER 3" in command


def test_a_failure_shows_its_reason_and_keeps_the_rest(plan):
    plan.rows[1].config.write_text("SEED: 66\n")
    with pytest.raises(TrainingError, match=r"b with seed \d failed(?s:.*)the reason of"):
        run(plan)
    plan.rows[1].config.write_text("SEED: 1\n")
    run(plan)
    assert len(runs(plan, "a", 1)) == 1


def test_sigterm_ends_the_runs_at_work_and_starts_no_other(plan, tmp_path, capsys):
    script = tmp_path / "slow.py"
    script.write_text(
        "import os, pathlib, signal, sys, time\n"
        "def end(*_):\n"
        f"    pathlib.Path({str(tmp_path)!r}, 'saved_' + str(os.getpid())).touch()\n"
        "    sys.exit(75)\n"
        "signal.signal(signal.SIGTERM, end)\n"
        "os.kill(os.getppid(), signal.SIGTERM)\n"
        "time.sleep(60)\n"
    )
    slow = dataclasses.replace(plan, jobs=1, program=(sys.executable, str(script)))
    assert guarded(lambda: run(slow), resumable=True) == 143
    assert len(list(tmp_path.glob("saved_*"))) == 1
    assert capsys.readouterr().err == "stopped; run the same command to go on\n"


def test_plans_that_cannot_work(plan, tmp_path):
    def changed(*rows: Row) -> Plan:
        return Plan(rows, plan.seeds, plan.output, (), 1, plan.program)

    with pytest.raises(ValueError, match="no config file .*missing.yaml"):
        check(changed(Row("m", tmp_path / "missing.yaml")))
    with pytest.raises(ValueError, match="share a name"):
        check(changed(plan.rows[0], plan.rows[0]))
    with pytest.raises(ValueError, match="not among the rows before it"):
        check(changed(Row("c", Path(plan.rows[0].config), "a")))
    with pytest.raises(ValueError, match="at least one config"):
        check(changed())
