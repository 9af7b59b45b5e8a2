"""Train the bundled tiny CLIP, or print its figures with --eval-only."""

from __future__ import annotations

# The command line is read before anything heavy is imported.
__alignzeg_late__ = True

import argparse
import dataclasses
import json
import logging
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from tiny_clip.recipe import Recipe

import alignzeg
from alignzeg.arguments import (
    OneLineParser,
    read_command_line,
    require_file_place,
)
from alignzeg.commands import guarded

ASSETS = Path(alignzeg.__file__).parent / "assets"


def main() -> int:
    """Parse the recipe and run it, or judge what is there."""
    parser = OneLineParser(description=__doc__)
    fields = dataclasses.fields(Recipe)
    for field in fields:
        kind = type(field.default)
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=kind, default=field.default)
    parser.add_argument("--output", type=Path, default=ASSETS / "alignzeg-tiny.safetensors")
    parser.add_argument("--save-every", type=int, default=500, help="steps between evaluations")
    parser.add_argument("--eval-only", action="store_true", help="judge --weights, train nothing")
    parser.add_argument("--weights", default="", help="for --eval-only; default: the bundled ones")
    parser.add_argument("--scenes", type=int, default=200, help="for --eval-only")
    arguments = read_command_line(parser)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    return guarded(lambda: run(arguments, fields), resumable=True)


def run(arguments: argparse.Namespace, fields: Sequence[dataclasses.Field]) -> None:
    """Does what the command line says."""
    require_file_place(arguments.output, "--output")
    from tiny_clip.evaluation import evaluate
    from tiny_clip.training import Job, train

    from alignzeg import registration  # noqa: F401 (what a VLM is built from)

    if arguments.eval_only:
        figures = evaluate(arguments.weights, arguments.scenes, arguments.region_blocks)
        sys.stdout.write(json.dumps(figures, indent=2) + "\n")
        return
    recipe = Recipe(**{field.name: getattr(arguments, field.name) for field in fields})
    command = "python " + shlex.join(sys.argv)
    train(Job(recipe, command, arguments.output, arguments.save_every))


if __name__ == "__main__":
    sys.exit(main())
