"""Zero-shot semantic segmentation with AlignZeg, as a Detectron2 plugin.

Importing this package registers its components and data sets with Detectron2; nothing else does.
"""

from __future__ import annotations

try:
    import detectron2  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "detectron2":
        raise
    raise ImportError(
        "alignzeg needs Detectron2, which is not installed. `make setup` installs it; by hand, "
        "from a package index: uv pip install --python-version 3.10 --no-deps --target "
        "\"$(python -c 'import sysconfig; print(sysconfig.get_path(\"purelib\"))')\" "
        "sal-detectron2==0.7.2; or from its source: pip install --no-build-isolation "
        "git+https://github.com/facebookresearch/detectron2.git"
    ) from None

import importlib
import importlib.util

from alignzeg.config import add_alignzeg_config

__version__ = "0.1.0"
__all__ = ["add_alignzeg_config"]

for _name in ("alignzeg.losses.criteria", "alignzeg.modeling.meta_arch"):
    try:
        if importlib.util.find_spec(_name) is not None:
            importlib.import_module(_name)
    except ImportError:
        pass
