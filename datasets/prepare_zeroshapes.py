"""Write the embedded data set zeroshapes: python datasets/prepare_zeroshapes.py [--root DIR]."""

from __future__ import annotations

# The command line is read before anything heavy is imported.
__alignzeg_late__ = True

import os
import sys

from alignzeg.arguments import OneLineParser, number, read_command_line, require_folder


def main() -> int:
    """Reads the command line and writes the splits; the exit code."""
    parser = OneLineParser(description=__doc__)
    default_root = os.environ.get("DETECTRON2_DATASETS", "datasets")
    parser.add_argument("--root", default=default_root, help="default: $DETECTRON2_DATASETS")
    count = number(int, 1)
    parser.add_argument("--train", type=count, help="scenes")
    parser.add_argument("--val", type=count, help="scenes")
    parser.add_argument("--calib", type=count, help="scenes")
    parser.add_argument("--size", type=count, default=128, help="side in pixels")
    parser.add_argument("--seed", type=number(int, 0), default=0)
    args = read_command_line(parser)
    from alignzeg.data.zeroshapes import DEFAULT_COUNTS, write_dataset

    where = os.path.join(args.root, "zeroshapes")
    try:
        require_folder(args.root, "--root")
        for split, usual in DEFAULT_COUNTS.items():
            wanted = getattr(args, split) or usual
            written = write_dataset(args.root, split, wanted, args.size, args.seed)
            sys.stdout.write(
                f"zeroshapes {split}: {wanted} scenes in {where}, {written} written now\n"
            )
    except (ValueError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
