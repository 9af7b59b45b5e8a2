"""`alignzeg vocabulary`: what in a list of class names will cost accuracy."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from alignzeg.arguments import (
    OneLineParser,
    add_config_file,
    add_opts,
    command_parser,
    did_you_mean,
    require_file_place,
)

CLEAN, WARNINGS = 0, 1


def parser() -> OneLineParser:
    """The command line."""
    result = command_parser(
        "vocabulary",
        "Warns of duplicate names, near-synonyms, names that are cut off, and clashes of seen and "
        "unseen names. Exit code 0 if there is nothing to warn of, 1 if there is.",
        'alignzeg vocabulary "cat, dog, tree"',
    )
    result.add_argument(
        "names",
        metavar="NAMES",
        # The separator is `alignzeg.structures.SYNONYM_SEPARATOR`.
        help='"cat, dog, tree", a text file with one name a line, or a registered data set; '
        'synonyms are written "sofa; couch", and one name alone "cat,"',
    )
    result.add_argument(
        "--unseen",
        default="",
        metavar="NAMES",
        help="names, or a file of names, of classes without training masks",
    )
    result.add_argument(
        "--sheet",
        default="",
        metavar="FILE",
        help="also draw images of a registered data set beside their labels, with the names, into "
        "this PNG file, to see that every number means its name",
    )
    add_config_file(result)
    add_opts(result, alone=False)
    return result


def main(args: argparse.Namespace) -> int:
    """Prints the warnings.

    Returns:
        0 if there is nothing to warn of, 1 if there is.

    Raises:
        ValueError: if there are no names, or a file or the VLM cannot be read.
    """
    from alignzeg.data.class_names import read_class_list
    from alignzeg.data.lint import lint
    from alignzeg.engine.settings import setup_config
    from alignzeg.registries import build_vlm

    cfg = setup_config(args.config_file, args.opts)
    prompts, unseen = read_names(args.names)
    if args.unseen.strip():
        unseen += read_class_list(args.unseen)
    if args.sheet:
        _draw_sheet(args.names, Path(args.sheet))
    warnings = lint(prompts, unseen, build_vlm(cfg), cfg.ALIGNZEG.DATA.SYNONYM_COSINE)
    for warning in warnings:
        sys.stdout.write(f"{warning}\n")
    counted = f"{len(warnings)} warnings" if warnings else "nothing to warn of"
    sys.stdout.write(f"{len(prompts)} names: {counted}\n")
    return WARNINGS if warnings else CLEAN


def _draw_sheet(dataset: str, path: Path) -> None:
    """Draws the contact sheet of a data set.

    Raises:
        ValueError: if it is none, or the file cannot be a picture.
    """
    from alignzeg.data.labels import known_names, registered_names
    from alignzeg.data.preparation.check import contact_sheet

    if dataset not in registered_names():
        raise ValueError(
            f"--sheet draws a data set, and {dataset!r} is none; {known_names(dataset)}"
        )
    if path.suffix.lower() != ".png":
        raise ValueError(f"--sheet is {str(path)!r}; its name must end in .png")
    require_file_place(path, "--sheet")
    contact_sheet(dataset, path)
    sys.stdout.write(f"{path}\n")


def read_names(source: str) -> tuple[list[str], list[str]]:
    """Prompts and unseen names from a data set's name, a text file, or a list with commas.

    Raises:
        ValueError: as `read_class_list`, or on one word that may be a data set's name misspelled.
    """
    from alignzeg.data.class_names import is_class_file, read_class_list
    from alignzeg.data.labels import get_vocabulary, registered_names
    from alignzeg.data.lint import class_texts

    if source in registered_names():
        return class_texts(get_vocabulary(source))
    if "," not in source and not is_class_file(source):
        hint = did_you_mean(source, registered_names())
        raise ValueError(
            f"{source!r} is no data set, no file and no list; {hint}a list has commas, as in "
            "'cat, dog', also after a single name: 'cat,'"
        )
    return list(read_class_list(source)), []
