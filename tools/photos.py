#!/usr/bin/env python
"""Trains the baseline and AlignZeg on photographs (MSRC-21) and compares them in a report.

Run it again to use what is there, or to go on after Ctrl-C.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from alignzeg.demo import Photographs
from alignzeg.demo.command import add_run_arguments, run_command

REPOSITORY = Path(__file__).resolve().parent.parent


def main() -> int:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="", metavar="FOLDER", help="MSRC v2, unpacked")
    parser.add_argument(
        "--partial", action="store_true", help="accept that images of the shipped lists lack"
    )
    add_run_arguments(parser, "output/photos")
    args = parser.parse_args()
    return run_command(args, Photographs(args.data, args.partial), REPOSITORY)


if __name__ == "__main__":
    sys.exit(main())
