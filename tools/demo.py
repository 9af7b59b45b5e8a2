#!/usr/bin/env python
"""Trains the baseline and AlignZeg on the embedded data set and compares them in a report.

Run it again to use what is there, or to go on after Ctrl-C.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from alignzeg.data.zeroshapes import DEFAULT_COUNTS
from alignzeg.demo import Scenes
from alignzeg.demo.command import add_run_arguments, run_command

REPOSITORY = Path(__file__).resolve().parent.parent


def main() -> int:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--scenes",
        type=int,
        nargs=2,
        default=(DEFAULT_COUNTS["train"], DEFAULT_COUNTS["val"]),
        metavar=("TRAIN", "VAL"),
    )
    parser.add_argument("--size", type=int, default=128, help="side of a scene in pixels")
    add_run_arguments(parser, "output/demo")
    args = parser.parse_args()
    return run_command(args, Scenes(tuple(args.scenes), args.size), REPOSITORY)


if __name__ == "__main__":
    sys.exit(main())
