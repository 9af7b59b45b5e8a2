#!/usr/bin/env python
"""Trains the baseline and AlignZeg on the embedded data set and compares them in a report.

Run it again to use what is there, or to go on after Ctrl-C.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from alignzeg.arguments import resumable
from alignzeg.data.zeroshapes import DEFAULT_COUNTS
from alignzeg.demo import Plan, run_demo

REPOSITORY = Path(__file__).resolve().parent.parent


def main() -> int:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", default="output/demo", help="folder of everything it makes")
    parser.add_argument("--iterations", type=int, default=0, help="of each training; 0: the config")
    parser.add_argument("--fresh", action="store_true", help="forget earlier runs")
    parser.add_argument(
        "--scenes",
        type=int,
        nargs=2,
        default=(DEFAULT_COUNTS["train"], DEFAULT_COUNTS["val"]),
        metavar=("TRAIN", "VAL"),
    )
    parser.add_argument("--size", type=int, default=128, help="side of a scene in pixels")
    parser.add_argument(
        "--jobs",
        type=int,
        default=min(2, os.cpu_count() or 1),
        help="trainings at a time, sharing the cores; two with one thread each are faster than "
        "one after the other with two",
    )
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs for both trainings")
    args = parser.parse_args()
    plan = Plan(
        repository=REPOSITORY,
        output=Path(args.output).absolute(),
        iterations=args.iterations,
        scenes=tuple(args.scenes),
        size=args.size,
        jobs=max(1, args.jobs),
        opts=tuple(args.opts),
    )
    return resumable(lambda: run_demo(plan, fresh=args.fresh))


if __name__ == "__main__":
    sys.exit(main())
