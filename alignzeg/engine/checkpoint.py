"""Detectron2 checkpoints that know which VLM and which classes they were trained with."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from torch import nn

FORMAT_VERSION = 1
KEY = "alignzeg"
# What reading a file that is cut short, overwritten or of another kind has been seen to raise.
DAMAGED = (OSError, EOFError, RuntimeError, LookupError, TypeError, ValueError, AttributeError)


def describe(model: nn.Module, config: str) -> dict[str, Any]:
    """What a checkpoint says about itself, beside the weights.

    Args:
        model: its attributes `seen` (Vocabulary) and `vlm` (`id`, `hash`) are read if it has them.
        config: the whole config as YAML text.

    Returns:
        "version", "config", "seen" (names), "vlm_id", "vlm_hash"; the last three are None where
        the model has no such thing.
    """
    seen, vlm = getattr(model, "seen", None), getattr(model, "vlm", None)
    return {
        "version": FORMAT_VERSION,
        "config": config,
        "seen": None if seen is None else list(seen.names),
        "vlm_id": None if vlm is None else str(vlm.id),
        "vlm_hash": None if vlm is None else str(vlm.hash),
    }


def read_checkpoint(path: str) -> dict[str, Any]:
    """Reads a checkpoint file to the CPU without running any code that is in it.

    Raises:
        ValueError: if the file is missing, damaged, or holds more than tensors and plain values.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise ValueError(f"checkpoint {path!r} does not exist") from error
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"checkpoint {path!r} is damaged, or holds more than tensors and plain values, which "
            "is not loaded because it could run code"
        ) from error
    except DAMAGED as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(
            f"checkpoint {path!r} is damaged, or no checkpoint at all: "
            f"{type(error).__name__} {reason}"
        ) from error


def verify(path: str, found: Mapping[str, Any], model: nn.Module) -> None:
    """Refuses weights that were trained with another VLM or other classes than the model has.

    Args:
        path: for the message.
        found: what `describe` put into the file.
        model: the model that the weights are for.

    Raises:
        ValueError: naming the two sides that differ and the config key that changes one of them.
    """
    if found["version"] > FORMAT_VERSION:
        raise ValueError(
            f"checkpoint {path!r} has format {found['version']}; this version of alignzeg reads "
            f"up to {FORMAT_VERSION}: upgrade it"
        )
    here = describe(model, "")
    if found["vlm_id"] != here["vlm_id"]:
        raise ValueError(
            f"checkpoint {path!r} was trained with the VLM {found['vlm_id']!r}, the config asks "
            f"for {here['vlm_id']!r}; set ALIGNZEG.VLM.MODEL and ALIGNZEG.VLM.WEIGHTS to match"
        )
    if found["vlm_hash"] != here["vlm_hash"]:
        raise ValueError(
            f"checkpoint {path!r} was trained with other weights of the VLM {here['vlm_id']!r}: "
            f"their hash was {found['vlm_hash']}, here it is {here['vlm_hash']}; "
            "set ALIGNZEG.VLM.WEIGHTS to the original file"
        )
    if found["seen"] != here["seen"]:
        theirs, ours = found["seen"] or [], here["seen"] or []
        only = [sorted(set(a) - set(b)) for a, b in ((theirs, ours), (ours, theirs))]
        what = f"only there: {only[0]}, only here: {only[1]}" if any(only) else "the order differs"
        raise ValueError(
            f"checkpoint {path!r} was trained on {len(theirs)} seen classes, the config has "
            f"{len(ours)} ({what}); DATASETS.TRAIN and ALIGNZEG.DATA.HOLD_OUT decide them"
        )


class AlignZegCheckpointer(DetectionCheckpointer):
    """Saves the config, the seen classes and the VLM's identity; refuses what does not match."""

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        config: str = "",
        strict: bool = False,
        **checkpointables: Any,
    ) -> None:
        """Takes what Detectron2's checkpointer takes, and two things more.

        Args:
            model: may be wrapped for several processes.
            save_dir: folder to save to.
            config: the whole config as YAML text, stored in every checkpoint.
            strict: refuse a file whose weights do not cover the model exactly, as in evaluation.
            checkpointables: anything else with `state_dict`.
        """
        super().__init__(model, save_dir, **checkpointables)
        self.config = config
        self.strict = strict
        self._path = ""

    def save(self, name: str, **kwargs: Any) -> None:
        """Saves `<save_dir>/<name>.pth` and points `last_checkpoint` to it."""
        super().save(name, **{KEY: describe(self.model, self.config), **kwargs})

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Loads a file after checking it against the model.

        Raises:
            ValueError: on a file that is missing or damaged or belongs to another VLM, other
                classes or, if strict, another model.
        """
        self._path = path
        try:
            return super().load(path, *args, **kwargs)
        finally:
            # Detectron2 leaves this set when a load fails, and then refuses the next one.
            self._parsed_url_during_load = None

    def _torch_load(self, f: str) -> dict[str, Any]:
        return read_checkpoint(f)

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        if KEY in checkpoint:
            verify(self._path, checkpoint[KEY], self.model)
        incompatible = super()._load_model(checkpoint)
        if self.strict:
            wrong = {
                "missing": incompatible.missing_keys,
                "unknown to the model": incompatible.unexpected_keys,
                "of another shape": [key for key, *_ in incompatible.incorrect_shapes],
            }
            found = [f"{len(keys)} {what} ({keys[0]}, ...)" for what, keys in wrong.items() if keys]
            if found:
                raise ValueError(
                    f"the weights in {self._path!r} do not fit the model of this config: "
                    f"{'; '.join(found)}; use the config that they were trained with"
                )
        return incompatible
