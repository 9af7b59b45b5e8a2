"""The figures of a training at Weights & Biases or MLflow, through Detectron2's event writers.

`metrics.json` has everything in any case: a tracker that fails is left alone, the training goes on.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import math
import re
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from detectron2.config import CfgNode
from detectron2.engine import hooks
from detectron2.utils import comm
from detectron2.utils.events import EventWriter, get_event_storage

from alignzeg.config.values import flatten
from alignzeg.engine.checkpoints.state import isolated_rng
from alignzeg.files import atomic_write

logger = logging.getLogger(__name__)

# Holds {"wandb": id} or the like, so that a resumed training goes on in the same run.
FILE_NAME = "track.json"
# Steps over whose median losses are smoothed, and between two reports, as Detectron2's writers.
_WINDOW = _PERIOD = 20
# Reports in a row that may fail before no more are tried: one may block for minutes.
_MOST_FAILURES = 3
# What MLflow refuses in a name; most parameters of one call, most characters of one.
_ODD = re.compile(r"[^\w\-. :/]+")
_MOST_PARAMETERS, _MOST_CHARACTERS = 100, 500


class Session(NamedTuple):
    """A run at a tracker.

    Attributes:
        id: by which it can be gone on with.
        send: takes figures by name, and their step.
        end: takes whether the training failed.
    """

    id: str
    send: Callable[[Mapping[str, float], int], Any]
    end: Callable[[bool], Any]


# Takes project, name, folder, config, and the id of a run to go on with or "".
Starter = Callable[[str, str, str, Mapping[str, Any], str], Session]


def start_wandb(
    project: str, name: str, folder: str, config: Mapping[str, Any], run_id: str
) -> Session:
    """A run of Weights & Biases; WANDB_MODE offline keeps it below the folder."""
    wandb = importlib.import_module("wandb")
    given = {"project": project, "name": name, "dir": folder, "config": dict(config)}
    run = wandb.init(**given, id=run_id or None, resume="allow")
    # Its own step may not go back, as it does in a resumed training.
    run.define_metric("iteration")
    run.define_metric("*", step_metric="iteration")
    return Session(
        run.id,
        lambda figures, step: run.log({**figures, "iteration": step}),
        lambda failed: run.finish(exit_code=int(failed)),
    )


def start_mlflow(
    project: str, name: str, folder: str, config: Mapping[str, Any], run_id: str
) -> Session:
    """A run of MLflow, where MLFLOW_TRACKING_URI says."""
    del folder
    mlflow = importlib.import_module("mlflow")
    entities = importlib.import_module("mlflow.entities")
    client = mlflow.MlflowClient()
    if run_id:
        client.update_run(run_id, status="RUNNING")
    else:
        found = client.get_experiment_by_name(project)
        experiment = found.experiment_id if found else client.create_experiment(project)
        run_id = client.create_run(experiment, run_name=name).info.run_id
        given = [entities.Param(key, str(v)[:_MOST_CHARACTERS]) for key, v in config.items()]
        for start in range(0, len(given), _MOST_PARAMETERS):
            client.log_batch(run_id, params=given[start : start + _MOST_PARAMETERS])

    def send(figures: Mapping[str, float], step: int) -> None:
        now = int(time.time() * 1000)
        names = {_ODD.sub("_", key).strip("_"): value for key, value in figures.items()}
        metrics = [entities.Metric(name, value, now, step) for name, value in names.items()]
        client.log_batch(run_id, metrics=metrics)

    return Session(
        run_id,
        send,
        lambda failed: client.set_terminated(run_id, "FAILED" if failed else "FINISHED"),
    )


STARTERS: Mapping[str, Starter] = {"wandb": start_wandb, "mlflow": start_mlflow}


class TrackingWriter(EventWriter):
    """Sends every scalar of the event storage once."""

    def __init__(self, name: str, start: Callable[[str], Session], folder: str | Path) -> None:
        self.name = name
        self._start = start
        self._file = Path(folder) / FILE_NAME
        self._session: Session | None = None
        self._sent: dict[str, int] = {}
        self._failures = 0
        self.failed = False

    def start(self, resumed: bool) -> None:
        """Starts a run, or goes on with the one that OUTPUT_DIR names if the training does."""
        known = ""
        if resumed:
            with contextlib.suppress(OSError, ValueError, AttributeError):
                known = str(json.loads(self._file.read_text("utf-8")).get(self.name, ""))
        # A tracker may draw random numbers; those of the training must not depend on it.
        with isolated_rng():
            self._session = self._try(self._start, known)
        if self._session is not None:
            atomic_write(self._file, json.dumps({self.name: self._session.id}) + "\n")

    def write(self) -> None:
        """Sends what has come since the last call, step by step."""
        if self._session is None:
            return
        steps: dict[int, dict[str, float]] = defaultdict(dict)
        for key, (value, step) in get_event_storage().latest_with_smoothing_hint(_WINDOW).items():
            if step > self._sent.get(key, -1) and math.isfinite(value):
                steps[step][key] = float(value)
                self._sent[key] = step
        for step in sorted(steps):
            self._try(self._session.send, steps[step], step)

    def close(self) -> None:
        """Ends the run."""
        session, self._session = self._session, None
        if session is not None:
            self._try(session.end, self.failed)

    def _try(self, work: Callable[..., Any], *args: Any) -> Any:
        if self._failures >= _MOST_FAILURES:
            return None
        try:
            result = work(*args)
        except Exception as error:  # noqa: BLE001 (no tracker may end a training)
            self._failures += 1
            logger.warning(
                "%s failed (%s: %s); the training goes on, and metrics.json has all figures%s",
                *(self.name, type(error).__name__, " ".join(str(error).split())[:300]),
                "; it is not tried again" if self._failures >= _MOST_FAILURES else "",
            )
            return None
        self._failures = 0
        return result


class Tracking(hooks.PeriodicWriter):
    """Detectron2's hook for writers; it also starts the run, and says how it ended."""

    def __init__(self, writer: TrackingWriter) -> None:
        super().__init__([writer], _PERIOD)
        self._writer = writer

    def before_train(self) -> None:
        """Starts the run."""
        self._writer.start(resumed=self.trainer.start_iter > 0)

    def after_train(self) -> None:
        """Sends the rest, and ends the run."""
        self._writer.failed = self.trainer.iter < self.trainer.max_iter
        super().after_train()


def build_tracking(cfg: CfgNode) -> list[Tracking]:
    """The hook that ALIGNZEG.TRACK asks for, in the first process; none otherwise."""
    node, folder = cfg.ALIGNZEG.TRACK, cfg.OUTPUT_DIR
    if not node.NAME or not comm.is_main_process():
        return []
    run = node.RUN or Path(folder).name
    config = dict(flatten(yaml.safe_load(cfg.dump())))
    start = partial(STARTERS[node.NAME], node.PROJECT, run, folder, config)
    return [Tracking(TrackingWriter(node.NAME, start, folder))]
