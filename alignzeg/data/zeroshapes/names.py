"""The class names, read from the split file: "<colour> <shape>" is a thing, one word a texture."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path

SPLIT_FILE = Path(__file__).parents[1] / "splits" / "zeroshapes.json"


@lru_cache(maxsize=1)
def class_names() -> tuple[str, ...]:
    """All class names, in the order of their ids."""
    return tuple(json.loads(SPLIT_FILE.read_text(encoding="utf-8"))["classes"])


def thing_names() -> list[str]:
    """The names made of a colour and a shape."""
    return [name for name in class_names() if " " in name]


def stuff_names() -> list[str]:
    """The names of textures."""
    return [name for name in class_names() if " " not in name]
