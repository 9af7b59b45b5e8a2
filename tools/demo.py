#!/usr/bin/env python
"""Trains the baseline and AlignZeg on the embedded data set and compares them in a report.

Run it again to use what is there, or to go on after Ctrl-C.
"""

from __future__ import annotations

# The command line is read before anything heavy is imported.
__alignzeg_late__ = True

import argparse
import os
import sys
from pathlib import Path

from alignzeg.arguments import (
    OneLineParser,
    number,
    read_command_line,
    require_folder,
    resumable,
)

REPOSITORY = Path(__file__).resolve().parent.parent


def main() -> int:
    """Parses the command line."""
    parser = OneLineParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", default="output/demo", help="folder of everything it makes")
    parser.add_argument(
        "--iterations", type=number(int, 0), default=0, help="of each training; 0: the config"
    )
    parser.add_argument("--fresh", action="store_true", help="forget earlier runs")
    parser.add_argument(
        "--scenes",
        type=number(int, 1),
        nargs=2,
        help="images for training and for validation",
        metavar=("TRAIN", "VAL"),
    )
    parser.add_argument("--size", type=int, default=128, help="side of a scene in pixels")
    parser.add_argument(
        "--jobs",
        type=number(int, 1),
        default=min(2, os.cpu_count() or 1),
        help="trainings at a time, sharing the cores; two with one thread each are faster than "
        "one after the other with two",
    )
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs for both trainings")
    args = read_command_line(parser)
    return resumable(lambda: demo(args))


def demo(args: argparse.Namespace) -> None:
    """Makes the report."""
    require_folder(args.output, "--output")
    from alignzeg.demo import Plan, run_demo

    plan = Plan(
        repository=REPOSITORY,
        output=Path(args.output).absolute(),
        iterations=args.iterations,
        size=args.size,
        jobs=args.jobs,
        opts=tuple(args.opts),
        **({"scenes": tuple(args.scenes)} if args.scenes else {}),
    )
    run_demo(plan, fresh=args.fresh)


if __name__ == "__main__":
    sys.exit(main())
