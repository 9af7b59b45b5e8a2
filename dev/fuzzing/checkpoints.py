"""Damaged checkpoints, and pickles that would run code."""

from __future__ import annotations

import os
import pickle
import random
from pathlib import Path
from typing import Any

import torch
import yaml

from fuzzing.common import COMMAND, SMALL, TRAIN, VALUES, Case, Source, damage_bytes, nested


class _Touch:
    """Unpickled carelessly, makes a file."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("hacked",)


def damaged_state(loaded: dict[str, Any], rng: random.Random) -> str:
    """Changes one entry somewhere in a checkpoint; returns what was done."""
    node: Any = loaded
    trail = []
    while isinstance(node, dict) and node and (not trail or rng.random() < 0.75):
        parent, key = node, rng.choice(list(node))
        trail.append(str(key))
        node = node[key]
    action = rng.randrange(6)
    if action == 0:
        del parent[key]
    elif action == 1:
        parent[rng.choice((0, "other", "model"))] = parent.pop(key)
    elif action == 2 and isinstance(node, torch.Tensor):
        parent[key] = node.flatten()[:1] if node.numel() else torch.zeros(3)
    elif action == 3 and isinstance(node, torch.Tensor) and node.is_floating_point():
        parent[key] = torch.full_like(node, float("nan"))
    elif action == 4 and isinstance(node, str):
        parent[key] = damage_bytes(node.encode(), rng).decode(errors="replace")
    else:
        parent[key] = rng.choice((*VALUES[:25], torch.zeros(2), torch.tensor(5), [], {}))
    return f"{'.'.join(trail)} action {action}"


def checkpoint_case(source: Source, folder: Path, rng: random.Random) -> Case:
    """A damaged checkpoint that is evaluated, used for a prediction, loaded, or resumed from."""
    output = folder / "output"
    output.mkdir()
    path = output / "model_0000000.pth"
    how = rng.choice(("bytes", "state", "state", "pickle", "pointer"))
    what = how
    content = source.checkpoint.read_bytes()
    if how == "bytes":
        path.write_bytes(damage_bytes(content, rng))
    elif how == "state":
        loaded = torch.load(source.checkpoint, weights_only=True)
        what = damaged_state(loaded, rng)
        torch.save(loaded, path)
    elif how == "pickle":
        evil = {"model": {}, "x": _Touch()}
        path.write_bytes(pickle.dumps(evil))
        if rng.random() < 0.5:
            torch.save(evil, path)
    else:
        path.write_bytes(content)
    pointer = b"model_0000000.pth"
    (output / "last_checkpoint").write_bytes(
        damage_bytes(pointer, rng) if how == "pointer" else pointer
    )
    (folder / "config.yaml").write_text(
        yaml.safe_dump({"_BASE_": str(source.config), **nested({**SMALL, "SOLVER.MAX_ITER": 2})})
    )
    train = ("--config-file", "config.yaml")
    use = "resume" if how == "pointer" else rng.choice(("eval", "predict", "resume", "load"))
    if use == "predict":
        argv: tuple[str, ...] = ("predict", "--weights", str(path), "--classes", "grass, red star")
        return Case("checkpoint", f"{use} {what}", COMMAND, (*argv, str(source.image)), source.data)
    tail = {"eval": ("--eval-only", "MODEL.WEIGHTS", str(path)), "resume": ("--resume",)}
    elsewhere = ("MODEL.WEIGHTS", str(path), "OUTPUT_DIR", str(folder / "trained"))
    argv = (*train, *tail.get(use, elsewhere))
    return Case("checkpoint", f"{use} {what}", TRAIN, argv, source.data)
