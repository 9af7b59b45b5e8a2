#!/usr/bin/env python3
"""ZS3Net and recursive training for several numbers of unseen classes, K; resumable.

Every K takes the same configs: its data sets are given as KEY VALUE pairs.
"""

from __future__ import annotations

# The command line is read before anything heavy is imported.
__alignzeg_late__ = True

import argparse
import logging
import sys
from pathlib import Path

from alignzeg import ksplits
from alignzeg.ablation import Plan, add_run_arguments, check, numbers, run
from alignzeg.arguments import OneLineParser, read_command_line, require_folder, resumable

ROOT = Path(__file__).resolve().parent.parent


def compare(args: argparse.Namespace) -> None:
    """Trains, and prints the table."""
    require_folder(args.output, "--output")
    splits = ksplits.Splits(ROOT / "configs" / args.benchmark, args.encoder, args.dataset)
    plan = Plan(
        rows=ksplits.rows(splits, args.splits, args.base),
        seeds=tuple(args.seeds),
        output=Path(args.output),
        opts=tuple(args.opts),
        jobs=args.jobs,
        train_net=ROOT / "tools" / "train_net.py",
    )
    check(plan)
    run(plan)
    folders = {
        split: {
            method: [plan.folder(splits.name(split, method.config), seed) for seed in plan.seeds]
            for method in splits.methods
        }
        for split in args.splits
    }
    sys.stdout.write(ksplits.table(folders) + "\n")


def main() -> int:
    """Parses the command line."""
    parser = OneLineParser(description=__doc__)
    parser.add_argument("--benchmark", default="zeroshapes", help="a folder of configs")
    parser.add_argument("--encoder", default="", help="end of their names, such as R101")
    parser.add_argument(
        "--dataset", default="", help="its data set, such as context60; default: the folder's name"
    )
    parser.add_argument("--splits", type=numbers, default="2,4,6,8,10", help="comma-separated K")
    parser.add_argument(
        "--base", type=int, default=0, help="K of the one pixel network for all; 0: one for each"
    )
    add_run_arguments(parser, "output/ksplits")
    args = read_command_line(parser)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    return resumable(lambda: compare(args))


if __name__ == "__main__":
    sys.exit(main())
