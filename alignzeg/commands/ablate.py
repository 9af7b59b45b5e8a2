"""`alignzeg ablate`: a list of configs over seeds."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from alignzeg.arguments import OneLineParser, add_opts, command_parser, number, require_folder
from alignzeg.studies.ablation import Plan, Row, check, run, table

RESUMABLE = True
ZEROSHAPES = [
    f"configs/zeroshapes/{name}.yaml"
    for name in ("baseline", "mrpe", "gepc_fes", "gepc", "alignzeg", "baseline_shift")
]


def whole_numbers(text: str) -> list[int]:
    """Different whole numbers from 0, separated by commas, so that KEY VALUE pairs may follow."""
    try:
        values = [int(part) for part in text.split(",")]
    except ValueError:
        values = [-1]
    # Detectron2 takes a negative seed for a random one.
    if min(values) < 0:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no list of whole numbers from 0, separated by commas, such as 1,2,3"
        )
    if len(set(values)) < len(values):
        raise argparse.ArgumentTypeError(f"{text!r} has a number twice; give each once")
    return values


def words(text: str) -> list[str]:
    """Words separated by commas."""
    return [part for part in text.split(",") if part]


def parser() -> OneLineParser:
    """The command line."""
    result = command_parser(
        "ablate",
        "Trains and evaluates each of a list of configs with each of a list of seeds, and prints a "
        "table. Run it again to go on where it stopped.",
        "alignzeg ablate --configs configs/zeroshapes/baseline.yaml,configs/zeroshapes/"
        "alignzeg.yaml --seeds 4,5,6",
    )
    result.add_argument(
        "--configs",
        type=words,
        default=ZEROSHAPES,
        metavar="FILES",
        help="config files separated by commas, one row each; by default the ablation of AlignZeg "
        "on zeroshapes",
    )
    result.add_argument(
        "--reuse",
        type=words,
        default=None,
        metavar="ROW=OTHER",
        help="evaluate ROW with the weights that row OTHER trained; several pairs are separated "
        "by commas; baseline_shift=baseline by default",
    )
    add_run_arguments(result, "output/ablation")
    return result


def add_run_arguments(result: argparse.ArgumentParser, output: str) -> None:
    """Adds what every command takes that runs a plan; `output` is the default folder."""
    result.add_argument(
        "--seeds",
        type=whole_numbers,
        default="1,2,3",
        metavar="LIST",
        help="seeds separated by commas; %(default)s by default",
    )
    result.add_argument(
        "--output",
        default=output,
        metavar="FOLDER",
        help="the folder of all runs; %(default)s by default",
    )
    result.add_argument(
        "--jobs",
        type=number(int, 1),
        default=1,
        metavar="N",
        help="runs at a time, which share the cores; %(default)s by default",
    )
    add_opts(result)


def checked_plan(args: argparse.Namespace, rows: Sequence[Row]) -> Plan:
    """The plan of a command line with `add_run_arguments`, checked before anything runs.

    Raises:
        ValueError: if the configs, seeds or KEY VALUE pairs cannot work.
    """
    from alignzeg.engine import setup_config

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    require_folder(args.output, "--output")
    plan = Plan(tuple(rows), tuple(args.seeds), Path(args.output), tuple(args.opts), args.jobs)
    check(plan)
    for row in plan.rows if plan.opts else ():
        setup_config(row.config, plan.opts)
    return plan


def read_reuse(pairs: Sequence[str] | None, names: Sequence[str]) -> dict[str, str]:
    """Row -> the row whose weights it takes.

    Args:
        pairs: ROW=OTHER each; None: the shifted baseline takes those of the baseline, where both
            are among the rows.
        names: of the rows.

    Raises:
        ValueError: on what is no such pair, or names no row.
    """
    if pairs is None:
        return {"baseline_shift": "baseline"} if "baseline_shift" in names else {}
    result = {}
    for pair in pairs:
        row, equals, other = pair.partition("=")
        if not equals or row not in names:
            raise ValueError(
                f"--reuse has {pair!r}; give ROW=OTHER, where both are among the rows {names}"
            )
        result[row] = other
    return result


def main(args: argparse.Namespace) -> None:
    """Trains, and prints the table.

    Raises:
        ValueError: if the configs or seeds cannot work.
        TrainingError: if a training fails.
    """
    reuse = read_reuse(args.reuse, [Path(config).stem for config in args.configs])
    rows = [Row(Path(c).stem, Path(c), reuse.get(Path(c).stem, "")) for c in args.configs]
    sys.stdout.write(table(run(checked_plan(args, rows))) + "\n")
