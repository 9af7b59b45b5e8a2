"""The runner: rows in child processes, results.json, and the table docs/benchmarks.md."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from alignzeg.files import atomic_write
from bench.measure import OUTPUT, PINNED, REPOSITORY, Others, Result, Row, calibrate, growth_mib
from bench.report import machine, render

PARTS = ("label_map", "losses", "vlm", "whole", "loader", "processes")
PAGE = REPOSITORY / "docs" / "benchmarks.md"


def rows() -> dict[str, tuple[str, Row]]:
    """Every row by name, with the part that measures it."""
    return {
        name: (part, row)
        for part in PARTS
        for name, row in importlib.import_module(f"bench.{part}").ROWS.items()
    }


def chosen(known: Mapping[str, Any], wanted: Sequence[str]) -> list[str]:
    """The rows of that name, of that part or of that beginning; all if nothing is asked for.

    Raises:
        ValueError: naming what fits no row.
    """
    found = []
    for word in wanted:
        fitting = [n for n in known if n == word or n.startswith(f"{word}/") or known[n][0] == word]
        if not fitting:
            raise ValueError(f"--only {word!r} is no row and no part; --list prints them")
        found += fitting
    return list(dict.fromkeys(found)) if wanted else list(known)


def measure(names: Sequence[str], quick: bool) -> dict[str, dict[str, Any]]:
    """Measures rows in this process; a row that fails says why."""
    known, found = rows(), {}
    for name in names:
        row = known[name][1]
        start = time.perf_counter()
        try:
            result = row.measure(name, row, quick)
        except Exception as error:  # noqa: BLE001 (the other rows are measured all the same)
            traceback.print_exc()
            found[name] = {"error": f"{type(error).__name__}: {error}"}
        else:
            found[name] = as_json(row, result)
        seconds = time.perf_counter() - start
        sys.stdout.write(f"{line(name, row, found[name])}  [{seconds:.0f} s]\n")
        sys.stdout.flush()
    return found


def as_json(row: Row, result: Result) -> dict[str, Any]:
    """What results.json holds for a row."""
    return {
        "ratio": round(result.ratio, 3),
        "goal": round(row.goal, 3),
        "ours": round(result.ours, 3),
        "peer": round(result.peer, 3),
        "unit": row.unit,
        "note": result.note,
    }


def line(name: str, row: Row, found: Mapping[str, Any]) -> str:
    """One row for the terminal."""
    if "error" in found:
        return f"{name:32s} FAILED: {found['error'][:200]}"
    goal = f"goal {row.goal:5.2f}" if row.goal else " " * 10
    return (
        f"{name:32s} {found['ratio']:7.2f}x {goal}  ours {found['ours']:9.1f}  "
        f"peer {found['peer']:9.1f} {row.unit}  {found['note']}"
    )


def child(names: Sequence[str], quick: bool, pinned: bool) -> dict[str, dict[str, Any]]:
    """Measures rows of one part in a process of its own, with or without a pinned allocator."""
    env = {key: value for key, value in os.environ.items() if not key.startswith("MALLOC_")}
    env |= PINNED if pinned else {}
    # Each OpenMP thread on a core of its own, which makes times repeat more often. Rows that start
    # processes are left alone, as these would share a core.
    known = rows()
    several = any(known[name][0] in ("loader", "processes") for name in names)
    env |= {} if several else {"OMP_PROC_BIND": "true"}
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        words = [sys.executable, str(REPOSITORY / "dev" / "bench"), "--into", file.name]
        words += ["--only", *names] + ["--quick"] * quick
        code = subprocess.run(words, env=env, cwd=REPOSITORY).returncode
        text = Path(file.name).read_text(encoding="utf-8")
    if not text:
        return {name: {"error": f"the process ended with exit code {code}"} for name in names}
    return json.loads(text)


def everything(names: Sequence[str], quick: bool) -> dict[str, Any]:
    """Measures rows part by part, with both allocators where that matters."""
    known = rows()
    others, before, found = Others(), calibrate(), {}
    for part in PARTS:
        mine = [name for name in names if known[name][0] == part]
        if not mine:
            continue
        found |= child(mine, quick, pinned=True)
        both = [name for name in mine if known[name][1].allocator]
        if both and not quick:
            for name, result in child(both, quick, pinned=False).items():
                found[name]["default"] = result
    after = calibrate()
    disturbance = {
        "loop_ms": [round(before, 2), round(after, 2)],
        "other_cores": round(others.cores(), 2),
    }
    return {"rows": found, "machine": machine(), "disturbance": disturbance}


def main() -> int:
    """Runs what the command line asks for; exit code 1 if a row failed, 2 for a wrong word."""
    parser = argparse.ArgumentParser(prog="python dev/bench", description="measures against peers")
    parser.add_argument("--only", nargs="+", default=[], metavar="ROW", help="rows or parts")
    parser.add_argument("--quick", action="store_true", help="toy sizes; the ratios mean nothing")
    parser.add_argument("--list", action="store_true", help="print the rows and their goals")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="folder of results.json")
    parser.add_argument("--into", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.quick and args.output == OUTPUT:
        # Toy figures do not take the place of real ones.
        args.output = OUTPUT / "quick"
    known = rows()
    if args.peak:
        name, side = args.peak
        sys.stdout.write(f"{growth_mib(known[name][1], side, args.quick)}\n")
        return 0
    try:
        names = chosen(known, args.only)
    except ValueError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    if args.list:
        for name in names:
            row = known[name][1]
            sys.stdout.write(f"{name:32s} {row.goal:5.2f}  {row.what}\n")
        return 0
    if args.into:
        args.into.write_text(json.dumps(measure(names, args.quick)))
        return 0
    if args.quick:
        # One process for all: toys need no allocator, and imports take longer than they do.
        torch.set_num_threads(1)
        report = {"rows": measure(names, True), "machine": machine(), "disturbance": {}}
    else:
        report = everything(names, False)
    return write(report, args)


def write(report: dict[str, Any], args: argparse.Namespace) -> int:
    """Writes results.json, and the page once every row was measured at its real size."""
    args.output.mkdir(parents=True, exist_ok=True)
    path = args.output / "results.json"
    found = report["rows"]
    # A part that is measured anew takes its place among the other rows.
    kept = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    both = kept | found
    about = args.output / "about.json"
    if kept.keys() - found.keys() and about.is_file():
        # The page tells of the worst that happened beside any of its rows.
        reports = (report, json.loads(about.read_text("utf-8")))
        noises = [one["disturbance"] for one in reports]
        report["disturbance"] = max(noises, key=lambda noise: noise.get("other_cores", 0.0))
    atomic_write(path, json.dumps(both, indent=1) + "\n")
    atomic_write(about, json.dumps(report, indent=1) + "\n")
    known = {name: row for name, (_, row) in rows().items()}
    if not args.quick and args.output == OUTPUT and known.keys() <= both.keys():
        atomic_write(PAGE, render({**report, "rows": both}, known))
    failed = [name for name, result in found.items() if "error" in result]
    below = [
        name
        for name, result in found.items()
        if name not in failed and result["ratio"] < result["goal"]
    ]
    sys.stdout.write(f"{len(found)} rows in {path}; {len(failed)} failed\n")
    if below and not args.quick:
        sys.stdout.write(f"below their goals: {', '.join(below)}\n")
    return 1 if failed else 0
