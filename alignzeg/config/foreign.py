"""What the config of a shared model, which is somebody else's, may say of this machine."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from detectron2.config import CfgNode
from detectron2.utils.file_io import PathManager

from alignzeg.config.plugins import PLUGINS_KEY

logger = logging.getLogger(__name__)

Pairs = Sequence[tuple[str, Any]]
# What tells a folder of a shared model, whose config is that of somebody else.
SHARED = "alignzeg.json"
# Keys that name a place of the machine that trained the model, and what they are in a shared one.
PLACES = {
    "OUTPUT_DIR": "./output",
    "MODEL.WEIGHTS": "",
    "ALIGNZEG.VLM.CACHE_DIR": "",
    "ALIGNZEG.DATA.OWN.ROOT": "",
    "ALIGNZEG.DATA.PSEUDO.ROOT": "",
}
# Keys of files that a model needs; a shared one has their names, by which the user knows them.
NEEDED = (
    "ALIGNZEG.VLM.WEIGHTS",
    "ALIGNZEG.VLM.TEXT_WEIGHTS",
    "ALIGNZEG.ENCODER.TIMM_WEIGHTS",
    "ALIGNZEG.SEMANTICS.WORD_VECTORS",
)


def read_with_bases(config_file: str) -> tuple[Any, list[tuple[str, Any]]]:
    """The content of a YAML file over its bases, and what shared models' files say beyond theirs.

    Raises:
        Exception: what Detectron2 raises on a file that is no YAML or does not fit its base.
    """
    theirs: list[tuple[str, Any]] = []

    class Reader(CfgNode):
        @classmethod
        def _open_cfg(cls, filename: str) -> IO[str]:
            # Detectron2 asks the locale what the letters are.
            return open(PathManager.get_local_path(filename), encoding="utf-8-sig")

        # Called for the file and for each of its bases.
        @classmethod
        def load_yaml_with_base(cls, filename: str, allow_unsafe: bool = False) -> Any:
            loaded = super().load_yaml_with_base(filename, allow_unsafe=allow_unsafe)
            if isinstance(loaded, dict) and (Path(filename).parent / SHARED).is_file():
                _take_out(loaded, theirs)
            return loaded

    return Reader.load_yaml_with_base(config_file), theirs


def warn_of_places(theirs: Pairs, source: str) -> None:
    """Says which places of somebody else's config are left out."""
    for key, value in theirs:
        if key in PLACES:
            logger.warning("%s names %s %r, which is left out; give your own", source, key, value)


def require_names(pairs: Pairs, opts: Sequence[str], source: str) -> None:
    """Refuses paths to the files that somebody else's model needs, unless the opts name others."""
    for key, value in pairs:
        if key in NEEDED and key not in opts[0::2] and _is_path(value):
            raise ValueError(
                f"{source} has {key} {value!r}, a path on this machine; if you trust that file, "
                f"or have another, give it yourself: {key} FILE"
            )


def _is_path(value: object) -> bool:
    return isinstance(value, str) and (bool(re.search(r"[/\\]", value)) or value.startswith("~"))


def _take_out(tree: dict[str, Any], theirs: list[tuple[str, Any]], prefix: str = "") -> None:
    """Moves out of a shared model's config what is not for it to say."""
    for name in list(tree):
        key, value = f"{prefix}{name}", tree[name]
        if isinstance(value, dict):
            _take_out(value, theirs, f"{key}.")
        elif (
            (key == PLUGINS_KEY and value)
            or (key in NEEDED and _is_path(value))
            or value != PLACES.get(key, value)
        ):
            theirs.append((key, tree.pop(name)))
