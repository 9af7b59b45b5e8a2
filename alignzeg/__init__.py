"""Zero-shot semantic segmentation with AlignZeg, as a Detectron2 plugin.

Importing this package registers its components and data sets with Detectron2; nothing else does.
Only where a command line is to be read first (`python -m alignzeg`, and scripts that set
`__alignzeg_late__`) is that left to the command, as it takes seconds.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

__version__ = "0.1.0"
__all__ = [
    "add_alignzeg_config",
    "classifiers",
    "correctors",
    "criteria",
    "encoders",
    "generative_arch",
    "heads",
    "meta_arch",
    "pixel_arch",
    "proposals",
    "register_folder",
    "synthesizers",
    "timm_encoder",
    "vlm",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module("alignzeg.registration"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _command_line_comes_first() -> bool:
    """Whether this process is a command of the package that has not yet read its words."""
    if getattr(sys.modules.get("__main__"), "__alignzeg_late__", False):
        return True
    program, words = "".join(sys.argv[:1]), sys.orig_argv
    if program != "-m":
        return Path(program).stem == __name__
    # Python's own words end with "-m NAME" or "-mNAME".
    asked = next((i for i, word in enumerate(words) if i and word.startswith("-m")), 0)
    return words[asked : asked + 2] == ["-m", __name__] or words[asked] == f"-m{__name__}"


if not _command_line_comes_first():
    importlib.import_module("alignzeg.registration")
