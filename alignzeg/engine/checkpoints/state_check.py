"""Whether a saved state is of the kind of the state it is to replace."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor


def check_kinds(path: str, loaded: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuses a checkpoint that holds something of another kind than what it is to replace.

    Raises:
        ValueError: naming the first such place.
    """
    wrong = misfit(loaded, {**now, "alignzeg": {"config": "", "data": ""}}, "it")
    if wrong:
        raise ValueError(
            f"checkpoint {path!r} is not as it was written: {wrong}; resume from another one"
        )


def misfit(found: Any, like: Any, where: str) -> str:
    """The first place at which a saved value is of another kind than the present one.

    Entries that only one side has are not looked at: a fresh optimizer has no state yet.

    Returns:
        One sentence; empty if nothing is of another kind.
    """
    if like is None or (found is None and isinstance(like, Tensor)):
        return ""
    if isinstance(like, Mapping):
        if not isinstance(found, Mapping):
            return f"{where} is {_kind(found)} instead of named entries"
        pairs = [(found[key], like[key], f"{where}.{key}") for key in like if key in found]
    elif isinstance(like, (list, tuple)):
        if not isinstance(found, (list, tuple)):
            return f"{where} is {_kind(found)} instead of a list"
        pairs = [(item, like[0], f"{where}[{i}]") for i, item in enumerate(found) if like]
    elif isinstance(like, Tensor):
        same = isinstance(found, Tensor) and (found.shape, found.dtype) == (like.shape, like.dtype)
        return "" if same else f"{where} is {_kind(found)} instead of {_kind(like)}"
    else:
        numbers = (int, float)
        kinds = numbers if isinstance(like, numbers) and not isinstance(like, bool) else type(like)
        fine = isinstance(found, kinds) and isinstance(found, bool) == isinstance(like, bool)
        return "" if fine else f"{where} is {_kind(found)} instead of {_kind(like)}"
    return next(filter(None, (misfit(*pair) for pair in pairs)), "")


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of {str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    return f"of type {type(value).__name__}"
