"""Zero-shot semantic segmentation with AlignZeg, as a Detectron2 plugin.

`import alignzeg` registers all components and data sets with Detectron2, which takes seconds.
Only a command of this project reads its command line first; what it then needs of the package
registers them (`alignzeg.registration`).
"""

from __future__ import annotations

import getpass
import importlib
import os
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

__version__ = "0.1.0"
# What this package exports, and the module of each name. Importing the modules registers them.
EXPORTS = {
    "add_alignzeg_config": "alignzeg.config",
    "register_folder": "alignzeg.data.custom",
    "generative": "alignzeg.generative",
    "criteria": "alignzeg.losses.criteria",
    "classifiers": "alignzeg.modeling.classifiers",
    "correctors": "alignzeg.modeling.correctors",
    "encoders": "alignzeg.modeling.encoders",
    "heads": "alignzeg.modeling.heads",
    "meta_arch": "alignzeg.modeling.meta_arch",
    "proposals": "alignzeg.modeling.proposals",
    "synthesizers": "alignzeg.modeling.synthesizers",
    "timm_encoder": "alignzeg.modeling.timm_encoder",
    "vlm": "alignzeg.modeling.vlm",
}
# What is imported when it is first used, as it registers nothing.
LAZY = {"Predictor": "alignzeg.inference"}
__all__ = [*EXPORTS, *LAZY]


def __getattr__(name: str) -> Any:
    source = {**EXPORTS, **LAZY}.get(name)
    if source is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    importlib.import_module("alignzeg.registration")
    module = importlib.import_module(source)
    return module if module.__name__.endswith(f".{name}") else getattr(module, name)


def _is_command() -> bool:
    """Whether this process is `alignzeg NAME`, `python -m alignzeg NAME`, or a script that says so.

    A script says so by `__alignzeg_late__ = True` before its imports.
    """
    program = sys.argv[0] if sys.argv else ""
    return (
        Path(program).stem == __name__
        or (program == "-m" and ("-m", __name__) in pairwise(sys.orig_argv))
        or getattr(sys.modules.get("__main__"), "__alignzeg_late__", False)
    )


def _name_user() -> None:
    """Gives a user id without a name, as in `docker run -u 4242`, one for PyTorch, which asks."""
    try:
        getpass.getuser()
    except (KeyError, OSError, ImportError):
        os.environ["USER"] = str(getattr(os, "getuid", int)())


_name_user()
if not _is_command():
    importlib.import_module("alignzeg.registration")
