"""What a comparison runs, and where."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignzeg.demo.datasets import DataSet
from alignzeg.files import atomic_write

LABELS = {"baseline": "Baseline", "alignzeg": "AlignZeg"}


@dataclass(frozen=True)
class Plan:
    """The baseline and AlignZeg on one data set.

    Attributes:
        repository: where configs/ is.
        output: everything but the data set is written here.
        data: what they are trained and judged on.
        iterations: of each training; 0 takes the configs' own number.
        jobs: trainings at a time, sharing the cores evenly.
        opts: KEY VALUE pairs for both trainings.
    """

    repository: Path
    output: Path
    data: DataSet
    iterations: int = 0
    jobs: int = 1
    opts: tuple[str, ...] = ()

    @property
    def dataset(self) -> str:
        """The registered data set that both are judged by."""
        return f"{self.data.benchmark}_val"

    def config(self, name: str) -> Path:
        """The YAML file of a run."""
        return self.repository / "configs" / self.data.benchmark / f"{name}.yaml"

    def folder(self, name: str) -> Path:
        """OUTPUT_DIR of a run."""
        return self.output / name

    def record(self, name: str, what: str) -> Path:
        """A file of the comparison, not the training, in the folder of a run."""
        return self.folder(name) / f"{self.data.name}_{what}"

    def run_opts(self, name: str) -> list[str]:
        """KEY VALUE pairs of a run."""
        steps = ["SOLVER.MAX_ITER", str(self.iterations)] if self.iterations else []
        # The report says how far chance over images would move the figures.
        kept = ["ALIGNZEG.TEST.SAVE_PER_IMAGE", "True"]
        return [*kept, *self.opts, *steps, "OUTPUT_DIR", str(self.folder(name))]

    def command(self, name: str) -> list[str]:
        """What trains and evaluates a run, from its last checkpoint if there is one."""
        config = ["--config-file", str(self.config(name)), "--resume"]
        return [sys.executable, "-m", "alignzeg", "train", *config, *self.run_opts(name)]


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes a JSON file that appears in one piece."""
    atomic_write(path, json.dumps(content, indent=1) + "\n")
