#!/usr/bin/env python3
"""Chooses the bias correction on pseudo-unseen classes, never looking at an unseen label.

Trains nothing: give it the weights of a model that was trained with
`ALIGNZEG.DATA.HOLD_OUT pseudo_unseen`, and it prints how every strength of the correction does, and
with `--seen-exponents` and `--unseen-exponents` every share of the frozen VLM with each of them.
"""

from __future__ import annotations

# The command line is read before anything heavy is imported.
__alignzeg_late__ = True

import argparse
import dataclasses
import json
import logging
import os
import sys
from pathlib import Path

from alignzeg.arguments import OneLineParser, read_command_line, require_file_place


def numbers(text: str) -> list[float]:
    """Comma-separated numbers, so that KEY VALUE pairs may follow."""
    return [float(part) for part in text.split(",")]


def calibrate(args: argparse.Namespace) -> None:
    """Runs the sweep and writes its result."""
    from alignzeg.calibration import Grid, best, cache_proposals, sweep
    from alignzeg.data.labels import get_vocabulary
    from alignzeg.engine import AlignZegCheckpointer, Trainer, setup_config

    path = Path(args.output or Path(args.weights).with_name("calibration.json"))
    require_file_place(path, "--output" if args.output else "--weights")
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
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(result, indent=1))
    os.replace(temporary, path)


def main() -> int:
    """Parses the command line."""
    parser = OneLineParser(description=__doc__)
    parser.add_argument("--config-file", required=True)
    parser.add_argument("--weights", required=True, help="trained with the pseudo-unseen held out")
    parser.add_argument("--dataset", default="zeroshapes_calib")
    parser.add_argument("--output", help="default: calibration.json beside the weights")
    parser.add_argument("--gammas", type=numbers, default="0,0.25,0.5,1,1.5,2,3,4,6,8,10,15")
    parser.add_argument("--thresholds", type=numbers, default="0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8,0.9")
    shares = "exponents of the frozen VLM for {} classes; default: the config's"
    parser.add_argument(
        "--seen-exponents", type=numbers, default=[], help=shares.format("seen"), metavar="LIST"
    )
    parser.add_argument(
        "--unseen-exponents", type=numbers, default=[], help=shares.format("unseen"), metavar="LIST"
    )
    parser.add_argument("--debug", action="store_true")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs")
    args = read_command_line(parser)
    logging.basicConfig(level=logging.WARNING)
    from alignzeg.engine import guarded

    return guarded(lambda: calibrate(args), debug=args.debug)


if __name__ == "__main__":
    sys.exit(main())
