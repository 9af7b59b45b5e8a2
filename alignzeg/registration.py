"""Importing this module registers the package's components and data sets with Detectron2."""

from __future__ import annotations

import importlib

from alignzeg import EXPORTS

try:
    import detectron2  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "detectron2":
        raise
    raise ImportError(
        "alignzeg needs Detectron2, which is not installed. `make setup` installs it; by hand, "
        "from a package index: uv pip install --python-version 3.10 --no-deps --target "
        '"$(python -c \'import sysconfig; print(sysconfig.get_path("purelib"))\')" '
        "sal-detectron2==0.7.2; or from its source: pip install --no-build-isolation "
        "git+https://github.com/facebookresearch/detectron2.git"
    ) from None

for _module in EXPORTS.values():
    importlib.import_module(_module)
importlib.import_module("alignzeg.data.catalog").register_all()
