"""The ablation runs what is missing, keeps what is done, and adds up by hand."""

from __future__ import annotations

import dataclasses
import json
import statistics
import sys
from pathlib import Path

import pytest

from alignzeg.arguments import TrainingError
from alignzeg.commands import guarded
from alignzeg.studies.ablation import Plan, Row, check, run, table

# Stands in for the training script: the command line contract is what the ablation relies on.
SCRIPT = """
import json, pathlib, sys
args = dict(zip(sys.argv[1::1], sys.argv[2::1]))
out = pathlib.Path(args["OUTPUT_DIR"])
(out / "inference").mkdir(parents=True, exist_ok=True)
runs = out / "runs.txt"
runs.write_text((runs.read_text() if runs.exists() else "") + " ".join(sys.argv[1:]) + "\\n")
if pathlib.Path(args["--config-file"]).read_text() == "broken":
    sys.exit("the reason of the failure")
if "--eval-only" in sys.argv:
    assert pathlib.Path(args["MODEL.WEIGHTS"]).read_text() == "weights"
(out / "model_final.pth").write_text("weights")
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
        path.write_text("text")
        rows.append(Row(name, path, source))
    return Plan(
        tuple(rows), (1, 2, 4), tmp_path / "out", ("K", "V"), 2, (sys.executable, str(script))
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
    plan.rows[1].config.write_text("other")
    run(plan)
    assert len(runs(plan, "a", 1)) == 1
    assert len(runs(plan, "b", 1)) == 2


def test_reused_weights_are_evaluated_not_trained(plan):
    run(plan)
    (command,) = runs(plan, "c", 2)
    assert "--eval-only" in command
    assert str(plan.folder("a", 2) / "model_final.pth") in command
    assert "K V" in command


def test_a_failure_shows_its_reason_and_keeps_the_rest(plan):
    plan.rows[1].config.write_text("broken")
    with pytest.raises(TrainingError, match=r"b with seed \d failed(?s:.*)the reason of"):
        run(plan)
    plan.rows[1].config.write_text("text")
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
