"""What a failed step leaves behind, so that one process can fail again in the same way."""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from torch import nn

from alignzeg.config.reading import config_from_yaml
from alignzeg.data.custom import setup_custom_data
from alignzeg.engine.checkpoints.checkpoint import KEY, describe, verify, write_archive
from alignzeg.engine.checkpoints.reading import read_checkpoint
from alignzeg.engine.checkpoints.state import plain, rng_state, set_rng_state
from alignzeg.engine.failures.finite import names_in, trace
from alignzeg.files import atomic_write
from alignzeg.structures import Targets, Vocabulary

logger = logging.getLogger(__name__)

BUNDLE = "crash_bundle"
# What a batch may hold beside tensors and plain values.
_KINDS = {"Targets": Targets, "Vocabulary": Vocabulary}
_KIND, _LOST = "__kind__", "__lost__"


@dataclasses.dataclass(frozen=True)
class Batch:
    """A batch, and the random generators before its forward pass."""

    data: Any
    rng: dict[str, Any] = dataclasses.field(default_factory=rng_state)


def to_plain(value: Any) -> Any:
    """A batch as tensors and plain values; what cannot be kept leaves its type's name."""
    return plain(value, other=_kept)


def _kept(value: Any) -> dict[str, Any]:
    kind = type(value).__name__
    if _KINDS.get(kind) is not type(value):
        return {_LOST: kind}
    names = [field.name for field in dataclasses.fields(_KINDS[kind])]
    return {_KIND: kind, **{name: to_plain(getattr(value, name)) for name in names}}


def from_plain(value: Any) -> Any:
    """The batch that `to_plain` was given.

    Raises:
        ValueError: if a part of it could not be kept.
    """
    if isinstance(value, Mapping):
        if _LOST in value:
            raise ValueError(
                f"the batch held a {value[_LOST]}, which a crash bundle cannot keep; batches of "
                "tensors, plain values, Targets and Vocabulary can be replayed"
            )
        items = {key: from_plain(item) for key, item in value.items() if key != _KIND}
        return _KINDS[value[_KIND]](**items) if _KIND in value else items
    if isinstance(value, (list, tuple)):
        return type(value)(map(from_plain, value))
    return value


def write_bundle(
    folder: str, config: str, model: nn.Module, batches: Sequence[Batch], facts: Mapping[str, Any]
) -> str:
    """Writes the bundle of a failed step, and its facts as a text file beside it; returns its path.

    The config is YAML text. The model is not wrapped and has the weights before the step. The facts
    are plain values; "iteration" and "process" name the file. The path is empty if it could not be
    written, which is logged: the failure itself is what the user must see.
    """
    name = f"iteration_{facts['iteration']:07d}_process_{facts['process']}"
    path = os.path.join(folder, f"{name}.pth")
    step = {
        "batches": [to_plain(batch.data) for batch in batches],
        "rng": [batch.rng for batch in batches],
    }
    about = describe(model, config)
    content = {BUNDLE: {**facts, **step}, "model": model.state_dict(), KEY: about}
    try:
        os.makedirs(folder, exist_ok=True)
        write_archive(path, content)
        text = json.dumps(dict(facts), indent=1)
        atomic_write(path.removesuffix("pth") + "json", text, durable=True)
    except OSError as error:
        logger.error("no crash bundle: %s", error)
        return ""
    return path


def trace_batches(
    model: nn.Module, batches: Iterable[Batch], *, backward: bool, autocast: Callable[[], Any]
) -> str:
    """Computes the batches of a step again, see `trace`; the random generators do not come back."""
    for batch in batches:
        set_rng_state(batch.rng)
        names = names_in(batch.data)
        if found := trace(model, batch.data, names, backward=backward, autocast=autocast):
            return found
    return ""


def replay_bundle(path: str, opts: Sequence[str] = (), **allowed: Any) -> tuple[str, str]:
    """Repeats the step that a bundle holds in one process, with KEY VALUE pairs over its config.

    What is `allowed` is said by `plugins` and `trust_code`, see `config_from_yaml`.

    Returns:
        Why the step failed then, and the first tensor that is not finite now, or nothing.

    Raises:
        ValueError: if the file is no crash bundle, or belongs to another VLM.
    """
    content = read_checkpoint(path)
    facts = content.get(BUNDLE)
    if not isinstance(facts, Mapping) or "reason" not in facts:
        raise ValueError(f"{path!r} is no crash bundle, as a failed training leaves them")
    cfg = config_from_yaml(content[KEY]["config"], opts, Path(path).parent, **allowed)
    setup_custom_data(cfg)
    # With the weights before the failed step.
    model = build_model(cfg)
    verify(path, content[KEY], model)
    model.load_state_dict(content["model"])
    kind, name = cfg.MODEL.DEVICE.partition(":")[0], facts["amp_dtype"]
    dtype = getattr(torch, name) if name else None
    autocast = functools.partial(torch.autocast, kind, dtype=dtype, enabled=dtype is not None)
    pairs = zip(facts["batches"], facts["rng"], strict=True)
    batches = (Batch(from_plain(data), rng) for data, rng in pairs)
    # Models may write to the storage, and read the iteration from it.
    with EventStorage(facts["iteration"]):
        now = trace_batches(model.train(), batches, backward=facts["backward"], autocast=autocast)
    return facts["reason"], now
