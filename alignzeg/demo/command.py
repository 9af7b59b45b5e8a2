"""The command line that `tools/demo.py` and `tools/photos.py` share."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from alignzeg.arguments import resumable
from alignzeg.demo.datasets import DataSet
from alignzeg.demo.plan import Plan
from alignzeg.demo.run import run_plan


def add_run_arguments(parser: argparse.ArgumentParser, output: str) -> None:
    """Adds what does not depend on the data set; `output` is the default folder."""
    parser.add_argument("--output", default=output, help="folder of everything it makes")
    parser.add_argument("--iterations", type=int, default=0, help="of each training; 0: the config")
    parser.add_argument("--fresh", action="store_true", help="forget earlier runs")
    parser.add_argument(
        "--jobs",
        type=int,
        default=min(2, os.cpu_count() or 1),
        help="trainings at a time, sharing the cores; two with one thread each are faster than "
        "one after the other with two",
    )
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs for both trainings")


def run_command(args: argparse.Namespace, data: DataSet, repository: Path) -> int:
    """Does what the command line says; returns the exit code."""
    plan = Plan(
        repository=repository,
        output=Path(args.output).absolute(),
        data=data,
        iterations=args.iterations,
        jobs=max(1, args.jobs),
        opts=tuple(args.opts),
    )
    return resumable(lambda: run_plan(plan, fresh=args.fresh))
