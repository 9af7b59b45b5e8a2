"""What `tools/demo.py` and `tools/photos.py` do with their command line."""

from __future__ import annotations

import argparse
from pathlib import Path

from alignzeg.demo.datasets import DataSet
from alignzeg.demo.plan import Plan
from alignzeg.demo.run import run_plan


def run_command(args: argparse.Namespace, data: DataSet, repository: Path) -> None:
    """Does what the command line of `alignzeg.command_lines.comparison` says."""
    plan = Plan(
        repository=repository,
        output=Path(args.output).expanduser().absolute(),
        data=data,
        iterations=args.iterations,
        jobs=args.jobs,
        opts=tuple(args.opts),
    )
    run_plan(plan, fresh=args.fresh)
