"""Write the embedded data set zeroshapes: python datasets/prepare_zeroshapes.py [--root DIR]."""

from __future__ import annotations

import argparse
import os
import sys

from alignzeg.data.zeroshapes import DEFAULT_COUNTS, write_dataset


def main() -> int:
    """Parse the command line and write the splits."""
    parser = argparse.ArgumentParser(description=__doc__)
    default_root = os.environ.get("DETECTRON2_DATASETS", "datasets")
    parser.add_argument("--root", default=default_root, help="default: $DETECTRON2_DATASETS")
    parser.add_argument("--train", type=int, default=DEFAULT_COUNTS["train"], help="scenes")
    parser.add_argument("--val", type=int, default=DEFAULT_COUNTS["val"], help="scenes")
    parser.add_argument("--calib", type=int, default=DEFAULT_COUNTS["calib"], help="scenes")
    parser.add_argument("--size", type=int, default=128, help="side in pixels")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    for split in DEFAULT_COUNTS:
        count = getattr(arguments, split)
        try:
            written = write_dataset(arguments.root, split, count, arguments.size, arguments.seed)
        except ValueError as error:
            parser.error(str(error))
        where = os.path.join(arguments.root, "zeroshapes")
        sys.stdout.write(f"zeroshapes {split}: {count} scenes in {where}, {written} written now\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
