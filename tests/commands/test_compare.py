"""Provenance of real runs, and which difference `compare` names first."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from detectron2.config import CfgNode
from helpers import CONFIGS, REPOSITORY, TINY_OPTS

from alignzeg.__main__ import main
from alignzeg.commands import guarded
from alignzeg.commands.train import parse_args
from alignzeg.engine import read_checkpoint, setup_config, start_run, train
from alignzeg.engine.records.provenance import (
    append_entry,
    describe_git,
    hash_sources,
    read_history,
)
from alignzeg.engine.training.hooks import LossCurve
from alignzeg.studies.divergence import last_training, read_curve

CONFIG = str(CONFIGS / "zeroshapes" / "alignzeg.yaml")


def run(output: Path, *opts: str, resume: bool = False) -> int:
    """Trains two steps in this process, as `alignzeg train` does."""
    cache = ["ALIGNZEG.VLM.CACHE_DIR", str(output.parent / "text")]
    words = [*TINY_OPTS, "OUTPUT_DIR", str(output), *cache, "SEED", "5", *opts]

    def go() -> None:
        cfg = start_run(setup_config(CONFIG, words), parse_args(["--resume"] * resume))
        train(cfg, resume=resume)

    return guarded(go, debug=True)


@pytest.fixture(scope="module")
def runs(zeroshapes_files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three runs of two steps: twice the same, then with another learning rate."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(zeroshapes_files))
        patch.setattr("sys.argv", ["train_net.py", "--config-file", CONFIG])
        assert run(folder / "one") == run(folder / "two") == 0
        assert run(folder / "fast", "SOLVER.BASE_LR", "0.01") == 0
    return folder


def compare(*folders: Path, words: tuple[str, ...] = ()) -> int:
    return main(["compare", *map(str, folders), *words])


def test_everything_is_recorded(runs: Path) -> None:
    (entry,) = read_history(runs / "one")
    about = read_checkpoint(str(runs / "one" / "model_final.pth"))["alignzeg"]
    assert entry["vlm"] == {"id": about["vlm_id"], "hash": about["vlm_hash"]}
    assert entry["command"] == ["train_net.py", "--config-file", CONFIG]
    assert entry["seed"] == 5 == entry["config"]["SEED"] and entry["processes"] == 1
    assert (entry["action"], entry["iteration"], entry["resumed"]) == ("train", 0, False)
    assert set(entry["data"]) == {"zeroshapes_train", "zeroshapes_val"}
    assert entry["data"]["zeroshapes_train"]["images"] == 8
    assert entry["environment"]["torch"] and entry["environment"]["detectron2"]
    assert entry["git"] is None or len(entry["git"]["commit"]) == 40
    # All of the package, not a part of it.
    assert entry["source"] == hash_sources(REPOSITORY / "alignzeg")
    assert not list(runs.rglob("*.tmp"))


def test_the_curve_is_exact_and_complete(runs: Path) -> None:
    curve = read_curve(runs / "one" / "losses.jsonl")
    assert sorted(curve) == [0, 1]
    for terms in curve.values():
        parts = sum(value for name, value in terms.items() if name != "total_loss")
        assert parts == pytest.approx(terms["total_loss"])
        assert {"loss_mask", "loss_dice", "loss_class", "total_loss"} <= terms.keys()


def test_equal_runs_are_equal(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare(runs / "one", runs / "two") == 0
    out = capsys.readouterr().out
    assert out.count("equal") == 5 and "no divergence" in out


def test_another_learning_rate_is_named_first(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare(runs / "fast", runs / "one") == 1
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("first divergence: config: SOLVER.BASE_LR is 0.01 here and ")


def edited(runs: Path, target: Path, change) -> Path:
    """A copy of the first run with another entry in its provenance."""
    shutil.copytree(runs / "one", target)
    content = json.loads((target / "provenance.json").read_text())
    change(content["history"][0])
    (target / "provenance.json").write_text(json.dumps(content))
    return target


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e: e["environment"].update(torch="1.0"), "environment: torch is '1.0' here"),
        (lambda e: e.update(source="x"), "environment: source is 'x' here"),
        (lambda e: e["vlm"].update(hash="x"), "VLM: hash is 'x' here"),
        (
            lambda e: e["data"]["zeroshapes_val"].update(sha256="x"),
            "data: zeroshapes_val.sha256 is 'x' here",
        ),
        (lambda e: e["config"].update(SEED=6), "config: SEED is 6 here"),
        (lambda e: e["config"].pop("SEED"), "config: SEED is missing here"),
        (lambda e: e.update(plugins={"a.py": "x"}), "config: plugin a.py is 'x' here"),
    ],
)
def test_each_part_is_named(runs, tmp_path, capsys, change, message):
    assert compare(edited(runs, tmp_path / "run", change), runs / "one") == 1
    assert f"first divergence: {message}" in capsys.readouterr().out.splitlines()[-1]


def test_output_folders_do_not_count(runs, tmp_path):
    other = edited(runs, tmp_path / "run", lambda e: e["config"].update(OUTPUT_DIR="/elsewhere"))
    assert compare(other, runs / "one") == 0


def test_the_first_iteration_and_term_are_named(runs, tmp_path, capsys):
    other = edited(runs, tmp_path / "run", lambda _: None)
    lines = [json.loads(line) for line in (other / "losses.jsonl").read_text().splitlines()]
    lines[1]["loss_dice"] *= 1 + 1e-7
    lines[1]["total_loss"] *= 1 + 1e-7
    (other / "losses.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert compare(other, runs / "one") == 1
    last = capsys.readouterr().out.splitlines()[-1]
    assert "losses: iteration 1: loss_dice is" in last
    assert compare(other, runs / "one", words=("--tolerance", "1e-6")) == 0


def test_a_run_without_provenance_is_compared_as_far_as_it_goes(runs, tmp_path, capsys):
    shutil.copytree(runs / "one", tmp_path / "old")
    for name in ("provenance.json", "losses.jsonl"):
        (tmp_path / "old" / name).unlink()
    assert compare(tmp_path / "old", runs / "one") == 0
    out = capsys.readouterr().out
    assert "equal    config" in out and "unknown  data" in out and "equal    losses" in out


def test_a_resume_that_changes_something_is_named(runs, tmp_path, capsys):
    def resumed(entry: dict) -> dict:
        return {**entry, "resumed": True, "iteration": 7}

    other = edited(runs, tmp_path / "run", lambda _: None)
    (entry,) = read_history(other)
    append_entry(other, resumed(entry))
    assert compare(other, runs / "one") == 0
    append_entry(other, {**resumed(entry), "config": {**entry["config"], "SEED": 9}})
    assert compare(other, runs / "one") == 1
    assert "SEED is 9 since RUN was resumed at iteration 7" in capsys.readouterr().out


def test_history_grows_and_survives_damage(tmp_path):
    entries = [{"action": "train", "resumed": False, "n": 0}, {"action": "evaluate", "n": 1}]
    entries += [{"action": "train", "resumed": True, "n": 2}]
    for entry in entries:
        append_entry(tmp_path, entry)
    assert read_history(tmp_path) == entries
    assert [entry["n"] for entry in last_training(entries)] == [0, 2]
    assert [e["n"] for e in last_training([*entries, {**entries[0], "n": 3}])] == [3]
    (tmp_path / "provenance.json").write_text('{"format": 1, "hist')
    append_entry(tmp_path, entries[0])
    assert read_history(tmp_path) == entries[:1]
    assert (tmp_path / "provenance.json.damaged1").read_text() == '{"format": 1, "hist'


def test_a_curve_with_kills_and_restarts(tmp_path):
    path = tmp_path / "losses.jsonl"
    lines = [{"iteration": i, "total_loss": float(i)} for i in (0, 1, 2, 3)]
    lines += [{"iteration": i, "total_loss": 10.0 + i} for i in (2, 3, 4)]
    text = "".join(json.dumps(line) + "\n" for line in lines) + '{"iteration": 5, "tot'
    path.write_text(text)
    assert {i: t["total_loss"] for i, t in read_curve(path).items()} == {
        0: 0.0,
        1: 1.0,
        2: 12.0,
        3: 13.0,
        4: 14.0,
    }
    hook = LossCurve(str(tmp_path))
    hook.before_train()
    hook.after_train()
    assert path.read_text() == text + "\n"
    path.write_text(json.dumps(lines[0]) + "\n" + json.dumps(lines[3]) + "\n" + path.read_text())
    assert list(read_curve(path)) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("wrong", ["none", "empty", "damaged", "unlike", "tolerance"])
def test_what_is_no_run_is_one_line(runs, tmp_path, capsys, wrong):
    folder, words = tmp_path / "run", ()
    if wrong != "none":
        folder.mkdir()
    if wrong == "damaged":
        (folder / "provenance.json").write_text("[]")
    if wrong == "unlike":
        # Nothing but losses, of other iterations.
        (folder / "losses.jsonl").write_text('{"iteration": 99, "total_loss": 1.0}\n')
    if wrong == "tolerance":
        folder, words = runs / "one", ("--tolerance", "-1")
    assert compare(folder, runs / "one", words=words) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ")


def test_git_is_described(tmp_path):
    def git(*words: str) -> str:
        who = {"GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a", "GIT_COMMITTER_NAME": "a"}
        environment = {**os.environ, **who, "GIT_COMMITTER_EMAIL": "a"}
        done = subprocess.run(
            ["git", *words], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        return done.stdout.strip()

    (tmp_path / "__init__.py").write_text("1\n")
    assert describe_git(tmp_path) is None
    git("init", "-q")
    assert describe_git(tmp_path) is None, "a file that git does not know is no version"
    git("add", "__init__.py")
    git("commit", "-qm", "x")
    clean = describe_git(tmp_path)
    assert clean == {"commit": git("rev-parse", "HEAD"), "dirty": False, "diff": None}
    source = hash_sources(tmp_path)
    (tmp_path / "__init__.py").write_text("2\n")
    changed = describe_git(tmp_path)
    assert changed["commit"] == clean["commit"] and changed["dirty"] and len(changed["diff"]) == 64
    assert hash_sources(tmp_path) != source


def test_a_wrapped_model_is_recorded(tiny_cfg: CfgNode) -> None:
    from torch import nn

    from alignzeg.engine.records.provenance import describe_run

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = nn.Module()
            self.module.vlm = type("V", (), {"id": "a", "hash": "b"})

    assert describe_run(tiny_cfg, Wrapped())["vlm"] == {"id": "a", "hash": "b"}
