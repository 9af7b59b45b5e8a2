"""Importing this module registers the package's components and data sets with Detectron2."""

from __future__ import annotations

import importlib

from alignzeg import EXPORTS
from alignzeg.machine import DETECTRON2_COMMAND

try:
    import detectron2  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "detectron2":
        raise
    raise ImportError(
        "alignzeg needs Detectron2, which is not installed. `make setup` installs it; by hand, "
        f"from a package index: {DETECTRON2_COMMAND}; or from its source: pip install "
        "--no-build-isolation "
        "git+https://github.com/facebookresearch/detectron2.git"
    ) from None

for _module in EXPORTS.values():
    importlib.import_module(_module)
importlib.import_module("alignzeg.data.catalog").register_all()
