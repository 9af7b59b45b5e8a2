"""A failed training step, repeated in one process from its crash bundle."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from torch import nn

from alignzeg.data.custom import setup_custom_data
from alignzeg.engine.checkpoints.checkpoint import KEY, verify
from alignzeg.engine.checkpoints.reading import read_checkpoint
from alignzeg.engine.checkpoints.state import set_rng_state
from alignzeg.engine.failures.batches import names_in
from alignzeg.engine.failures.crash import BUNDLE, from_plain
from alignzeg.engine.failures.finite import trace
from alignzeg.engine.settings.reading import config_from_yaml


def replay_bundle(path: str, opts: Sequence[str] = ()) -> tuple[str, str]:
    """Repeats the step that a bundle holds, with KEY VALUE pairs over its config.

    Returns:
        Why the step failed then, and the first tensor that is not finite now, or nothing.

    Raises:
        ValueError: if the file is no crash bundle, or belongs to another VLM.
    """
    content = read_checkpoint(path)
    facts = content.get(BUNDLE)
    if not isinstance(facts, Mapping) or "reason" not in facts:
        raise ValueError(f"{path!r} is no crash bundle, as a failed training leaves them")
    cfg = config_from_yaml(content[KEY]["config"], opts, Path(path).parent)
    setup_custom_data(cfg)
    model = rebuild(cfg, path, content)
    return facts["reason"], replay(model, facts, cfg.MODEL.DEVICE)


def rebuild(cfg: CfgNode, path: str, content: Mapping[str, Any]) -> nn.Module:
    """The model with the weights before the failed step, in training mode."""
    model = build_model(cfg)
    verify(path, content[KEY], model)
    model.load_state_dict(content["model"])
    return model.train()


def replay(model: nn.Module, facts: Mapping[str, Any], device: str) -> str:
    """Makes the step's batches again, as `StepTrainer` does when it fails.

    Returns:
        The first tensor that is not finite, or nothing.
    """
    kind = device.partition(":")[0]
    autocast: Any = contextlib.nullcontext
    if facts["amp_dtype"]:
        dtype = getattr(torch, facts["amp_dtype"])
        autocast = functools.partial(torch.autocast, kind, dtype=dtype)
    # Models may write to the storage, and read the iteration from it.
    with EventStorage(facts["iteration"]):
        for data, rng in zip(facts["batches"], facts["rng"], strict=True):
            set_rng_state(rng)
            batch = from_plain(data)
            found = trace(
                model, batch, names_in(batch), backward=facts["backward"], autocast=autocast
            )
            if found:
                return found
    return ""
