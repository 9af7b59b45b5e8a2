"""Checkpoints that know what they were trained with, and that are whole or not there."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils import comm
from torch import nn

from alignzeg.engine.checkpoints.reading import (
    KEY,
    POINTER,
    about_in,
    check_written,
    find_newest,
    prune,
    read_checkpoint,
    require_trust,
    say_what_fits,
)
from alignzeg.engine.checkpoints.state import plain, tensor_bytes
from alignzeg.files import ATTEMPTS, atomic_write, free_bytes

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
# Room for what is not tensors, and for the archive around them.
SLACK_BYTES = 2**20


def describe(model: nn.Module, config: str) -> dict[str, Any]:
    """What a checkpoint says about itself: "version", "config", "seen", "vlm_id" and "vlm_hash".

    The last three are the names of the model's `seen` (Vocabulary) and the `id` and `hash` of its
    `vlm`; None where the model has no such thing.
    """
    seen, vlm = getattr(model, "seen", None), getattr(model, "vlm", None)
    return {
        "version": FORMAT_VERSION,
        "config": config,
        "seen": None if seen is None else list(seen.names),
        "vlm_id": None if vlm is None else str(vlm.id),
        "vlm_hash": None if vlm is None else str(vlm.hash),
    }


def verify(
    path: str, found: Mapping[str, Any], model: nn.Module, other_classes: bool = False
) -> None:
    """Refuses weights that were trained with another VLM or, unless allowed, other classes.

    Raises:
        ValueError: naming the two sides that differ and the config key that changes one of them.
    """
    here = describe(model, "")
    told = isinstance(found, Mapping) and here.keys() <= found.keys()
    if not told or not isinstance(found["seen"], (list, type(None))):
        raise ValueError(
            f"checkpoint {path!r} says too little about itself, as if it had been edited; "
            "use the original file"
        )
    if not isinstance(found["version"], int) or found["version"] > FORMAT_VERSION:
        raise ValueError(
            f"checkpoint {path!r} has format {found['version']}; this version of alignzeg reads "
            f"up to {FORMAT_VERSION}: upgrade it"
        )
    # Equal hashes are the same VLM, whatever its file is called; the id begins with the model.
    former = getattr(getattr(model, "vlm", None), "former_hash", "")
    same = found["vlm_hash"] in (here["vlm_hash"], former or here["vlm_hash"])
    models = {str(side["vlm_id"]).partition("/")[0] for side in (found, here)}
    if len(models) > 1 or (not same and found["vlm_id"] != here["vlm_id"]):
        raise ValueError(
            f"checkpoint {path!r} was trained with the VLM {found['vlm_id']!r}, the config asks "
            f"for {here['vlm_id']!r}, whose weights or preprocessing are others; set "
            "ALIGNZEG.VLM.MODEL and ALIGNZEG.VLM.WEIGHTS to match"
        )
    if not same:
        raise ValueError(
            f"checkpoint {path!r} was trained with other weights of the VLM {here['vlm_id']!r}: "
            f"their hash was {found['vlm_hash']}, here it is {here['vlm_hash']}; "
            "set ALIGNZEG.VLM.WEIGHTS to the original file, and what ImageNetVLM is made with "
            "(TEXT_WEIGHTS, TEMPLATES, RIDGE) to what it was"
        )
    if found["seen"] != here["seen"] and not other_classes:
        theirs, ours = ([str(name) for name in side["seen"] or []] for side in (found, here))
        only = [sorted(set(a) - set(b)) for a, b in ((theirs, ours), (ours, theirs))]
        what = f"only there: {only[0]}, only here: {only[1]}" if any(only) else "the order differs"
        raise ValueError(
            f"checkpoint {path!r} was trained on {len(theirs)} seen classes, the config has "
            f"{len(ours)} ({what}); DATASETS.TRAIN and ALIGNZEG.DATA.HOLD_OUT decide them"
        )


def write_archive(path: str, content: Mapping[str, Any]) -> None:
    """Writes tensors and plain values by torch.save, whole or not at all, and reads them back.

    Raises:
        OSError: if there is no room, which is looked for first, or the file could not be written.
    """
    folder = os.path.dirname(path)
    needed, free = tensor_bytes(content) + SLACK_BYTES, free_bytes(folder)
    if free < needed:
        raise OSError(
            errno.ENOSPC,
            f"no room for a checkpoint in {folder!r}: it takes {needed / 2**20:.1f} MiB and "
            f"{free / 2**20:.1f} MiB are free; free some, or set OUTPUT_DIR to another disk "
            "(ALIGNZEG.CHECKPOINT.KEEP bounds how many are kept)",
        )
    save = partial(torch.save, content)
    atomic_write(path, save, durable=True, check=check_written, attempts=ATTEMPTS)


class AlignZegCheckpointer(DetectionCheckpointer):
    """Saves everything a run is made of; refuses what does not match or cannot be trusted."""

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        config: str = "",
        strict: bool = False,
        trust_pickle: bool = False,
        keep: int = 0,
        of_rank: Callable[[], dict[str, Any]] | None = None,
        **checkpointables: Any,
    ) -> None:
        """Takes what Detectron2's checkpointer takes, and more.

        Args:
            model: may be wrapped for several processes.
            save_dir: folder to save to.
            config: the whole config as YAML text, stored in every checkpoint.
            strict: refuse a file whose weights do not cover the model exactly.
            trust_pickle: read .pkl files from anywhere, though they may run code.
            keep: numbered checkpoints to keep; 0 keeps all.
            of_rank: what every process adds under "ranks"; `save` is then to be called in all.
            checkpointables: anything else with `state_dict`.
        """
        super().__init__(model, save_dir, **checkpointables)
        self.config = config
        self.strict = strict
        self.trust_pickle = trust_pickle
        self.keep = keep
        self.of_rank = of_rank
        # Whether weights may have been trained on other classes: none of them belongs to a class.
        self.other_classes = False
        # Further entries of what a checkpoint says about itself.
        self.about: dict[str, Any] = {}
        self._path = ""

    def save(self, name: str, *, point: bool = True, **kwargs: Any) -> None:
        """Saves `<save_dir>/<name>.pth`, then points `last_checkpoint` to it.

        A resumed run starts from it unless `point` is false. Further entries are tensors and plain
        values.

        Raises:
            OSError: if the file could not be written, in all processes if `of_rank` is set. The
                checkpoints that were there, and the pointer, are as before.
        """
        if self.of_rank is None:
            if self.save_dir and self.save_to_disk:
                self._write(name, point, kwargs)
            return
        ranks = comm.gather(self.of_rank())
        problem = ""
        if self.save_dir and self.save_to_disk:
            try:
                self._write(name, point, {**kwargs, "ranks": ranks})
            except OSError as error:
                problem = error.strerror or str(error)
        problem = comm.all_gather(problem)[0]
        if problem:
            raise OSError(problem)

    def _write(self, name: str, point: bool, extra: Mapping[str, Any]) -> None:
        data = {"model": dict(self.model.state_dict())}
        data.update({key: item.state_dict() for key, item in self.checkpointables.items()})
        about = {**describe(self.model, self.config), **self.about}
        data = plain({**data, KEY: about, **extra})
        path = os.path.join(self.save_dir, f"{name}.pth")
        logger.info("saving %s", path)
        write_archive(path, data)
        if point:
            self.tag_last_checkpoint(os.path.basename(path))
            prune(self.save_dir, self.keep)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Points `last_checkpoint` to a file."""
        pointer = os.path.join(self.save_dir, POINTER)
        atomic_write(pointer, last_filename_basename, durable=True, attempts=ATTEMPTS)

    def get_checkpoint_file(self) -> str:
        """The file that `last_checkpoint` names or, if it is damaged, the newest intact one.

        The first process looks, the others follow. Empty if there is no checkpoint.

        Raises:
            ValueError: if there are checkpoints, but none of them is intact.
        """
        found: str | ValueError = ""
        if comm.is_main_process() and self.save_dir:
            try:
                found = find_newest(self.save_dir)
            except ValueError as error:
                found = error
        found = comm.all_gather(found)[0]
        if isinstance(found, ValueError):
            raise found
        return found

    def has_checkpoint(self) -> bool:
        """Whether there is an intact checkpoint; see `get_checkpoint_file`."""
        return bool(self.get_checkpoint_file())

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Loads a file after checking it against the model.

        Raises:
            ValueError: on a file that is missing or damaged, is not to be trusted, or belongs to
                another VLM, other classes or, if strict, another model.
        """
        self._path = path
        try:
            return super().load(path, *args, **kwargs)
        finally:
            # Detectron2 leaves this set when a load fails, and then refuses the next one.
            self._parsed_url_during_load = None

    def _load_file(self, filename: str) -> dict[str, Any]:
        if filename.endswith(".pkl"):
            require_trust(self._path, filename, self.trust_pickle)
        if filename.endswith(".pyth"):
            # Files of pycls; Detectron2 would load them with whatever code they hold.
            weights = read_checkpoint(filename).get("model_state", {})
            kept = {k: v for k, v in weights.items() if not k.endswith("num_batches_tracked")}
            return {"model": kept, "__author__": "pycls", "matching_heuristics": True}
        return super()._load_file(filename)

    def _torch_load(self, f: str) -> dict[str, Any]:
        return read_checkpoint(f)

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        weights = checkpoint.get("model")
        if not isinstance(weights, Mapping) or not all(isinstance(key, str) for key in weights):
            raise ValueError(
                f"checkpoint {self._path!r} holds no weights by name; use the original file"
            )
        if KEY in checkpoint:
            verify(self._path, checkpoint[KEY], self.model, self.other_classes)
        seen = about_in(checkpoint).get("seen")
        held = list(weights)  # before those of another shape are taken out of it
        incompatible = super()._load_model(checkpoint)
        misshapen = [key for key, *_ in incompatible.incorrect_shapes]
        # Of a model whose weights belong to classes, those of other classes are of no use.
        other_classes = seen not in (None, describe(self.model, "")["seen"])
        if self.other_classes and misshapen and other_classes:
            raise ValueError(
                f"checkpoint {self._path!r} was trained on other classes, and {len(misshapen)} "
                f"weights ({misshapen[0]}, ...) are of another shape here; start from one of the "
                "same classes"
            )
        if self.strict:
            wrong = {
                "missing": incompatible.missing_keys,
                "unknown to the model": incompatible.unexpected_keys,
                "of another shape": misshapen,
            }
            found = [f"{len(keys)} {what} ({keys[0]}, ...)" for what, keys in wrong.items() if keys]
            if found:
                raise ValueError(
                    f"the weights in {self._path!r} do not fit the model of this config: "
                    f"{'; '.join(found)}; use the config that they were trained with"
                )
        others = {*incompatible.missing_keys, *misshapen}
        say_what_fits(self._path, held, list(self.model.state_dict()), others)
        return incompatible
