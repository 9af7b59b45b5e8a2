"""`alignzeg compare`: the first divergence of a run from another."""

from __future__ import annotations

import argparse
import sys

from alignzeg.arguments import OneLineParser, command_parser, number

EQUAL, DIFFERENT = 0, 1
_SHOWN = 20


def parser() -> OneLineParser:
    """The command line."""
    result = command_parser(
        "compare",
        "Names the first divergence of a run from another: config, environment, VLM, data, losses. "
        "Exit code 0 if equal, 1 if different, 2 if a folder cannot be read.",
        "alignzeg compare output/again output/first",
    )
    result.add_argument("run", metavar="RUN", help="a run's folder (OUTPUT_DIR)")
    result.add_argument("reference", metavar="REFERENCE", help="the run's folder to compare with")
    result.add_argument(
        "--tolerance",
        type=number(float, 0),
        default=0.0,
        metavar="T",
        help="relative difference of losses that counts as equal; 0, the default, is to the bit",
    )
    return result


def main(args: argparse.Namespace) -> int:
    """Prints the comparison.

    Returns:
        0 if nothing differs that both recorded, else 1.

    Raises:
        ValueError: if a folder is none of a run.
    """
    from alignzeg.studies.divergence import compare_runs

    parts = compare_runs(args.run, args.reference, args.tolerance)
    for part in parts:
        sys.stdout.write(part.line() + "\n")
        for line in part.differences[:_SHOWN]:
            sys.stdout.write(f"{'':9}{line}\n")
        if len(part.differences) > _SHOWN:
            sys.stdout.write(f"{'':9}and {len(part.differences) - _SHOWN} more\n")
    first = next((part for part in parts if part.differences), None)
    if first is None:
        sys.stdout.write("no divergence in what both runs recorded\n")
        return EQUAL
    sys.stdout.write(f"first divergence: {first.name}: {first.differences[0]}\n")
    return DIFFERENT
