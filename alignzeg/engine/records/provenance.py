"""What a run was made of: `provenance.json` in its folder, one entry for each time it was started.

    {"format": 1, "history": [{"started": ..., "action": "train", "iteration": 0, "command": [...],
     "seed": ..., "processes": ..., "config": {...}, "environment": {...}, "git": {...},
     "plugins": {...}, "weights": {...}, "vlm": {...}, "data": {...}}, ...]}

Entries are added and never changed. `alignzeg.studies.divergence` reads them.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import itertools
import json
import logging
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
import yaml
from detectron2.config import CfgNode
from detectron2.utils import comm
from torch import nn

import alignzeg
from alignzeg.data.fingerprint import fingerprint
from alignzeg.engine.checkpoints.state import plain, weights_hash
from alignzeg.files import ATTEMPTS, atomic_write, file_hash

logger = logging.getLogger(__name__)

# Keys of ALIGNZEG.TEST that change no answer.
_NO_ANSWER = ("MEMORY_MIB", "RECALL", "SAVE_PER_IMAGE")

FILE_NAME = "provenance.json"
FORMAT = 1
PACKAGE = Path(alignzeg.__file__).resolve().parent
# Packages whose version can change a number.
VERSIONED = (
    *("torch", "torchvision", "numpy", "scipy", "pillow", "opencv-python", "open_clip_torch"),
    "fvcore",
)
_GIT_SECONDS = 20


def record_run(
    cfg: CfgNode,
    model: nn.Module,
    *,
    action: str,
    iteration: int = 0,
    resumed: bool = False,
    fingerprints: Mapping[str, Any] | None = None,
) -> None:
    """Adds an entry to OUTPUT_DIR's `provenance.json`; to be called before the first step.

    `iteration` is the first to come; `resumed` says that the run goes on from a checkpoint of its
    own; `fingerprints` are as for `describe_run`. The first process writes.

    Raises:
        ValueError: if a file of a data set cannot be read.
        OSError: if the file cannot be written.
    """
    if comm.is_main_process():
        entry = describe_run(cfg, model, fingerprints)
        entry |= {"action": action, "iteration": int(iteration), "resumed": bool(resumed)}
        append_entry(Path(cfg.OUTPUT_DIR), entry)


def describe_run(
    cfg: CfgNode, model: nn.Module, fingerprints: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Everything about a run that is known before its first step, as plain values.

    `fingerprints` are those of data sets that have been read already.
    """
    names = dict.fromkeys([*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST])
    known = fingerprints or {}
    found = {**known, **fingerprint(name for name in names if name not in known)}
    vlm = getattr(getattr(model, "module", model), "vlm", None)
    return {
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": [*sys.argv],
        "folder": os.getcwd(),
        "seed": int(cfg.SEED),
        "processes": comm.get_world_size(),
        "config": yaml.safe_load(cfg.dump()),
        "environment": describe_environment(cfg.MODEL.DEVICE),
        **describe_code(),
        "plugins": {Path(file).name: file_hash(file) for file in cfg.ALIGNZEG.PLUGINS},
        "weights": describe_weights(cfg.MODEL.WEIGHTS),
        "vlm": None if vlm is None else {"id": str(vlm.id), "hash": str(vlm.hash)},
        "data": {name: found[name] for name in names},
    }


@functools.cache
def describe_code() -> dict[str, Any]:
    """The source that this process runs: what was there when it first asked."""
    return {"git": describe_git(PACKAGE), "source": hash_sources(PACKAGE)}


def describe_environment(device: str) -> dict[str, Any]:
    """Versions and hardware that can change a number, none of which names a person or a place."""
    found: dict[str, Any] = {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        **{name: _version(name) for name in VERSIONED},
        "detectron2": _version("detectron2") or _version("sal-detectron2"),
        "threads": torch.get_num_threads(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }
    if device.startswith("cuda") and torch.cuda.is_available():
        found |= {
            "gpu": torch.cuda.get_device_name(),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "tf32": torch.backends.cuda.matmul.allow_tf32,
            "benchmark": torch.backends.cudnn.benchmark,
        }
    return found


def _version(package: str) -> str | None:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(package)
    return None


def describe_git(folder: Path) -> dict[str, Any] | None:
    """Commit of the source, whether tracked files differ ("dirty"), and a hash of the "diff".

    The hash is None if they do not; all is where the source is in no git repository.
    """
    # A package installed below somebody's repository is not part of it.
    if _git(folder, "ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None:
        return None
    difference = _git(folder, "diff", "HEAD") or b""
    return {
        "commit": commit.decode().strip(),
        "dirty": bool(difference),
        "diff": hashlib.sha256(difference).hexdigest() if difference else None,
    }


def _git(folder: Path, *words: str) -> bytes | None:
    """What git says; None if it fails or is not installed."""
    command = ["git", "-C", str(folder), *words]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(command, capture_output=True, check=True, timeout=_GIT_SECONDS).stdout
    return None


def hash_sources(folder: Path) -> str:
    """One hash over all Python files below a folder, by relative name."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(f"{path.relative_to(folder).as_posix()}\0{file_hash(path)}\n".encode())
    return digest.hexdigest()


def made_by(cfg: CfgNode, model: nn.Module) -> dict[str, Any]:
    """What decides the answers of a model: what an evaluation is an evaluation of.

    Returns:
        "weights": see `weights_hash`; "settings": config keys of inference and their values.
    """
    settings = {
        f"ALIGNZEG.{section}.{key}": value
        for section in ("TEST", "CORRECTOR")
        for key, value in plain(cfg.ALIGNZEG[section]).items()
        if key not in _NO_ANSWER
    }
    settings |= {f"INPUT.{key}": cfg.INPUT[key] for key in ("MIN_SIZE_TEST", "MAX_SIZE_TEST")}
    settings |= {f"TEST.AUG.{key}": value for key, value in plain(cfg.TEST.AUG).items()}
    whole = getattr(model, "module", model)
    return {"weights": weights_hash(whole.state_dict()), "settings": settings}


def describe_weights(path: str) -> dict[str, Any] | None:
    """The file that MODEL.WEIGHTS names; None if there is none, no hash if it is not a file."""
    if not path:
        return None
    return {"path": path, "sha256": file_hash(path) if os.path.isfile(path) else None}


def append_entry(folder: Path, entry: Mapping[str, Any]) -> None:
    """Adds an entry to the history of a folder, in one step."""
    path = folder / FILE_NAME
    try:
        history = read_history(folder)
    except ValueError as error:
        names = (Path(f"{path}.damaged{number}") for number in itertools.count(1))
        aside = path.replace(next(name for name in names if not name.exists()))
        logger.warning("%s; it is kept as %s and a new one is begun", error, aside.name)
        history = []
    text = json.dumps({"format": FORMAT, "history": [*history, entry]}, indent=1, default=str)
    atomic_write(path, f"{text}\n", durable=True, attempts=ATTEMPTS)


def read_history(folder: str | Path) -> list[dict[str, Any]]:
    """All entries of a folder, the oldest first; none if it has no such file.

    Raises:
        ValueError: if the file is damaged or of a newer format.
    """
    path = Path(folder) / FILE_NAME
    if not path.exists():
        return []
    try:
        content = json.loads(path.read_text("utf-8"))
        history, version = content["history"], content["format"]
        fine = isinstance(history, list) and all(isinstance(entry, dict) for entry in history)
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ValueError(f"cannot read {path}: {type(error).__name__} {error}") from error
    if not fine or not isinstance(version, int) or version > FORMAT:
        raise ValueError(
            f"{path} has format {version!r}, not {FORMAT}; use the version that wrote it"
        )
    return history
