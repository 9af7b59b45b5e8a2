"""`alignzeg calibrate`: the bias correction, chosen without looking at an unseen label."""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import math
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignzeg.arguments import (
    OneLineParser,
    add_config_file,
    add_opts,
    command_parser,
    require_file_place,
)
from alignzeg.files import atomic_write
from alignzeg.progress import tracked

if TYPE_CHECKING:
    from detectron2.config import CfgNode

    from alignzeg.evaluation.calibration import Setting

_PICTURES = (".png", ".svg", ".pdf")


def numbers(text: str) -> list[float]:
    """Numbers separated by commas, so that KEY VALUE pairs may follow."""
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = [math.nan]
    if not all(map(math.isfinite, values)):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no list of numbers separated by commas, such as 0,0.5,1"
        )
    return values


def shares(text: str) -> list[float]:
    """Numbers from 0 to 1 separated by commas."""
    values = numbers(text)
    wrong = [value for value in values if not 0 <= value <= 1]
    if wrong:
        raise argparse.ArgumentTypeError(f"{wrong[0]:g} in {text!r} is not a number from 0 to 1")
    return values


def parser() -> OneLineParser:
    """The command line."""
    result = command_parser(
        "calibrate",
        "Chooses the bias correction on pseudo-unseen classes. It trains nothing: give it the "
        "weights of a model that was trained with ALIGNZEG.DATA.HOLD_OUT pseudo_unseen, and it "
        "scores every strength of the correction and, with --seen-exponents and "
        "--unseen-exponents, every share of the frozen VLM. The network runs once per image; its "
        "proposals are kept in a file, so that another sweep takes seconds.",
        "alignzeg calibrate --config-file configs/zeroshapes/alignzeg.yaml "
        "--weights output/pseudo/model_final.pth",
    )
    add_config_file(result, required=True)
    result.add_argument(
        "--weights",
        required=True,
        metavar="FILE",
        help="a checkpoint that was trained with the pseudo-unseen classes held out",
    )
    result.add_argument(
        "--dataset",
        default="",
        metavar="NAME",
        help="the data set to choose on; by default the one that the config's benchmark keeps for "
        "this, such as msrc21_calib, or the test set of your own data",
    )
    result.add_argument(
        "--output",
        metavar="FILE",
        help="the file of the results; by default calibration.json beside the weights",
    )
    result.add_argument(
        "--picture",
        metavar="FILE",
        help="the trade-off of seen and unseen classes as a PNG, SVG or PDF file; by default that "
        "of the results with the end .png",
    )
    result.add_argument(
        "--cache",
        metavar="FILE",
        help="the file of the proposals, which is used again as long as nothing has changed that "
        "they follow from; by default that of the results with the end .proposals",
    )
    result.add_argument(
        "--write-config",
        metavar="FILE",
        help="also write a YAML file that is the config with the best setting",
    )
    result.add_argument(
        "--gammas",
        type=numbers,
        default="0,0.25,0.5,1,1.5,2,3,4,6,8,10,15",
        metavar="LIST",
        help="amounts of the correction in logits, separated by commas; %(default)s by default",
    )
    result.add_argument(
        "--thresholds",
        type=shares,
        default="0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8,0.9",
        metavar="LIST",
        help="thresholds of the unseen indicator, 0 to 1; %(default)s by default",
    )
    for group in ("seen", "unseen"):
        result.add_argument(
            f"--{group}-exponents",
            type=shares,
            default=[],
            metavar="LIST",
            help=f"exponents of the frozen VLM for {group} classes, 0 to 1; by default that of "
            "the config",
        )
    add_opts(result)
    return result


def main(args: argparse.Namespace) -> None:
    """Runs the sweep and writes its results.

    Raises:
        ValueError: on input that cannot work, before the model is built.
    """
    path, picture, cache = _places(args)
    logging.basicConfig(level=logging.WARNING)
    from alignzeg.data.labels import get_vocabulary
    from alignzeg.engine import AlignZegCheckpointer, Trainer, setup_config
    from alignzeg.evaluation.calibration import (
        Grid,
        best,
        config_text,
        default_dataset,
        harmonic,
        sweep,
    )
    from alignzeg.evaluation.tradeoff import save_tradeoff

    args.dataset = args.dataset or default_dataset(setup_config(args.config_file, args.opts))
    fixed = {"DATASETS.TEST": args.dataset, "ALIGNZEG.DATA.HOLD_OUT": "pseudo_unseen"}
    require_fixed(args.opts, fixed)
    recall = ("ALIGNZEG.TEST.RECALL", "False")
    opts = [*args.opts, *recall, *(word for pair in fixed.items() for word in pair)]
    grid = Grid(args.gammas, args.thresholds, args.seen_exponents, args.unseen_exponents)
    cfg = setup_config(args.config_file, opts)
    vocabulary = get_vocabulary(args.dataset, cfg.ALIGNZEG.DATA.HOLD_OUT)
    hidden = [vocabulary.names[i] for i in vocabulary.unseen_ids]
    require_hidden(args.weights, hidden)
    model: Any = Trainer.build_model(cfg).eval()
    AlignZegCheckpointer(model, strict=True).load(args.weights)
    images = _proposals(model, cfg, args, cache)
    start = time.monotonic()
    plain = (args.thresholds[0], 0.0, model.ensemble)
    found = sweep(model, tracked(images, "Sweeping", len(images)), vocabulary, grid, also=[plain])
    *settings, uncorrected = found
    seconds = time.monotonic() - start
    # Of equals the first: what changes nothing.
    chosen = max(uncorrected, best(settings), key=harmonic)
    result = {
        "weights": args.weights,
        "dataset": args.dataset,
        "images": len(images),
        "pseudo_unseen": hidden,
        "seconds": round(seconds, 1),
        "best": dataclasses.asdict(chosen),
        "uncorrected": dataclasses.asdict(uncorrected),
        "settings": [dataclasses.asdict(setting) for setting in settings],
    }
    atomic_write(path, json.dumps(result, indent=1))
    save_tradeoff(picture, settings, uncorrected, chosen)
    if args.write_config:
        text = config_text(args.config_file, args.write_config, args.dataset, chosen)
        atomic_write(args.write_config, text)
    _report(settings, uncorrected, chosen)
    written = [path, picture, *([args.write_config] if args.write_config else [])]
    sys.stdout.write(
        f"{len(settings)} settings on {len(images)} images of {args.dataset} in {seconds:.1f} s: "
        f"{', '.join(map(str, written))}\n"
    )
    said = "no correction helps" if chosen is uncorrected else "best"
    sys.stdout.write(f"{said}: {chosen.opts()}\n")


def require_fixed(opts: Sequence[str], fixed: Mapping[str, str]) -> None:
    """Refuses KEY VALUE pairs that would undo what the results say.

    Raises:
        ValueError: naming the key and both values.
    """
    for key, value in zip(opts[0::2], opts[1::2], strict=False):
        if fixed.get(key, value) != value:
            fix = "give --dataset" if key == "DATASETS.TEST" else "leave it out"
            raise ValueError(
                f"{key} is {value!r}, and calibrate always takes {fixed[key]!r}, as its results "
                f"say; {fix}"
            )


def require_hidden(weights: str, pseudo_unseen: Iterable[str]) -> None:
    """Refuses weights that know the pseudo-unseen classes, and what is no checkpoint.

    Raises:
        ValueError: naming these classes, and what to train instead.
    """
    from alignzeg.engine.checkpoints.reading import read_about

    seen = set(read_about(weights).get("seen", ()))
    known = [name for name in pseudo_unseen if name in seen]
    if known:
        raise ValueError(
            f"{weights!r} was trained with masks of {', '.join(known)}, which calibrate takes for "
            "unseen; train with ALIGNZEG.DATA.HOLD_OUT pseudo_unseen, into another OUTPUT_DIR"
        )


def _places(args: argparse.Namespace) -> tuple[Path, Path, Path]:
    """The files of results, picture and proposals.

    Raises:
        ValueError: if the weights are missing, or a file cannot be written.
    """
    if not Path(args.weights).is_file():
        raise ValueError(
            f"--weights is {args.weights!r}, which is no file; train with "
            "ALIGNZEG.DATA.HOLD_OUT pseudo_unseen and give its model_final.pth"
        )
    path = Path(args.output or Path(args.weights).with_name("calibration.json"))
    require_file_place(path, "--output" if args.output else "--weights")
    picture = Path(args.picture or path.with_suffix(".png"))
    if picture.suffix.lower() not in _PICTURES:
        raise ValueError(f"--picture is {str(picture)!r}; its end must be one of {_PICTURES}")
    cache = Path(args.cache or path.with_suffix(".proposals"))
    places = {"--output": path, "--picture": picture, "--cache": cache}
    if args.write_config:
        places["--write-config"] = Path(args.write_config)
        if places["--write-config"].suffix not in (".yaml", ".yml"):
            raise ValueError(f"--write-config is {args.write_config!r}; its end must be .yaml")
    inputs = {"--weights": Path(args.weights), "--config-file": Path(args.config_file)}
    taken: dict[Path, str] = {file.resolve(): name for name, file in inputs.items()}
    for name, file in places.items():
        require_file_place(file, name)
        if file.resolve() in taken:
            raise ValueError(
                f"{name} is {str(file)!r}, the file of {taken[file.resolve()]}; give another"
            )
        taken[file.resolve()] = name
    return path, picture, cache


def _proposals(model: Any, cfg: CfgNode, args: argparse.Namespace, cache: Path) -> Any:
    """The cached proposals of the data set, made first if they are not there.

    Raises:
        ValueError: if the file of `--cache` is there and holds something else.
    """
    from alignzeg.engine import Trainer
    from alignzeg.evaluation.cached_proposals import (
        ProposalFile,
        iterate_proposals,
        origin,
        save_proposals,
    )

    made_of = origin(cfg, args.weights, args.dataset)
    if cache.exists():
        images = ProposalFile(cache, model.device)
        if images.made_of == made_of:
            return images
        sys.stderr.write(f"{cache} is of other weights, data or keys; it is made anew\n")
    loader: Any = Trainer.build_test_loader(cfg, args.dataset)
    found = iterate_proposals(
        model, tracked(loader, "Looking at images", len(loader)), args.dataset
    )
    save_proposals(cache, found, made_of)
    return ProposalFile(cache, model.device)


def _report(settings: list[Setting], uncorrected: Setting, chosen: Setting) -> None:
    from rich.console import Console

    from alignzeg.evaluation.calibration import table

    Console(highlight=False).print(table(settings, uncorrected))
    if chosen.harmonic_iou is None:
        sys.stdout.write("hIoU is not defined: the data set shows no pseudo-unseen class\n")
