"""Named tensors out of any file that people keep weights in, without running what it holds.

Read are safetensors, what `torch.save` wrote (a state_dict, or a checkpoint with one in it) and
TorchScript archives, of which the tensors alone are taken: their code is not even loaded.
"""

from __future__ import annotations

import argparse
import collections
import os
import pickle
import re
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

# Where checkpoints of the usual training programs keep their state_dict.
_HOLDERS = (
    *("state_dict_ema", "model_ema", "state_dict"),
    *("model_state_dict", "model", "module"),
)
# Harmless things that checkpoints hold beside tensors, which `weights_only` does not know.
_HARMLESS: tuple[Any, ...] = (
    argparse.Namespace,
    np.dtype,
    # What NumPy unpickles a scalar by: in NumPy 2 its module has another name.
    np.float64(0).__reduce__()[0],
    *(type(np.dtype(code)) for code in "fdilqB?"),
)
_STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """The named tensors of a file, on the CPU, in the order in which they are stored.

    Raises:
        ValueError: if it holds no named tensors.
        Exception: what Python, PyTorch and safetensors raise on a damaged or foreign file; see
            `alignzeg.modeling.pretrained.UNREADABLE`.
    """
    path = Path(path)
    if is_safetensors(path):
        return load_file(path)
    if is_torchscript(path):
        return _torchscript_tensors(path)
    try:
        # Not by its path: since torch 2.14 the name decides how that is read.
        with path.open("rb") as file, torch.serialization.safe_globals(list(_HARMLESS)):
            loaded = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        with path.open("rb") as stream:
            raise ValueError(_refused(str(error), stream.read(30))) from error
    return _state_dict(loaded)


def is_torchscript(path: str | Path) -> bool:
    """Whether a file is an archive of `torch.jit.save`, such as OpenAI's of CLIP."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(_inner(name) == "constants.pkl" for name in archive.namelist())


def under_prefix(state: Mapping[str, Tensor], wanted: Collection[str]) -> dict[str, Tensor]:
    """The same tensors without what wrappers put before the names, such as "module.".

    Names that do not begin with it, such as those of a loss beside the network, stay as they are.
    """
    counts = collections.Counter({"": 0})
    for name in state:
        parts = name.split(".")
        for place in range(len(parts)):
            if ".".join(parts[place:]) in wanted:
                counts[".".join(parts[:place]) + "." * bool(place)] += 1
    head, most = counts.most_common(1)[0]
    if list(counts.values()).count(most) > 1:  # such as a teacher and a student
        return dict(state)
    return {name.removeprefix(head): value for name, value in state.items()}


def differences(given: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str:
    """Which names lack, which are too many and whose shape differs, or nothing if all fit."""
    lacking = [name for name in wanted if name not in given]
    extra = [name for name in given if name not in wanted]
    other = [
        f"{name} {tuple(given[name].shape)} instead of {tuple(value.shape)}"
        for name, value in wanted.items()
        if name in given and given[name].shape != value.shape
    ]
    parts = {"lacking": lacking, "too many": extra, "of another shape": other}
    return "; ".join(f"{what}: {_few(names)}" for what, names in parts.items() if names)


def _few(names: list[str], count: int = 3) -> str:
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more


def _refused(message: str, start: bytes) -> str:
    """PyTorch's long advice as one clause; the name of what was refused is in it."""
    for word in ("GLOBAL ", "Unsupported global: GLOBAL "):
        if word in message:
            name = message.split(word, 1)[1].split()[0].rstrip(".,")
            return f"it holds the Python object {name}, which is not read: save its state_dict"
    if start.startswith(b"version https://git-lfs"):
        return "it is the pointer that Git LFS keeps in its place: git lfs pull fetches the file"
    return f"it is no file of torch.save or safetensors; it begins with {start[:20]!r}"


def is_safetensors(path: str | Path) -> bool:
    """Whether the content of a file is of safetensors, whatever its name says."""
    with open(path, "rb") as stream:
        start = stream.read(9)
        size = stream.seek(0, os.SEEK_END)
    return start[8:] == b"{" and int.from_bytes(start[:8], "little") <= size


def _state_dict(loaded: Any) -> dict[str, Tensor]:
    """The tensors of a state_dict, wherever a checkpoint keeps it."""
    for _ in range(3):
        if not isinstance(loaded, Mapping):
            break
        holder = next((name for name in _HOLDERS if isinstance(loaded.get(name), Mapping)), None)
        if holder is None:
            break
        loaded = loaded[holder]
    if not isinstance(loaded, Mapping):
        raise ValueError(f"it holds a {type(loaded).__name__}, not named tensors")
    tensors = {str(name): v for name, v in loaded.items() if isinstance(v, Tensor)}
    if not tensors:
        raise ValueError(f"it holds no tensors, but {_few([str(name) for name in loaded])}")
    return tensors


# ------------------------------------------------------------------------------------- TorchScript
class _Module:
    """Stands in for every class of an archive: attributes, and no code."""

    # Attributes that a state_dict has; None: every tensor.
    kept: frozenset[str] | None = None

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.__dict__.update(state)


def _inner(name: str) -> str:
    """A record's name without the archive's own folder."""
    return name.partition("/")[2]


class _ArchiveReader(pickle.Unpickler):
    """Unpickles an archive's tree of modules; nothing but tensors and containers is made."""

    def __init__(self, archive: zipfile.ZipFile, folder: str) -> None:
        super().__init__(archive.open(f"{folder}/data.pkl"))
        self._archive, self._folder = archive, folder
        self._storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("__torch__"):
            return type(name, (_Module,), {"kept": self._kept(module, name)})
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        known = {
            ("torch._utils", "_rebuild_tensor_v2"): _tensor,
            ("torch._utils", "_rebuild_tensor"): _tensor,
            ("torch._utils", "_rebuild_parameter"): lambda value, *_: value,
            ("torch.jit._pickle", "restore_type_tag"): lambda value, _: value,
            ("collections", "OrderedDict"): collections.OrderedDict,
        }
        if (module, name) in known:
            return known[module, name]
        if module == "torch.jit._pickle" and name.startswith("build_"):
            return lambda values: values
        raise pickle.UnpicklingError(f"an archive with {module}.{name} is not read")

    def _kept(self, module: str, name: str) -> frozenset[str] | None:
        """Names of a class's parameters and buffers, which its source lists; it is not run."""
        record = f"{self._folder}/code/{module.replace('.', '/')}.py"
        if record not in self._archive.namelist():
            return None
        source = self._archive.read(record).decode(errors="replace")
        lists = re.search(
            rf"^class {re.escape(name)}\(Module\):\n"
            r"\s+__parameters__ = \[(.*)\]\n\s+__buffers__ = \[(.*)\]$",
            source,
            re.MULTILINE,
        )
        # PyTorch before 1.6 listed parameters only.
        return lists and frozenset(re.findall(r'"([^"]*)"', " ".join(lists.groups())))

    def persistent_load(self, pid: Any) -> Tensor:
        _, dtype, key, *_ = pid
        if key not in self._storages:
            data = bytearray(self._archive.read(f"{self._folder}/data/{key}"))
            flat = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
            self._storages[key] = flat
        return self._storages[key]


def _tensor(flat: Tensor, offset: int, size: tuple[int, ...], stride: Any, *_: Any) -> Tensor:
    return flat.as_strided(tuple(size), tuple(stride), offset).clone()


def _torchscript_tensors(path: Path) -> dict[str, Tensor]:
    """Parameters and buffers of an archive's modules, by the names that a state_dict has."""
    with zipfile.ZipFile(path) as archive:
        name = next(name for name in archive.namelist() if _inner(name) == "constants.pkl")
        root = _ArchiveReader(archive, name.partition("/")[0]).load()
    found: dict[str, Tensor] = {}
    waiting = [("", root)]
    seen: set[int] = set()
    while waiting:
        prefix, module = waiting.pop(0)
        if id(module) in seen:
            continue
        seen.add(id(module))
        for name, value in vars(module).items() if isinstance(module, _Module) else ():
            if isinstance(value, Tensor):
                if module.kept is None or name in module.kept:
                    found[prefix + name] = value
            elif isinstance(value, _Module):
                waiting.append((f"{prefix}{name}.", value))
    if not found:
        raise ValueError("the TorchScript archive holds no tensors")
    return found
