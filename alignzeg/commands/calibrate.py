"""`alignzeg calibrate`: the bias correction, chosen without looking at an unseen label."""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import sys
from pathlib import Path

from alignzeg.arguments import (
    OneLineParser,
    add_config_file,
    add_opts,
    command_parser,
    require_file_place,
)
from alignzeg.files import atomic_write


def numbers(text: str) -> list[float]:
    """Numbers separated by commas, so that KEY VALUE pairs may follow."""
    return [float(part) for part in text.split(",")]


def parser() -> OneLineParser:
    """The command line."""
    result = command_parser(
        "calibrate",
        "Chooses the bias correction on pseudo-unseen classes. It trains nothing: give it the "
        "weights of a model that was trained with ALIGNZEG.DATA.HOLD_OUT pseudo_unseen, and it "
        "prints the scores of every strength of the correction and, with --seen-exponents and "
        "--unseen-exponents, of every share of the frozen VLM.",
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
        default="zeroshapes_calib",
        metavar="NAME",
        help="the data set to choose on; %(default)s by default",
    )
    result.add_argument(
        "--output",
        metavar="FILE",
        help="the file of the results; by default calibration.json beside the weights",
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
        type=numbers,
        default="0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8,0.9",
        metavar="LIST",
        help="thresholds of the unseen indicator, 0 to 1; %(default)s by default",
    )
    for group in ("seen", "unseen"):
        result.add_argument(
            f"--{group}-exponents",
            type=numbers,
            default=[],
            metavar="LIST",
            help=f"exponents of the frozen VLM for {group} classes, 0 to 1; by default that of "
            "the config",
        )
    add_opts(result)
    return result


def main(args: argparse.Namespace) -> None:
    """Runs the sweep and writes its result.

    Raises:
        ValueError: on input that cannot work.
    """
    path = Path(args.output or Path(args.weights).with_name("calibration.json"))
    require_file_place(path, "--output" if args.output else "--weights")
    logging.basicConfig(level=logging.WARNING)
    from alignzeg.data.labels import get_vocabulary
    from alignzeg.engine import AlignZegCheckpointer, Trainer, setup_config
    from alignzeg.evaluation.calibration import Grid, best, cache_proposals, sweep

    opts = [
        "DATASETS.TEST",
        args.dataset,
        "ALIGNZEG.DATA.HOLD_OUT",
        "pseudo_unseen",
        "ALIGNZEG.TEST.RECALL",
        "False",
        *args.opts,
    ]
    grid = Grid(args.gammas, args.thresholds, args.seen_exponents, args.unseen_exponents)
    cfg = setup_config(args.config_file, opts)
    vocabulary = get_vocabulary(args.dataset, cfg.ALIGNZEG.DATA.HOLD_OUT)
    model = Trainer.build_model(cfg).eval()
    AlignZegCheckpointer(model).load(args.weights)
    cached = cache_proposals(model, Trainer.build_test_loader(cfg, args.dataset), args.dataset)
    settings = sweep(model, cached, vocabulary, grid)
    for setting in settings:
        sys.stdout.write(json.dumps(dataclasses.asdict(setting)) + "\n")
    chosen = best(settings)
    sys.stdout.write(f"best: {chosen.opts()}\n")
    result = {
        "weights": args.weights,
        "dataset": args.dataset,
        "images": len(cached),
        "pseudo_unseen": [vocabulary.names[i] for i in vocabulary.unseen_ids],
        "best": dataclasses.asdict(chosen),
        "settings": [dataclasses.asdict(setting) for setting in settings],
    }
    atomic_write(path, json.dumps(result, indent=1))
