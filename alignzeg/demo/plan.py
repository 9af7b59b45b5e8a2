"""What the demo runs, and when an earlier run may be used again."""

from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import alignzeg
from alignzeg.data.zeroshapes import DEFAULT_COUNTS
from alignzeg.engine import setup_config

LABELS = {"baseline": "Baseline", "alignzeg": "AlignZeg"}
# What a trained model depends on; report and prediction may change without a new training.
_SOURCES = ("config.py", "structures.py", "registries.py", "data", "engine", "evaluation", "losses")
_SOURCES += ("modeling", "assets/*.json", "assets/*.safetensors")


@dataclass(frozen=True)
class Plan:
    """What the demo does.

    Attributes:
        repository: where configs/ and tools/ are.
        output: everything is written here.
        iterations: of each training; 0 takes the configs' own number.
        scenes: pictures for training and validation.
        size: of a picture's side in pixels.
        jobs: trainings at a time, sharing the cores evenly.
        opts: KEY VALUE pairs for both trainings.
    """

    repository: Path
    output: Path
    iterations: int = 0
    scenes: tuple[int, int] = (DEFAULT_COUNTS["train"], DEFAULT_COUNTS["val"])
    size: int = 128
    jobs: int = 1
    opts: tuple[str, ...] = ()

    def config(self, name: str) -> Path:
        """The YAML file of a run."""
        return self.repository / "configs" / "zeroshapes" / f"{name}.yaml"

    def folder(self, name: str) -> Path:
        """OUTPUT_DIR of a run."""
        return self.output / name

    def run_opts(self, name: str) -> list[str]:
        """KEY VALUE pairs of a run."""
        steps = ["SOLVER.MAX_ITER", str(self.iterations)] if self.iterations else []
        # The report says how far chance over images would move the figures.
        kept = ["ALIGNZEG.TEST.SAVE_PER_IMAGE", "True"]
        return [*kept, *self.opts, *steps, "OUTPUT_DIR", str(self.folder(name))]

    def command(self, name: str) -> list[str]:
        """What trains and evaluates a run, from its last checkpoint if there is one."""
        script = self.repository / "tools" / "train_net.py"
        config = ["--config-file", str(self.config(name)), "--resume"]
        return [sys.executable, str(script), *config, *self.run_opts(name)]


def identity(plan: Plan, name: str) -> str:
    """A hash of everything that a trained model follows from: config, data, code, weights."""
    cfg = setup_config(plan.config(name), plan.run_opts(name))
    cfg.OUTPUT_DIR = ""
    digest = hashlib.sha256(cfg.dump().encode())
    digest.update(repr((plan.scenes, plan.size)).encode())
    package = Path(alignzeg.__file__).parent
    for source in _SOURCES:
        found = package.glob(source) if "*" in source else [package / source]
        for path in sorted(found):
            for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
                if file.is_file() and file.suffix in (".py", ".json", ".safetensors"):
                    digest.update(str(file.relative_to(package)).encode() + b"\0")
                    digest.update(file.read_bytes())
    for file in cfg.ALIGNZEG.PLUGINS:
        digest.update(Path(file).read_bytes())
    return digest.hexdigest()


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes a JSON file that appears in one piece."""
    draft = path.with_suffix(".tmp")
    draft.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    draft.replace(path)
