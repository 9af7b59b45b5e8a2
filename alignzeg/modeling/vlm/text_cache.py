"""Text prototypes of names, kept in memory and on disk: each name by itself."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load, save
from torch import Tensor

from alignzeg.files import atomic_write, user_cache
from alignzeg.modeling.pretrained import UNREADABLE
from alignzeg.progress import waiting
from alignzeg.structures import SYNONYM_SEPARATOR

logger = logging.getLogger(__name__)

# Names that a file holds, and names and lists that memory holds; a web page is asked for any.
MOST_NAMES = 8192
MOST_LISTS = 16
# No name of a class begins so, and safetensors keeps "__metadata__" for itself.
_PREFIX = "name "


class TextCache:
    """Prototypes of one encoder and one set of templates, in one file.

    A name is encoded by itself, so that its prototype does not depend on those that it is asked for
    with, and one more class costs one more name.
    """

    def __init__(self, folder: str | Path, identity: Mapping[str, Any], channels: int) -> None:
        """Keeps a file in `folder`; "" is ``~/.cache/alignzeg/text``, or none without a home.

        `identity` is all that prototypes depend on beside the name, as JSON holds it.
        """
        cache = user_cache()
        place = Path(folder).expanduser() if folder else cache and cache / "text"
        name = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        self._path = place and place / f"{name}.safetensors"
        self._channels = channels
        self._rows: dict[str, Tensor] = {}
        self._lists: dict[tuple[tuple[str, ...], torch.device], Tensor] = {}

    @torch.inference_mode(False)
    @torch.no_grad()
    def get(
        self,
        names: Sequence[str],
        make: Callable[[str], Tensor],
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """(K, D) float32, unit length, of K class names.

        Args:
            names: one may hold several, between SYNONYM_SEPARATORs: then it is their mean.
            make: the (D,) prototype of a single name that is not stored.
            device: where the answer is to be; each that asks keeps a copy.
        """
        key = (tuple(names), torch.device(device))
        found = self._lists.get(key)
        if found is None:
            groups = [name.split(SYNONYM_SEPARATOR) for name in names]
            rows = self._singles([name for group in groups for name in group], make)
            classes = [
                rows[group[0]]
                if len(group) == 1
                else F.normalize(torch.stack([rows[name] for name in group]).mean(dim=0), dim=0)
                for group in groups
            ]
            found = self._lists[key] = torch.stack(classes).to(device)
            _forget(self._lists, MOST_LISTS)
        return found

    def _singles(self, names: list[str], make: Callable[[str], Tensor]) -> dict[str, Tensor]:
        rows = {name: self._rows[name] for name in names if name in self._rows}
        if any(name not in rows for name in names):
            # Read anew: other processes may have written since.
            on_disk = self._read()
            rows |= {name: on_disk[name] for name in names if name in on_disk}
            lacking = [name for name in dict.fromkeys(names) if name not in rows]
            if lacking:
                with waiting(f"embedding {len(lacking)} names; the cache keeps them"):
                    rows |= {name: make(name).float().cpu() for name in lacking}
            # What does not fit in the file is only in memory.
            if lacking and len(on_disk) + len(lacking) <= MOST_NAMES:
                self._write(on_disk | {name: rows[name] for name in lacking})
        # The names asked for last are the last to be forgotten.
        kept = {name: row for name, row in self._rows.items() if name not in rows} | rows
        _forget(kept, MOST_NAMES)
        self._rows = kept
        return rows

    def _read(self) -> dict[str, Tensor]:
        if self._path is None or not self._path.is_file():
            return {}
        try:
            # By its content: no open file is left behind that another process cannot replace.
            stored = load(self._path.read_bytes())
        except UNREADABLE as error:
            logger.warning("text cache %s is unreadable and is made anew: %s", self._path, error)
            return {}
        fits = all(
            row.shape == (self._channels,) and row.dtype == torch.float32 and row.isfinite().all()
            for row in stored.values()
        )
        if not fits:
            logger.warning("text cache %s does not fit and is made anew", self._path)
            return {}
        return {name.removeprefix(_PREFIX): row for name, row in stored.items()}

    def _write(self, rows: Mapping[str, Tensor]) -> None:
        if self._path is None:
            return
        content = {_PREFIX + name: row.contiguous() for name, row in rows.items()}
        try:
            atomic_write(self._path, save(content))
        except OSError as error:
            logger.warning("text cache %s cannot be written: %s", self._path, error)


def _forget(kept: dict[Any, Any], most: int) -> None:
    """Leaves the newest entries of a dictionary."""
    for key in list(kept)[: max(len(kept) - most, 0)]:
        kept.pop(key, None)
