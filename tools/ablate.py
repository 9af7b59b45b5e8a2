#!/usr/bin/env python3
"""The ablation: a list of configs over seeds. Run it again to go on where it stopped."""

from __future__ import annotations

# The command line is read before anything heavy is imported.
__alignzeg_late__ = True

import argparse
import logging
import sys
from pathlib import Path

from alignzeg.ablation import Plan, Row, add_run_arguments, check, run, table
from alignzeg.arguments import OneLineParser, read_command_line, require_folder, resumable

ROOT = Path(__file__).resolve().parent.parent
ZEROSHAPES = [
    f"configs/zeroshapes/{name}.yaml"
    for name in ("baseline", "mrpe", "gepc_fes", "gepc", "alignzeg", "baseline_shift")
]


def words(text: str) -> list[str]:
    """Comma-separated words, so that KEY VALUE pairs may follow."""
    return [part for part in text.split(",") if part]


def ablate(args: argparse.Namespace) -> None:
    """Trains, and prints the table."""
    require_folder(args.output, "--output")
    names = {Path(config).stem for config in args.configs}
    reuse = dict(pair.split("=", 1) for pair in args.reuse if pair.split("=", 1)[0] in names)
    plan = Plan(
        rows=tuple(Row(Path(c).stem, Path(c), reuse.get(Path(c).stem, "")) for c in args.configs),
        seeds=tuple(args.seeds),
        output=Path(args.output),
        opts=tuple(args.opts),
        jobs=args.jobs,
        train_net=ROOT / "tools" / "train_net.py",
    )
    check(plan)
    sys.stdout.write(table(run(plan)) + "\n")


def main() -> int:
    """Parses the command line."""
    parser = OneLineParser(description=__doc__)
    parser.add_argument(
        "--configs", type=words, default=ZEROSHAPES, help="comma-separated, one row each"
    )
    parser.add_argument(
        "--reuse",
        type=words,
        default=["baseline_shift=baseline"],
        metavar="ROW=OTHER",
        help="comma-separated; evaluate ROW with the weights that row OTHER trained",
    )
    add_run_arguments(parser, "output/ablation")
    args = read_command_line(parser)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    return resumable(lambda: ablate(args))


if __name__ == "__main__":
    sys.exit(main())
