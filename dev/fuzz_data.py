#!/usr/bin/env python
"""Feeds class lists, label files, folders and images of every shape to what reads them.

    python dev/fuzz_data.py --rounds 1000

Every case must be read right or be refused by one line (a ValueError). What is right is known from
how the case was made, and compared with what numpy, os.walk and the str methods say, not with this
project's own reading. Cases are the same for the same --seed; those that fail are printed, and the
exit code is 1 then.
"""

from __future__ import annotations

import argparse
import collections
import random
import sys
import tempfile
import time
from pathlib import Path

from fuzzing.data_files import folder_case, label_case
from fuzzing.data_images import image_case
from fuzzing.data_lists import list_case

from alignzeg.progress import tracked

MAKERS = {"list": list_case, "label": label_case, "folder": folder_case, "image": image_case}


def judge(kind: str, seed: str, folder: Path) -> tuple[str, str]:
    """Makes and reads one case.

    Args:
        kind: of `MAKERS`.
        seed: decides everything else.
        folder: an empty one, for its files.

    Returns:
        "right", "refused" or one of the failures "wrong" (something else was read), "taken" (it
        should have been refused), "lines" (refused by several lines), "error" (another error); and
        what was tried.
    """
    case = MAKERS[kind](folder, random.Random(seed))
    try:
        found = case.read()
    except ValueError as error:
        text = str(error)
        result = "refused" if case.expected is None else "wrong"
        if "\n" in text or not text:
            result = "lines"
        return result, f"{case.what}: {text}"
    except Exception as error:  # noqa: BLE001 (any other error is what is looked for)
        return "error", f"{case.what}: {type(error).__name__}: {error}"
    if case.expected is None:
        return "taken", f"{case.what}: read as {str(found)[:200]}"
    fine = case.same(found, case.expected)
    return "right" if fine else "wrong", f"{case.what}: {str(found)[:200]}"


def main(argv: list[str] | None = None) -> int:
    """Runs all cases and prints the counts."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=1000, help="number of cases")
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", choices=list(MAKERS), help="only this kind")
    parser.add_argument("--verbose", action="store_true", help="print every case")
    args = parser.parse_args(argv)
    kinds = [args.kind] if args.kind else list(MAKERS)
    counts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    start = time.monotonic()
    numbers = range(args.first, args.first + args.rounds)
    for number in tracked(numbers, "cases", args.rounds):
        kind = kinds[number % len(kinds)]
        with tempfile.TemporaryDirectory() as name:
            result, detail = judge(kind, f"{args.seed} {number}", Path(name))
        counts[kind][result] += 1
        if args.verbose or result not in ("right", "refused"):
            sys.stdout.write(f"case {number}: {result}: {kind}, {detail}\n")
    failed = 0
    for kind, found in sorted(counts.items()):
        failed += sum(found.values()) - found["right"] - found["refused"]
        line = ", ".join(f"{result} {count}" for result, count in sorted(found.items()) if count)
        sys.stdout.write(f"{kind:10} {sum(found.values()):5} cases: {line}\n")
    seconds = time.monotonic() - start
    sys.stdout.write(f"{args.rounds} cases in {seconds:.0f} s, {failed} failures\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
