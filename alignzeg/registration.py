"""Registers the components and data sets of this package with Detectron2, by importing them."""

from __future__ import annotations

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

from alignzeg.config import add_alignzeg_config
from alignzeg.data import catalog
from alignzeg.data.own import register_folder
from alignzeg.losses import criteria
from alignzeg.modeling import (
    classifiers,
    correctors,
    encoders,
    generative_arch,
    heads,
    meta_arch,
    pixel_arch,
    proposals,
    synthesizers,
    timm_encoder,
    vlm,
)

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

catalog.register_all()
