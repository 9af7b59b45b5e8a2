#!/usr/bin/env python
"""Trains the baseline and AlignZeg on photographs (MSRC-21) and compares them in a report.

Run it again to use what is there, or to go on after Ctrl-C.
"""

from __future__ import annotations

# The command line is read before anything heavy is imported.
__alignzeg_late__ = True

import argparse
import sys
from pathlib import Path

from alignzeg.arguments import read_command_line, require_folder, resumable
from alignzeg.command_lines import comparison

REPOSITORY = Path(__file__).resolve().parent.parent


def main() -> int:
    """Parses the command line."""
    parser = comparison(__doc__.splitlines()[0], "output/photos")
    parser.add_argument("--data", default="", metavar="FOLDER", help="MSRC v2, unpacked")
    parser.add_argument(
        "--partial", action="store_true", help="accept that images of the shipped lists lack"
    )
    args = read_command_line(parser)
    return resumable(lambda: photos(args))


def photos(args: argparse.Namespace) -> None:
    """Makes the report."""
    # Before the imports, which take seconds.
    require_folder(args.output, "--output")
    from alignzeg.demo import Photographs
    from alignzeg.demo.command import run_command

    run_command(args, Photographs(args.data, args.partial), REPOSITORY)


if __name__ == "__main__":
    sys.exit(main())
