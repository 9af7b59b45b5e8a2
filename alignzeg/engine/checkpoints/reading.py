"""Checkpoints on disk: reading without running their code, finding the newest intact one."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import pickle
import re
import time
import zipfile
import zlib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from alignzeg.files import leftovers
from alignzeg.modeling.tensor_files import is_safetensors

logger = logging.getLogger(__name__)

# What reading a file that is cut short, overwritten or of another kind has been seen to raise.
DAMAGED = (OSError, EOFError, RuntimeError, LookupError, TypeError, ValueError, AttributeError)
# The same of a zip archive.
_BAD_ARCHIVE = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError)
# Folders, joined as in PATH, whose .pkl files are trusted.
TRUSTED_VARIABLE = "ALIGNZEG_TRUSTED"
# Addresses of Detectron2's own model zoo.
TRUSTED_ADDRESSES = ("detectron2://", "https://dl.fbaipublicfiles.com/detectron2/")
# Holds the name of the last checkpoint.
POINTER = "last_checkpoint"
# What a checkpoint says of itself.
KEY = "alignzeg"
# Archives whose checksums agreed, by what a change of them would change: a resume looks at the last
# checkpoint several times. What was written in the last seconds is always read again, as the clocks
# of file systems are coarse.
_intact: set[tuple[str, int, int, int]] = set()
_COARSE_S = 3
_NUMBERED = re.compile(r"model_(\d{7,})\.pth")
_GIVE = "give another, such as the model_final.pth that alignzeg train writes"


def read_checkpoint(path: str, mapped: bool = False) -> dict[str, Any]:
    """Reads a file of torch.save, or a .safetensors file, to the CPU without running code in it.

    If `mapped`, tensors stay in the file until they are looked at, for those who want other things.

    Raises:
        ValueError: if the file is missing, damaged, or holds more than tensors and plain values.
    """
    if not os.path.exists(path):
        raise ValueError(f"checkpoint {path!r} does not exist; {_GIVE}")
    # torch.load does not look at the checksums.
    problem = _problem(path) if zipfile.is_zipfile(path) else ""
    if problem:
        raise ValueError(f"checkpoint {path!r} {problem}; use another one")
    try:
        if is_safetensors(path):
            with safe_open(path, framework="pt") as file:
                about = json.loads((file.metadata() or {}).get(KEY, "null"))
                weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no dict)
            return {"model": weights} if about is None else {"model": weights, KEY: about}
        loaded = _load(path, mapped)
    except (pickle.UnpicklingError, SafetensorError) as error:
        raise ValueError(
            f"checkpoint {path!r} is damaged, or holds more than tensors and plain values, which "
            f"is not loaded because it could run code; {_GIVE}"
        ) from error
    except DAMAGED as error:
        what = f"{type(error).__name__} {str(error).strip()}".strip().split("\n")[0]
        raise ValueError(
            f"checkpoint {path!r} is damaged, or no checkpoint at all: {what}; {_GIVE}"
        ) from error
    if not isinstance(loaded, dict):
        raise ValueError(
            f"checkpoint {path!r} holds a {type(loaded).__name__} instead of named entries; "
            "use a file that this program or torch.save of a state_dict has written"
        )
    return loaded


def _load(path: str, mapped: bool) -> Any:
    if mapped and not path.endswith(".safetensors"):
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            # Some network file systems cannot map a file; files of old versions of PyTorch neither.
            if "mmap" not in str(error):
                raise
    # Not by its path: since torch 2.14 the name decides how that is read.
    with open(path, "rb") as stream:
        return torch.load(stream, map_location="cpu", weights_only=True)


def read_about(path: str) -> dict[str, Any]:
    """What a checkpoint of this package says of itself, see `checkpoint.describe`.

    Raises:
        ValueError: as `read_checkpoint`, or if the file says too little.
    """
    about = dict(about_in(read_checkpoint(path, mapped=True)))
    kinds = {"config": str, "seen": list}
    told = all(isinstance(about.get(key), kind) and about[key] for key, kind in kinds.items())
    if not told or not {"version", "vlm_id", "vlm_hash"} <= about.keys():
        raise ValueError(
            f"{path!r} is not a checkpoint of alignzeg: it does not say which config and classes "
            "it was trained with"
        )
    return about


def about_in(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the content of a checkpoint says of itself; nothing if that is of another kind."""
    about = content.get(KEY)
    return about if isinstance(about, Mapping) else {}


def seen_names(content: Mapping[str, Any]) -> list[str]:
    """The seen classes that the content of a checkpoint names; none if it does not say."""
    names = about_in(content).get("seen")
    return [str(name) for name in names] if isinstance(names, list) else []


def damage(path: str) -> str:
    """What is wrong with a zip archive, such as torch.save writes; empty if its checksums agree.

    Raises:
        OSError: if the file cannot be read at all.
    """
    found = os.stat(path)
    key = (os.path.abspath(path), found.st_ino, found.st_size, found.st_mtime_ns)
    if key in _intact:
        return ""
    try:
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()
    except _BAD_ARCHIVE as error:
        return f"{type(error).__name__}: {error}"
    if bad is not None:
        return f"the checksum of its part {bad!r} is wrong"
    if time.time() - found.st_mtime > _COARSE_S:
        _intact.add(key)
    return ""


def check_written(path: str) -> None:
    """Refuses a file that does not read back as a checkpoint of tensors and plain values.

    Raises:
        OSError: EIO, with the reason.
    """
    reason = damage(path)
    if not reason:
        try:
            _load(path, mapped=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
            reason = str(error).strip().split("\n")[0]
    if reason:
        raise OSError(errno.EIO, f"it does not read back as it was written ({reason})")


def find_newest(folder: str) -> str:
    """The checkpoint that a run goes on from; empty if there is none at all.

    It is the one that `last_checkpoint` names or, if that is damaged, the intact one of the latest
    iteration.

    Raises:
        ValueError: if there are checkpoints, but none is intact.
    """
    named = _pointed(os.path.join(folder, POINTER))
    reason = _problem(named) if named else ""
    if named and not reason:
        return named
    if named:
        logger.warning("%s, the last checkpoint, %s; looking for another", named, reason)
    files = [str(path) for path in Path(folder).glob("model_*.pth")]
    for file in sorted(files, key=_iteration, reverse=True):
        reason = _problem(file)
        if not reason:
            logger.warning("using %s, at iteration %d", file, _iteration(file))
            return file
        logger.warning("%s %s", file, reason)
    if files:
        raise ValueError(
            f"none of the {len(files)} checkpoints in {folder!r} is intact; restore one, or start "
            "anew without --resume in another OUTPUT_DIR"
        )
    return ""


def _pointed(pointer: str) -> str:
    try:
        name = Path(pointer).read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""
    # A name only: a torn or forged pointer must not lead elsewhere.
    return os.path.join(os.path.dirname(pointer), name) if name == os.path.basename(name) else ""


def _problem(path: str) -> str:
    try:
        reason = damage(path)
    except OSError as error:
        return f"cannot be read ({error.strerror or error})"
    return f"is damaged ({reason})" if reason else ""


def _iteration(path: str) -> int:
    """The iteration a checkpoint was saved at; -1 if it does not say."""
    match = _NUMBERED.fullmatch(os.path.basename(path))
    if match:
        return int(match.group(1))
    with contextlib.suppress(*DAMAGED, pickle.UnpicklingError):
        return int(_load(path, mapped=True)["iteration"])
    return -1


def prune(folder: str, keep: int) -> None:
    """Deletes what interrupted saves left, and all but the newest numbered checkpoints.

    To be called just after a save: numbers above the one saved last are left alone. 0 keeps all.
    """
    for left in leftovers(folder, "model_*.pth"):
        left.unlink(missing_ok=True)
    found = [path for path in Path(folder).iterdir() if _NUMBERED.fullmatch(path.name)]
    if keep and found:
        numbered = sorted(found, key=lambda path: int(path.stem.removeprefix("model_")))
        newest = numbered.index(max(numbered, key=lambda path: path.stat().st_mtime))
        for path in numbered[: newest + 1][:-keep]:
            path.unlink(missing_ok=True)


def require_trust(address: str, local: str, trust: bool = False) -> None:
    """Refuses a pickle, which may run code when it is read, unless it is trusted.

    Trusted are addresses of Detectron2's model zoo, local files below a folder of ALIGNZEG_TRUSTED,
    and what the user says to trust on the command line.

    Raises:
        ValueError: if it is not.
    """
    names = filter(None, os.environ.get(TRUSTED_VARIABLE, "").split(os.pathsep))
    folders = [Path(name).expanduser().resolve() for name in names]
    trust = trust or address.startswith(TRUSTED_ADDRESSES)
    if not trust and not any(map(Path(local).resolve().is_relative_to, folders)):
        raise ValueError(
            f"{address!r} is a pickle, which can run any code when it is read; if you trust where "
            f"it comes from, add --trust-pickle, or its folder to {TRUSTED_VARIABLE}"
        )


def say_what_fits(
    path: str,
    given: Sequence[str],
    wanted: Sequence[str],
    lacking: Collection[str],
) -> None:
    """Logs how much of a model a file covers, unless that is all.

    All are names of weights; `lacking` are those that the file has not, or of another shape.

    Raises:
        ValueError: if it covers nothing at all.
    """
    lost = [name for name in wanted if name in lacking]
    if wanted and len(lost) == len(wanted):
        held, needed = (", ".join(names[:2]) for names in (given, wanted))
        raise ValueError(
            f"nothing of {path!r} fits the model of this config: it holds {held}, ... and the "
            f"model has {needed}, ...; give a checkpoint of this model, or weights of its image "
            "encoder"
        )
    if lost:
        logger.warning(
            "%s: %d of %d tensors of the model are loaded, the others (%s, ...) start anew",
            *(path, len(wanted) - len(lost), len(wanted), lost[0]),
        )
