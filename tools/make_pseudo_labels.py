#!/usr/bin/env python3
"""Names regions of the pixels that no human labelled, by the frozen VLM, for a training to use.

    python tools/make_pseudo_labels.py --config-file configs/zeroshapes/cel.yaml \
        --dataset zeroshapes_train --output output/pseudo_labels/zeroshapes

By default the names are those of the data set's unseen classes, against all of its names: what is
trained on them is transductive. --words gives other ones. Run the same command again to go on.
"""

from __future__ import annotations

# The command line is read before anything heavy is imported.
__alignzeg_late__ = True

import argparse
import json
import logging
import sys
from typing import Any

from alignzeg.arguments import OneLineParser, number, read_command_line, require_folder


def make(args: argparse.Namespace) -> None:
    """Runs the command and prints its summary."""
    from alignzeg.data.class_names import read_class_list
    from alignzeg.pseudo_labels import Job, make_pseudo_labels
    from alignzeg.pseudo_labels.labeller import RegionSource
    from alignzeg.pseudo_labels.naming import Thresholds

    def given(*names: str) -> dict[str, Any]:
        return {name: getattr(args, name) for name in names if hasattr(args, name)}

    require_folder(args.output, "--output")
    job = Job(
        args.config_file,
        args.dataset,
        args.output,
        tuple(args.opts),
        read_class_list(args.words) if args.words else (),
        RegionSource(args.weights, **given("scale", "min_share")),
        Thresholds(flips=args.flips, **given("confidence", "margin", "min_area")),
    )
    summary = make_pseudo_labels(job, args.jobs)["summary"]
    sys.stdout.write(json.dumps(summary, indent=1) + "\n")


def parser() -> OneLineParser:
    """The command line; a number that is not given is left to the part that it belongs to."""
    result = OneLineParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    own, share = argparse.SUPPRESS, number(float, 0, 1)
    result.add_argument("--config-file", required=True, help="of the VLM, and of --weights")
    result.add_argument("--dataset", required=True, help="such as zeroshapes_train")
    result.add_argument("--output", required=True, help="folder to write")
    result.add_argument("--weights", default="", help="take this model's proposals")
    result.add_argument("--words", help="an open vocabulary: a file, or names with commas")
    result.add_argument("--confidence", type=share, default=own, help="least, 0 to 1")
    result.add_argument("--margin", type=share, default=own, help="over the second name")
    result.add_argument("--min-area", type=number(int, 1), default=own, help="of a region, pixels")
    result.add_argument("--flips", action="store_true", help="the mirror image must agree")
    result.add_argument("--scale", type=float, default=own, help="of superpixels")
    result.add_argument("--min-share", type=share, default=own, help="of a proposal")
    result.add_argument(
        "--jobs", type=number(int, 1), default=1, help="processes; on GPUs, one each"
    )
    result.add_argument("--debug", action="store_true")
    result.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs")
    return result


def main() -> int:
    """Reads the command line and carries it out."""
    args = read_command_line(parser())
    from alignzeg.engine import guarded

    logging.basicConfig(level=logging.WARNING)
    return guarded(lambda: make(args), debug=args.debug)


if __name__ == "__main__":
    sys.exit(main())
