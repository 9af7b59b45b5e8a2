"""What a failed step leaves behind, so that one process can fail again in the same way."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from alignzeg.engine.checkpoints.checkpoint import KEY, describe, write_archive
from alignzeg.engine.checkpoints.state import PRIMITIVES, rng_state
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
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if isinstance(value, PRIMITIVES):
        return value
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        items = [to_plain(item) for item in value]
        return tuple(items) if isinstance(value, tuple) else items
    kind = type(value).__name__
    if dataclasses.is_dataclass(value) and _KINDS.get(kind) is type(value):
        fields = {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {_KIND: kind, **fields}
    return {_LOST: kind}


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


@dataclasses.dataclass(frozen=True)
class CrashWriter:
    """Writes the bundle of a failed step.

    Attributes:
        folder: where to.
        config: the whole config as YAML text.
    """

    folder: str
    config: str

    def __call__(self, model: nn.Module, batches: Sequence[Batch], facts: Mapping[str, Any]) -> str:
        """Writes a bundle, and its facts again as a text file beside it.

        The model is not wrapped and has the weights before the step. The facts are plain values;
        "iteration" and "process" name the file.

        Returns:
            The bundle's path; empty if it could not be written, which is logged: the failure itself
            is what the user must see.
        """
        name = f"iteration_{facts['iteration']:07d}_process_{facts['process']}"
        path = os.path.join(self.folder, f"{name}.pth")
        content = {
            BUNDLE: {
                **facts,
                "batches": [to_plain(batch.data) for batch in batches],
                "rng": [batch.rng for batch in batches],
            },
            "model": model.state_dict(),
            KEY: describe(model, self.config),
        }
        try:
            os.makedirs(self.folder, exist_ok=True)
            write_archive(path, content)
            text = json.dumps(dict(facts), indent=1)
            atomic_write(path.removesuffix("pth") + "json", text, durable=True)
        except OSError as error:
            logger.error("no crash bundle: %s", error)
            return ""
        return path
