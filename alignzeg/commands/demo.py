"""`alignzeg demo`: the baseline and AlignZeg on the embedded data set, compared in a report."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from alignzeg.arguments import OneLineParser, add_opts, command_parser, number, require_folder
from alignzeg.commands import find_repository

if TYPE_CHECKING:
    from alignzeg.demo import DataSet

RESUMABLE = True


def parser() -> OneLineParser:
    """The command line."""
    result = command_parser(
        "demo",
        "Trains the baseline and AlignZeg on the embedded data set, zeroshapes, and compares them "
        "in report.html. Run it again to use what is there, or to go on where it stopped.",
        "alignzeg demo --output output/demo",
    )
    result.add_argument(
        "--scenes",
        type=number(int, 1),
        nargs=2,
        help="the numbers of images to train on and to evaluate on",
        metavar=("TRAIN", "VAL"),
    )
    result.add_argument(
        "--size",
        type=number(int, 1),
        default=128,
        metavar="N",
        help="the side of an image in pixels; %(default)s by default",
    )
    add_comparison(result, "output/demo")
    return result


def main(args: argparse.Namespace) -> None:
    """Makes the report.

    Raises:
        ValueError: on input that cannot work.
        TrainingError: if a training fails.
    """
    # Before the imports, which take seconds.
    require_folder(args.output, "--output")
    from alignzeg.demo import Scenes

    counts = {"counts": tuple(args.scenes)} if args.scenes else {}
    compare_on(args, Scenes(**counts, size=args.size))


def add_comparison(result: argparse.ArgumentParser, output: str) -> None:
    """Adds what `alignzeg demo` and `alignzeg photos` share; `output` is the default folder."""
    result.add_argument(
        "--output",
        default=output,
        metavar="FOLDER",
        help="the folder of everything it makes; %(default)s by default",
    )
    result.add_argument(
        "--iterations",
        type=number(int, 0),
        default=0,
        metavar="N",
        help="steps of each training; by default those of the config",
    )
    result.add_argument(
        "--fresh", action="store_true", help="delete earlier runs in the folder, and start anew"
    )
    result.add_argument(
        "--jobs",
        type=number(int, 1),
        default=min(2, os.cpu_count() or 1),
        metavar="N",
        help="trainings at a time, which share the cores; two with one thread each are faster "
        "than one after the other with two",
    )
    add_opts(result)


def compare_on(args: argparse.Namespace, data: DataSet) -> None:
    """Compares the two models on a data set, as the command line says."""
    from alignzeg.demo import Plan, run_plan

    plan = Plan(
        repository=find_repository(),
        output=Path(args.output).expanduser().absolute(),
        data=data,
        iterations=args.iterations,
        jobs=args.jobs,
        opts=tuple(args.opts),
    )
    run_plan(plan, fresh=args.fresh)
