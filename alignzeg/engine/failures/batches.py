"""What is in a batch, or in what a module returns: tensors, images and their names."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from alignzeg.engine.processes.errors import USER_ERRORS, explain


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


def images_in(data: Any) -> Iterator[tuple[int, Tensor]]:
    """The images of a batch as the mapper makes it, with their positions."""
    if isinstance(data, Sequence):
        for index, item in enumerate(data):
            image = item.get("image") if isinstance(item, Mapping) else item
            if isinstance(image, Tensor):
                yield index, image


def names_in(data: Any) -> list[str]:
    """The file name of every image of a batch, "?" where there is none."""
    if not isinstance(data, Sequence):
        return []
    return [str(item.get("file_name", "?")) if isinstance(item, Mapping) else "?" for item in data]


@contextlib.contextmanager
def naming_images(model: nn.Module) -> Iterator[None]:
    """Adds to an error inside which images the model was given last.

    Raises:
        ValueError: for an error of the user.
        RuntimeError: for any other error, after it.
    """
    names: list[str] = []

    def remember(_: nn.Module, arguments: tuple[Any, ...]) -> None:
        names[:] = names_in(arguments[0]) if arguments else []

    handle = model.register_forward_pre_hook(remember)
    try:
        yield
    except Exception as error:
        if not names or any(name in str(error) for name in names):
            raise
        kind = ValueError if isinstance(error, USER_ERRORS) else RuntimeError
        raise kind(f"{explain(error)}; the last image was {', '.join(names)}") from error
    finally:
        handle.remove()
