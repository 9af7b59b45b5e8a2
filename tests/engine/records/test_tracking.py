"""Figures of a training at a tracker: each once, at its step; a tracker never ends a training.

The writer is tested with a session written here, the starters with stand-ins for the packages'
interfaces, and, where they are installed, with the packages themselves, offline.
"""

from __future__ import annotations

import json
import logging
import math
import random
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from detectron2.utils.events import EventStorage
from helpers import CONFIGS

from alignzeg.engine import Trainer, setup_config, validate
from alignzeg.engine.records.tracking import (
    Session,
    TrackingWriter,
    build_tracking,
    start_mlflow,
    start_wandb,
)


class Notebook:
    """A tracker that remembers."""

    def __init__(self, failing: int = 0) -> None:
        self.asked: list[str] = []
        self.sent: list[tuple[int, dict[str, float]]] = []
        self.ended: list[bool] = []
        self.failing = failing

    def start(self, run_id: str) -> Session:
        self.asked.append(run_id)
        random.random()
        return Session(run_id or "run1", self.send, self.ended.append)

    def send(self, figures: dict[str, float], step: int) -> None:
        if self.failing:
            self.failing -= 1
            raise ConnectionError("no network")
        self.sent.append((step, dict(figures)))


def test_every_figure_is_sent_once_at_its_step(tmp_path: Path) -> None:
    tracker = Notebook()
    writer = TrackingWriter("toy", tracker.start, tmp_path)
    writer.start(resumed=False)
    with EventStorage(0) as storage:
        storage.put_scalar("lr", 0.5, smoothing_hint=False)
        storage.put_scalar("broken", math.nan, smoothing_hint=False)
        writer.write()
        writer.write()
        storage.iter = 3
        storage.put_scalar("lr", 0.25, smoothing_hint=False)
        storage.iter = 4
        storage.put_scalar("sem_seg/hIoU", 70.0, smoothing_hint=False)
        writer.write()
    writer.close()
    assert tracker.sent == [(0, {"lr": 0.5}), (3, {"lr": 0.25}), (4, {"sem_seg/hIoU": 70.0})]
    assert tracker.ended == [False]


def test_losses_are_medians_as_in_detectron2s_log(tmp_path: Path) -> None:
    tracker = Notebook()
    writer = TrackingWriter("toy", tracker.start, tmp_path)
    writer.start(resumed=False)
    with EventStorage(0) as storage:
        for step, value in enumerate([9.0, 1.0, 2.0]):
            storage.iter = step
            storage.put_scalar("total_loss", value)
        writer.write()
    assert tracker.sent == [(2, {"total_loss": 2.0})]


def test_a_resumed_training_goes_on_in_its_run(tmp_path: Path) -> None:
    for resumed, wanted in ((True, ""), (True, "run1"), (False, "")):
        tracker = Notebook()
        TrackingWriter("toy", tracker.start, tmp_path).start(resumed)
        assert tracker.asked == [wanted]
        assert json.loads((tmp_path / "track.json").read_text()) == {"toy": "run1"}
    (tmp_path / "track.json").write_text("{")
    tracker = Notebook()
    TrackingWriter("toy", tracker.start, tmp_path).start(True)
    assert tracker.asked == [""]


def test_the_training_draws_the_same_random_numbers(tmp_path: Path) -> None:
    random.seed(3)
    wanted = random.random()
    random.seed(3)
    TrackingWriter("toy", Notebook().start, tmp_path).start(False)
    assert random.random() == wanted


def test_a_tracker_that_fails_is_left_alone_after_three_times(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = Notebook(failing=99)
    writer = TrackingWriter("toy", tracker.start, tmp_path)
    writer.start(resumed=False)
    with caplog.at_level(logging.WARNING), EventStorage(0) as storage:
        for step in range(6):
            storage.iter = step
            storage.put_scalar("lr", step)
            writer.write()
        writer.close()
    assert tracker.failing == 96
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 3 and all("ConnectionError: no network" in m for m in messages)
    assert messages[-1].endswith("it is not tried again")


def test_a_tracker_that_cannot_start_ends_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def start(_: str) -> Session:
        raise RuntimeError("log in first")

    writer = TrackingWriter("toy", start, tmp_path)
    writer.start(resumed=False)
    with EventStorage(0) as storage:
        storage.put_scalar("lr", 1)
        writer.write()
    writer.close()
    assert "log in first" in caplog.text and not (tmp_path / "track.json").exists()


def trained(toy_cfg, name: str, session: Session, monkeypatch: pytest.MonkeyPatch) -> list:
    """A short training whose tracker is a session; what the starter was given."""
    given = []

    def start(*words):
        given.append(words)
        return session

    monkeypatch.setattr("alignzeg.engine.records.tracking.STARTERS", {name: start})
    toy_cfg.ALIGNZEG.TRACK.NAME, toy_cfg.ALIGNZEG.TRACK.PROJECT = name, "mine"
    Path(toy_cfg.OUTPUT_DIR).mkdir(parents=True)
    trainer = Trainer(toy_cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    return given


def test_a_training_reports_losses_evaluation_and_its_end(toy_cfg, monkeypatch) -> None:
    tracker = Notebook()
    session = Session("run1", tracker.send, tracker.ended.append)
    ((project, run, folder, config, run_id),) = trained(toy_cfg, "wandb", session, monkeypatch)
    assert (project, run, folder, run_id) == ("mine", "output", toy_cfg.OUTPUT_DIR, "")
    assert config["SOLVER.MAX_ITER"] == 2 and config["ALIGNZEG.TRACK.PROJECT"] == "mine"
    figures = {key for _, sent in tracker.sent for key in sent}
    assert {"total_loss", "lr", "sem_seg/hIoU"} <= figures
    assert tracker.ended == [False]
    # The same figures stand in Detectron2's own file.
    lines = (Path(toy_cfg.OUTPUT_DIR) / "metrics.json").read_text().splitlines()
    logged = {key: value for line in lines for key, value in json.loads(line).items()}
    sent = {key: value for _, step in tracker.sent for key, value in step.items()}
    assert sent["total_loss"] == pytest.approx(logged["total_loss"])


def test_nothing_is_built_unless_asked_for(toy_cfg) -> None:
    assert build_tracking(toy_cfg) == []
    assert "wandb" not in sys.modules and "mlflow" not in sys.modules


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["ALIGNZEG.TRACK.NAME", "wandbb"], "'wandbb', which is unknown; did you mean 'wandb'"),
        (["ALIGNZEG.TRACK.NAME", "mlflow"], r"mlflow is not installed; pip install 'alignzeg\[tr"),
    ],
)
def test_a_tracker_that_is_not_there_is_named(
    zeroshapes, tiny_opts, opts, message, monkeypatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *rest: None)
    cfg = setup_config(CONFIGS / "zeroshapes" / "alignzeg.yaml", [*tiny_opts, *opts])
    with pytest.raises(ValueError, match=message):
        validate(cfg)


def test_what_wandb_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls: list[tuple] = []

    def remember(name: str):
        return lambda *args, **kwargs: calls.append((name, args, kwargs))

    run = SimpleNamespace(
        id="abc",
        define_metric=remember("define_metric"),
        log=remember("log"),
        finish=remember("finish"),
    )
    module = ModuleType("wandb")
    module.init = lambda **kwargs: calls.append(("init", (), kwargs)) or run
    monkeypatch.setitem(sys.modules, "wandb", module)
    session = start_wandb("p", "n", str(tmp_path), {"SEED": 1}, "")
    session.send({"lr": 0.5}, 7)
    session.end(True)
    assert session.id == "abc"
    told = {"project": "p", "name": "n", "dir": str(tmp_path), "config": {"SEED": 1}}
    assert calls == [
        ("init", (), told | {"id": None, "resume": "allow"}),
        ("define_metric", ("iteration",), {}),
        ("define_metric", ("*",), {"step_metric": "iteration"}),
        ("log", ({"lr": 0.5, "iteration": 7},), {}),
        ("finish", (), {"exit_code": 1}),
    ]


def test_wandb_itself_offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    session = start_wandb("p", "n", str(tmp_path), {"SEED": 1}, "")
    session.send({"lr": 0.5}, 7)
    session.end(False)
    (stored,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    assert session.id in stored.name and b"lr" in stored.read_bytes()


def test_mlflow_itself_in_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "runs").as_uri())
    config = {f"KEY{i}": "x" * 600 for i in range(230)}
    session = start_mlflow("p", "n", str(tmp_path), config, "")
    session.send({"lr": 0.5, "[metric]grad_norm": 2.0}, 7)
    session.end(False)
    again = start_mlflow("p", "n", str(tmp_path), config, session.id)
    again.send({"lr": 0.25}, 9)
    again.end(True)
    assert again.id == session.id
    client = mlflow.MlflowClient()
    run = client.get_run(session.id)
    assert run.info.run_name == "n" and run.info.status == "FAILED"
    assert run.data.metrics == {"lr": 0.25, "metric_grad_norm": 2.0}
    assert len(run.data.params) == 230 and len(run.data.params["KEY0"]) == 500
    assert [(m.step, m.value) for m in client.get_metric_history(session.id, "lr")] == [
        (7, 0.5),
        (9, 0.25),
    ]
