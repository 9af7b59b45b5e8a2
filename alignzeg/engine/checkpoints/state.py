"""What a checkpoint is made of: tensors and plain values, such as those of random generators."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import random
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor


def rng_state() -> dict[str, Any]:
    """The global random generators of this process, as tensors and plain values.

    They are "torch", "numpy", "python" and "cuda" (None where there is none).
    """
    numpy: Any = np.random.get_state(legacy=False)  # noqa: NPY002
    version, words, spare = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "numpy": {
            "kind": str(numpy["bit_generator"]),
            "keys": torch.from_numpy(numpy["state"]["key"].astype(np.int64)),
            "position": int(numpy["state"]["pos"]),
            "has_gauss": int(numpy["has_gauss"]),
            "gauss": float(numpy["gauss"]),
        },
        "python": {"version": version, "words": torch.tensor(words), "spare": spare},
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None,
    }


def set_rng_state(state: Mapping[str, Any]) -> None:
    """Puts the generators back to what `rng_state` returned."""
    torch.set_rng_state(state["torch"])
    kind, keys, *rest = state["numpy"].values()
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    version, words, spare = state["python"].values()
    random.setstate((version, tuple(words.tolist()), spare))
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


@contextlib.contextmanager
def isolated_rng(*seeds: int) -> Iterator[None]:
    """Lets the code inside draw random numbers without a trace outside.

    Seeds, whole numbers >= 0, fix what the CPU's generators give inside; without any they go on as
    they are.
    """
    before = np.random.get_state(), random.getstate()  # noqa: NPY002
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices):
        try:
            if seeds:
                words = np.random.SeedSequence(seeds).generate_state(3).tolist()
                np.random.seed(words[0])  # noqa: NPY002
                random.seed(words[1])
                torch.default_generator.manual_seed(words[2])
            yield
        finally:
            np.random.set_state(before[0])  # noqa: NPY002
            random.setstate(before[1])


def plain(value: Any, where: str = "checkpoint", other: Callable[[Any], Any] | None = None) -> Any:
    """The same value out of tensors and plain values alone.

    NumPy's scalars become Python's, tuples and dictionaries keep their kind. `other` takes what is
    of another kind, and returns what is to stand for it.

    Raises:
        TypeError: without `other`, naming the place of anything else.
    """
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, (bool, int, float, str, bytes, type(None))):
        return value
    if isinstance(value, Mapping):
        return {key: plain(item, f"{where}[{key!r}]", other) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        items = [plain(item, f"{where}[{index}]", other) for index, item in enumerate(value)]
        return tuple(items) if isinstance(value, tuple) else items
    if other is not None:
        return other(value)
    raise TypeError(
        f"{where} is a {type(value).__name__}; a checkpoint holds tensors and plain values only"
    )


def tensors_in(value: Any, key: str = "") -> Iterator[tuple[str, Tensor]]:
    """All tensors in nested containers and dataclasses, with the way to each."""
    if isinstance(value, Tensor):
        yield key, value
    elif isinstance(value, Mapping):
        for name, item in value.items():
            yield from tensors_in(item, f"{key}[{name!r}]")
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from tensors_in(item, f"{key}[{index}]")
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for part in dataclasses.fields(value):
            yield from tensors_in(getattr(value, part.name), f"{key}.{part.name}")


def tensor_bytes(value: Any) -> int:
    """Bytes of all tensors in nested containers; shared memory counts once."""
    storages = [tensor.untyped_storage() for _, tensor in tensors_in(value)]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def weights_hash(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, shapes, types and values, in the order of names; of any device."""
    digest = hashlib.sha256()
    for name in sorted(key for key, value in weights.items() if isinstance(value, Tensor)):
        value = weights[name].detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\0".encode())
        digest.update(value.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
