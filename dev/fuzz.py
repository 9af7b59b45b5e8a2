#!/usr/bin/env python
"""Feeds damaged configs, class lists, label files and checkpoints to the commands.

    python dev/fuzz.py --rounds 2000

Every case must either run or end with one line that begins with "error: ". A traceback, an error
that is not the user's (exit code 1), a crash, or code of the input that was run is a failure: it is
printed, its files are kept, and the exit code is 1. Cases are the same for the same --seed.
"""

from __future__ import annotations

import argparse
import collections
import multiprocessing
import os
import queue
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import yaml
from fuzzing import MAKERS
from fuzzing.common import SMALL, TRAIN, Case, Source, nested
from fuzzing.sandbox import REPOSITORY, Outcome, run_forked, run_started, warm_up

from alignzeg.data.zeroshapes import write_dataset
from alignzeg.progress import tracked

# Of ten cases, how many are of each kind.
SHARES = {"config": 4, "classes": 2, "labels": 2, "checkpoint": 2}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    result.add_argument("--rounds", type=int, default=200, help="number of cases")
    result.add_argument("--first", type=int, default=0, help="number of the first case")
    result.add_argument("--seed", type=int, default=0)
    result.add_argument("--kind", choices=list(MAKERS), help="only this kind")
    result.add_argument("--workers", type=int, default=2, help="cases at a time")
    result.add_argument("--limit", type=float, default=40.0, help="seconds for a case")
    result.add_argument(
        "--started-every", type=int, default=50, help="every n-th case in a new interpreter"
    )
    result.add_argument("--verbose", action="store_true", help="print every case")
    result.add_argument("--keep", default="output/fuzz", help="folder for the cases that failed")
    return result


def prepare(folder: Path) -> Source:
    """Writes the intact inputs: a few scenes, a config, a checkpoint of one step.

    Raises:
        RuntimeError: if the intact inputs do not run.
    """
    write_dataset(folder / "data", "train", 4, size=64, workers=1)
    write_dataset(folder / "data", "val", 2, size=64, workers=1)
    config = folder / "intact.yaml"
    base = {"_BASE_": str(REPOSITORY / "configs/zeroshapes/alignzeg.yaml")}
    cache = {"ALIGNZEG.VLM.CACHE_DIR": str(folder / "text")}
    config.write_text(yaml.safe_dump({**base, **nested({**SMALL, **cache})}))
    argv = ("--config-file", str(config), "OUTPUT_DIR", str(folder / "intact"))
    case = Case("config", "intact", TRAIN, argv, folder / "data")
    place = folder / "first"
    place.mkdir()
    outcome = run_forked(case, place, 300.0)
    if outcome.result != "ran":
        raise RuntimeError(f"the intact inputs do not run: {outcome}")
    bare = folder / "bare.yaml"
    bare.write_text(yaml.safe_dump({"_BASE_": str(config), "DATASETS": {"TRAIN": [], "TEST": []}}))
    image = sorted((folder / "data/zeroshapes/images/val").iterdir())[0]
    return Source(folder / "data", config, bare, folder / "intact" / "model_final.pth", image)


def kind_of(number: int, only: str | None) -> str:
    """The kind of a case."""
    kinds = [kind for kind, share in SHARES.items() for _ in range(share)]
    return only or kinds[number % len(kinds)]


def run_case(
    number: int, args: argparse.Namespace, source: Source, folder: Path
) -> tuple[Case, Outcome]:
    """Makes and runs one case in an empty folder."""
    rng = random.Random(f"{args.seed} {number}")
    case = MAKERS[kind_of(number, args.kind)](source, folder, rng)
    if args.started_every and number % args.started_every == args.started_every - 1:
        return case, run_started(case, folder, 4 * args.limit)
    return case, run_forked(case, folder, args.limit)


def work(
    share: int, args: argparse.Namespace, source: Source, results: multiprocessing.Queue
) -> None:
    """Runs every n-th case and reports each."""
    for number in range(args.first + share, args.first + args.rounds, args.workers):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            try:
                case, outcome = run_case(number, args, source, folder)
            except Exception as error:  # noqa: BLE001 (a fault of a case must not end the others)
                case = Case(kind_of(number, args.kind), "not made", TRAIN, (), folder)
                outcome = Outcome("not made", f"{type(error).__name__}: {error}")
            if outcome.failed:
                kept = Path(args.keep) / f"{number:05}"
                shutil.rmtree(kept, ignore_errors=True)
                shutil.copytree(folder, kept, symlinks=True)
        results.put((number, case, outcome))


def reports(
    results: multiprocessing.Queue, workers: Sequence[multiprocessing.Process], rounds: int
) -> Iterator[tuple[int, Case, Outcome]]:
    """What the workers report, until all cases are done, no worker is left, or Ctrl-C."""
    done = 0
    while done < rounds:
        alive = any(worker.is_alive() for worker in workers)
        try:
            yield results.get(timeout=5)
            done += 1
        except queue.Empty:
            if not alive:
                sys.stdout.write(f"all workers have ended before case {rounds}\n")
                return
        except KeyboardInterrupt:
            # What was found so far is worth a report.
            for worker in workers:
                worker.kill()
            return


def main(argv: list[str] | None = None) -> int:
    """Runs all cases and prints the counts."""
    args = parser().parse_args(argv)
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    warm_up()
    start = time.monotonic()
    counts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    failed = 0
    with tempfile.TemporaryDirectory() as name:
        source = prepare(Path(name))
        # Forked, not spawned: they have everything imported, and so have their own forks.
        context = multiprocessing.get_context("fork")
        results = context.Queue()
        workers = [
            context.Process(target=work, args=(share, args, source, results))
            for share in range(args.workers)
        ]
        for worker in workers:
            worker.start()
        found = reports(results, workers, args.rounds)
        for number, case, outcome in tracked(found, "cases", args.rounds):
            counts[case.kind][outcome.result] += 1
            failed += outcome.failed
            if outcome.failed or args.verbose:
                sys.stdout.write(
                    f"case {number}: {outcome.result}: {case.kind}, {case.what[:200]}\n"
                    f"    {outcome.detail}\n"
                )
                sys.stdout.flush()
        for worker in workers:
            worker.join()
    for kind, results_of in sorted(counts.items()):
        line = ", ".join(f"{result} {count}" for result, count in sorted(results_of.items()))
        sys.stdout.write(f"{kind:10} {results_of.total():5} cases: {line}\n")
    done = sum(results_of.total() for results_of in counts.values())
    sys.stdout.write(f"{done} cases in {time.monotonic() - start:.0f} s, {failed} failures\n")
    return 1 if failed or done < args.rounds else 0


if __name__ == "__main__":
    sys.exit(main())
