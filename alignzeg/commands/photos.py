"""`alignzeg photos`: the baseline and AlignZeg on photographs, compared in a report."""

from __future__ import annotations

import argparse

from alignzeg.arguments import OneLineParser, command_parser, require_folder
from alignzeg.commands.demo import add_comparison, compare_on

RESUMABLE = True


def parser() -> OneLineParser:
    """The command line."""
    result = command_parser(
        "photos",
        "Trains the baseline and AlignZeg on photographs, MSRC-21, and compares them in "
        "report.html. Run it again to use what is there, or to go on where it stopped.",
        "alignzeg photos --data MSRC_ObjCategImageDatabase_v2",
    )
    result.add_argument(
        "--data", default="", metavar="FOLDER", help="the folder with MSRC v2, unpacked"
    )
    result.add_argument(
        "--partial",
        action="store_true",
        help="accept that images of the shipped lists are missing",
    )
    add_comparison(result, "output/photos")
    return result


def main(args: argparse.Namespace) -> None:
    """Makes the report.

    Raises:
        ValueError: on input that cannot work, such as another folder.
        TrainingError: if a training fails.
    """
    # Before the imports, which take seconds.
    require_folder(args.output, "--output")
    from alignzeg.demo import Photographs

    compare_on(args, Photographs(args.data, args.partial))
