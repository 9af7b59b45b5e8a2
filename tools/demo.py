#!/usr/bin/env python
"""Trains the baseline and AlignZeg on the embedded data set and compares them in a report.

Run it again to use what is there, or to go on after Ctrl-C.
"""

from __future__ import annotations

# The command line is read before anything heavy is imported.
__alignzeg_late__ = True

import argparse
import sys
from pathlib import Path

from alignzeg.arguments import number, read_command_line, require_folder, resumable
from alignzeg.command_lines import comparison

REPOSITORY = Path(__file__).resolve().parent.parent


def main() -> int:
    """Parses the command line."""
    parser = comparison(__doc__.splitlines()[0], "output/demo")
    parser.add_argument(
        "--scenes",
        type=number(int, 1),
        nargs=2,
        help="images for training and for validation",
        metavar=("TRAIN", "VAL"),
    )
    parser.add_argument(
        "--size", type=number(int, 1), default=128, help="side of a scene in pixels"
    )
    args = read_command_line(parser)
    return resumable(lambda: demo(args))


def demo(args: argparse.Namespace) -> None:
    """Makes the report."""
    # Before the imports, which take seconds.
    require_folder(args.output, "--output")
    from alignzeg.demo import Scenes
    from alignzeg.demo.command import run_command

    counts = {"counts": tuple(args.scenes)} if args.scenes else {}
    run_command(args, Scenes(**counts, size=args.size), REPOSITORY)


if __name__ == "__main__":
    sys.exit(main())
