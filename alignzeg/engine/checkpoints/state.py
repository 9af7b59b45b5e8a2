"""What a checkpoint keeps beside the weights: random generators, and a config to compare with."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor

from alignzeg.config.values import flatten

PRIMITIVES = (bool, int, float, str, bytes, type(None))


def rng_state() -> dict[str, Any]:
    """The global random generators of this process, as tensors and plain values.

    Detectron2's augmentations draw from these.

    Returns:
        "torch", "numpy", "python" and "cuda" (None where there is none).
    """
    legacy: Any = np.random.get_state()  # noqa: NPY002
    kind, keys, position, has_gauss, gauss = legacy
    version, words, spare = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "numpy": {
            "kind": str(kind),
            "keys": torch.from_numpy(keys.astype(np.int64)),
            "position": int(position),
            "has_gauss": int(has_gauss),
            "gauss": float(gauss),
        },
        "python": {"version": version, "words": torch.tensor(words), "spare": spare},
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None,
    }


def set_rng_state(state: Mapping[str, Any]) -> None:
    """Puts the generators back to what `rng_state` returned."""
    torch.set_rng_state(state["torch"])
    numpy = state["numpy"]
    keys = numpy["keys"].numpy().astype(np.uint32)
    np.random.set_state(  # noqa: NPY002
        (numpy["kind"], keys, numpy["position"], numpy["has_gauss"], numpy["gauss"])
    )
    python = state["python"]
    random.setstate((python["version"], tuple(python["words"].tolist()), python["spare"]))
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


@contextlib.contextmanager
def isolated_rng(*seeds: int) -> Iterator[None]:
    """Lets the code inside draw random numbers without a trace outside.

    Seeds, whole numbers >= 0, fix what the CPU's generators give inside; without any they go on as
    they are.
    """
    cuda = None if seeds or not torch.cuda.is_initialized() else torch.cuda.get_rng_state()
    before = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    try:
        if seeds:
            words = np.random.SeedSequence(seeds).generate_state(3).tolist()
            np.random.seed(words[0])  # noqa: NPY002
            random.seed(words[1])
            torch.default_generator.manual_seed(words[2])
        yield
    finally:
        torch.set_rng_state(before[0])
        np.random.set_state(before[1])  # noqa: NPY002
        random.setstate(before[2])
        if cuda is not None:
            torch.cuda.set_rng_state(cuda)


def config_changes(before: str, now: str) -> list[str]:
    """How two configs, given as YAML text, differ.

    Returns:
        One line a key, in the order of the keys; "unset" where only one side has it.
    """
    if before == now:
        return []
    old, new = (dict(flatten(yaml.safe_load(text) or {})) for text in (before, now))
    return [
        f"{key}: was {old.get(key, 'unset')!r}, is {new.get(key, 'unset')!r}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key, "unset") != new.get(key, "unset")
    ]


def plain(value: Any, where: str = "checkpoint") -> Any:
    """The same value out of tensors and plain values alone.

    NumPy's scalars become Python's, tuples and dictionaries keep their kind.

    Raises:
        TypeError: naming the place of anything else.
    """
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, PRIMITIVES):
        return value
    if isinstance(value, Mapping):
        return {key: plain(item, f"{where}[{key!r}]") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        items = [plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
        return tuple(items) if isinstance(value, tuple) else items
    raise TypeError(
        f"{where} is a {type(value).__name__}; a checkpoint holds tensors and plain values only"
    )


def tensor_bytes(value: Any) -> int:
    """Bytes of all tensors in nested dictionaries, lists and tuples; shared memory counts once."""
    storages: dict[int, int] = {}

    def visit(item: Any) -> None:
        if isinstance(item, Tensor):
            storage = item.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
        elif isinstance(item, Mapping):
            for part in item.values():
                visit(part)
        elif isinstance(item, (list, tuple)):
            for part in item:
                visit(part)

    visit(value)
    return sum(storages.values())
