"""Trainings as processes of their own, with progress."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import time
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from alignzeg.arguments import PARENT, TrainingError
from alignzeg.data.catalog import dataset_root
from alignzeg.demo.plan import LABELS, Plan, write_json
from alignzeg.files import atomic_write, code_hash
from alignzeg.studies.identity import described

DONE = "done.json"
_IDENTITY, _SPENT, _LOG = "identity.txt", "spent.json", "log.txt"
_TAIL_LINES = 25
# Seconds for a step, which ALIGNZEG.CHECKPOINT.GRACE bounds, and for saving behind it.
_SAVE_S = 90


def identity(plan: Plan, name: str) -> str:
    """A hash of everything that a trained model follows from: config, data, code, weights.

    Raises:
        ValueError: if the data set is not there yet, or pretrained weights are not.
    """
    parts = {**described(plan.config(name), plan.run_opts(name)), "code": code_hash()}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def train_all(plan: Plan, iterations: dict[str, int], console: Console) -> None:
    """Trains and evaluates what is not done yet, `plan.jobs` runs at a time.

    Raises:
        TrainingError: if one fails; the others are stopped and keep their checkpoints.
    """
    waiting = [name for name in LABELS if not _reusable(plan, name, console)]
    if not waiting:
        return
    running: list[_Training] = []
    columns = (
        TextColumn("{task.description:<22}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        try:
            while waiting or running:
                while waiting and len(running) < plan.jobs:
                    running.append(_Training(plan, waiting.pop(0), iterations, progress))
                running = [training for training in running if not training.finished()]
                time.sleep(0.3)
        finally:
            for training in running:
                training.ask_to_stop()
            for training in running:
                training.stop()


def _reusable(plan: Plan, name: str, console: Console) -> bool:
    """Whether a run is done; clears its folder if it was made from something else."""
    folder, current = plan.folder(name), identity(plan, name)
    marker = plan.record(name, _IDENTITY)
    if folder.exists() and not (marker.is_file() and marker.read_text("utf-8") == current):
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(marker, current)
    done = plan.record(name, DONE).is_file() and (folder / "model_final.pth").is_file()
    if done:
        console.print(f"{LABELS[name]}: trained already, used again", highlight=False)
    return done


class _Training:
    """One training as a process of its own, watched through its metrics.json."""

    def __init__(
        self, plan: Plan, name: str, iterations: dict[str, int], progress: Progress
    ) -> None:
        self.plan, self.name = plan, name
        self.total, self.progress = iterations[name], progress
        self.log = plan.record(name, _LOG)
        self.start = time.monotonic()
        spent = plan.record(name, _SPENT)
        self.spent = json.loads(spent.read_text("utf-8"))["seconds"] if spent.is_file() else 0.0
        self.task: TaskID = progress.add_task(LABELS[name], total=self.total)
        threads = str(max(1, (os.cpu_count() or 1) // plan.jobs))
        # Absolute, because the process is started in the repository.
        root = str(dataset_root()[0])
        with open(self.log, "w", encoding="utf-8") as log:
            self.process = subprocess.Popen(
                plan.command(name),
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                # Ctrl-C reaches this process alone, which then asks that one to save.
                start_new_session=True,
                env={
                    "OMP_NUM_THREADS": threads,
                    **os.environ,
                    "DETECTRON2_DATASETS": root,
                    PARENT: str(os.getpid()),
                },
            )

    def finished(self) -> bool:
        """Updates the bar; True once the run is complete.

        Raises:
            TrainingError: if the process failed.
        """
        code = self.process.poll()
        done = last_iteration(self.plan.folder(self.name) / "metrics.json") + 1
        last = done >= self.total
        label = LABELS[self.name]
        self.progress.update(
            self.task, completed=done, description=f"{label}, evaluating" if last else label
        )
        if code is None:
            return False
        if code != 0:
            lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
            raise TrainingError(
                f"{label} failed with exit code {code}; the end of {self.log}:\n"
                + "\n".join(lines[-_TAIL_LINES:])
            )
        self.progress.update(self.task, completed=self.total, description=label)
        self._write(DONE, round(self._seconds(), 1))
        return True

    def _seconds(self) -> float:
        """Wall time of this run, earlier parts of it included."""
        return self.spent + time.monotonic() - self.start

    def _write(self, what: str, seconds: float) -> None:
        write_json(self.plan.record(self.name, what), {"seconds": seconds})

    def ask_to_stop(self) -> None:
        """Lets the process end its step, save and end."""
        if self.process.poll() is None:
            self.progress.update(self.task, description=f"{LABELS[self.name]}, saving")
            self.process.terminate()

    def stop(self) -> None:
        """Waits for the end; another Ctrl-C, or more time than a save takes, ends it at once."""
        try:
            self.process.wait(_SAVE_S)
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            self.process.kill()
            self.process.wait()
        self._write(_SPENT, self._seconds())


def last_iteration(path: Path) -> int:
    """The last iteration that a metrics.json speaks of; -1 if there is none."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return -1
    for line in reversed(lines):
        try:
            return int(json.loads(line)["iteration"])
        except (json.JSONDecodeError, KeyError):
            continue
    return -1
