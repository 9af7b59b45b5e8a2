"""The command line that all scripts of `datasets/` share."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from alignzeg.data.catalog import ROOT_VARIABLE, dataset_root, register_all
from alignzeg.data.preparation.archives import unpack
from alignzeg.data.preparation.check import check, contact_sheet
from alignzeg.data.preparation.recipe import Plan, Recipe, Request
from alignzeg.data.preparation.work import pending, run_tasks

INTERRUPTED = 130


def prepare(recipe: Recipe, arguments: Sequence[str] | None = None) -> int:
    """Parses the command line and does what it says.

    Returns:
        The exit code: 0 done, 1 something is wrong or missing, 2 a wrong command line, 130 stopped.
    """
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    options = _parser(recipe).parse_args(arguments)
    try:
        return _prepare(recipe, options)
    except ValueError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("stopped; the files written so far are whole. Run it again to go on.\n")
        return INTERRUPTED


def _parser(recipe: Recipe) -> argparse.ArgumentParser:
    sources = "\n".join(f"  {archive.name}\n    {archive.source}" for archive in recipe.archives)
    parser = argparse.ArgumentParser(
        description=f"Prepare {recipe.about}.",
        epilog=f"official archives:\n{sources}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--root", help=f"data root; default: ${ROOT_VARIABLE}, else ./datasets")
    parser.add_argument(
        "--archives", metavar="FOLDER", help="unpack what is needed from here first"
    )
    parser.add_argument(
        "--splits", nargs="+", choices=recipe.splits, default=recipe.splits, help="default: all"
    )
    if recipe.full_benchmarks:
        parser.add_argument(
            "--full", action="store_true", help=f"also {', '.join(recipe.full_benchmarks)}"
        )
    if recipe.takes_source:
        parser.add_argument("--source", metavar="FOLDER", help="unpacked files, if not in the root")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done")
    parser.add_argument(
        "--check", action="store_true", help="check the result and draw a contact sheet"
    )
    parser.add_argument(
        "--partial", action="store_true", help="accept that images of the official lists lack"
    )
    return parser


def _prepare(recipe: Recipe, options: argparse.Namespace) -> int:
    if options.workers < 1:
        raise ValueError(f"--workers is {options.workers}; give at least 1")
    root = Path(options.root).expanduser().absolute() if options.root else dataset_root()[0]
    source = getattr(options, "source", None)
    script = f"python datasets/prepare_{recipe.name}.py"
    request = Request(
        root=root,
        splits=tuple(options.splits),
        full=getattr(options, "full", False),
        command=f"{script} --root {root}" if options.root else script,
        source=Path(source).expanduser().absolute() if source else None,
    )
    if options.archives:
        _unpack(recipe, Path(options.archives).expanduser(), root, options.dry_run)
        if options.dry_run:
            sys.stdout.write("the label files to write are known after that\n")
            return 0
    if options.check:
        return _check(recipe, request, options.workers, options.partial)
    plan = recipe.plan(request)
    report_lacking(plan, options.partial)
    todo = len(pending(plan.tasks))
    if options.dry_run:
        sys.stdout.write(f"{recipe.name}: {todo} of {len(plan.tasks)} files to write in {root}\n")
        return 0
    written = run_tasks(plan.tasks, options.workers, recipe.name)
    if plan.tasks:
        message = f"{len(plan.tasks)} files in {root}, {written} written now"
    else:
        message = f"the official files in {root} are used as they are"
    sys.stdout.write(f"{recipe.name}: {message}\nlook at them: {request.command} --check\n")
    return 0


def _unpack(recipe: Recipe, downloads: Path, root: Path, dry: bool) -> None:
    here = [archive for archive in recipe.archives if (downloads / archive.name).is_file()]
    if not here:
        names = ", ".join(archive.name for archive in recipe.archives)
        raise ValueError(f"{downloads} holds none of {names}")
    for archive in here:
        if dry:
            sys.stdout.write(f"would unpack {archive.name} into {root / archive.folder}\n")
        else:
            sys.stdout.write(f"{archive.name}: {unpack(archive, downloads, root)} files unpacked\n")


def report_lacking(plan: Plan, partial: bool) -> None:
    """Warns of images that the sources lack, where that is accepted.

    Raises:
        ValueError: where it is not.
    """
    if not plan.lacking:
        return
    text = f"no label source for {len(plan.lacking)} listed images, as {plan.lacking[0]}"
    if not partial:
        raise ValueError(f"{text}; unpack the archive anew, or do without them: --partial")
    logging.getLogger(__name__).warning("%s", text)


def _check(recipe: Recipe, request: Request, workers: int, partial: bool) -> int:
    os.environ[ROOT_VARIABLE] = str(request.root)  # workers look there too
    registered = set(register_all())
    benchmarks = (*recipe.benchmarks, *(recipe.full_benchmarks if request.full else ()))
    names = [f"{benchmark}_{split}" for benchmark in benchmarks for split in request.splits]
    bad = False
    for name in (name for name in names if name in registered):
        found = check(name, workers, counts=not partial)
        bad |= bool(found.problems)
        sys.stdout.write("\n".join(found.lines()) + "\n")
        if found.pixels:
            sheet = request.root / "contact_sheets" / f"{name}.png"
            try:
                contact_sheet(name, sheet)
                sys.stdout.write(f"  look at {sheet}\n")
            except ValueError as error:
                sys.stdout.write(f"  no contact sheet: {error}\n")
    return int(bad)
