#!/usr/bin/env python3
"""Names regions of the pixels that no human labelled, by the frozen VLM, for a training to use.

    python tools/make_pseudo_labels.py --config-file configs/zeroshapes/cel.yaml \
        --dataset zeroshapes_train --output output/pseudo_labels/zeroshapes

By default the names are those of the data set's unseen classes, against all of its names: what is
trained on them is transductive. --words gives other ones. Run the same command again to go on.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys

from alignzeg.arguments import OneLineParser
from alignzeg.data.class_names import read_class_list
from alignzeg.engine import guarded
from alignzeg.pseudo_labels import Job, make_pseudo_labels
from alignzeg.pseudo_labels.labeller import RegionSource
from alignzeg.pseudo_labels.naming import Thresholds


def make(args: argparse.Namespace) -> None:
    """Runs the command and prints its summary."""
    job = Job(
        args.config_file,
        args.dataset,
        args.output,
        tuple(args.opts),
        read_class_list(args.words) if args.words else (),
        RegionSource(args.weights, args.scale, args.min_share),
        Thresholds(args.confidence, args.margin, args.min_area, args.flips),
    )
    summary = make_pseudo_labels(job, args.jobs)["summary"]
    sys.stdout.write(json.dumps(summary, indent=1) + "\n")


def main() -> int:
    """Parses the command line."""
    parser = OneLineParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    region, sure = RegionSource(), Thresholds()
    parser.add_argument("--config-file", required=True, help="of the VLM, and of --weights")
    parser.add_argument("--dataset", required=True, help="such as zeroshapes_train")
    parser.add_argument("--output", required=True, help="folder to write")
    parser.add_argument("--weights", default="", help="take this model's proposals")
    parser.add_argument("--words", help="an open vocabulary: a file, or names with commas")
    parser.add_argument("--confidence", type=float, default=sure.confidence, help="least, 0 to 1")
    parser.add_argument("--margin", type=float, default=sure.margin, help="over the second name")
    parser.add_argument("--min-area", type=int, default=sure.min_area, help="of a region, pixels")
    parser.add_argument("--flips", action="store_true", help="the mirror image must agree")
    parser.add_argument("--scale", type=float, default=region.scale, help="of superpixels")
    parser.add_argument("--min-share", type=float, default=region.min_share, help="of a proposal")
    parser.add_argument("--jobs", type=int, default=1, help="processes; on GPUs, one each")
    parser.add_argument("--debug", action="store_true")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs")
    logging.basicConfig(level=logging.WARNING)
    return guarded(lambda: make(parser.parse_args()), debug="--debug" in sys.argv)


if __name__ == "__main__":
    sys.exit(main())
