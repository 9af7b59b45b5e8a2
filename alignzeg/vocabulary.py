"""`python -m alignzeg vocabulary NAMES`: what in a list of class names will cost accuracy."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from alignzeg.arguments import OneLineParser
from alignzeg.data.class_names import read_class_list
from alignzeg.data.labels import get_vocabulary, registered_names
from alignzeg.data.lint import lint, spoken
from alignzeg.engine.settings.reading import setup_config
from alignzeg.registries import build_vlm
from alignzeg.structures import SYNONYM_SEPARATOR

CLEAN, WARNINGS = 0, 1


def main(argv: Sequence[str]) -> int:
    """Carries out the command.

    Args:
        argv: words after the command.

    Returns:
        0 if there is nothing to say, 1 if there is.

    Raises:
        ValueError: if there are no names, or a file or the VLM cannot be read.
    """
    parser = OneLineParser(
        prog="python -m alignzeg vocabulary",
        description="Warns of duplicate names, near-synonyms, names that are cut off, and clashes "
        "of seen and unseen names. Exit code 0 if there is nothing to say, 1 if there is.",
    )
    parser.add_argument(
        "names",
        help='"cat, dog, tree", a text file with one name a line, or a registered data set; '
        f'synonyms are written "sofa{SYNONYM_SEPARATOR}couch"',
    )
    parser.add_argument(
        "--unseen", default="", help="names or a file, of classes without training masks"
    )
    parser.add_argument("--config-file", default="", help="for the VLM that reads the names")
    parser.add_argument(
        "--opts", nargs="+", default=[], metavar="KEY VALUE", help="over the config, in turn"
    )
    args = parser.parse_args(argv)
    cfg = setup_config(args.config_file, args.opts)
    prompts, unseen = read_names(args.names)
    if args.unseen.strip():
        unseen += read_class_list(args.unseen)
    warnings = lint(prompts, unseen, build_vlm(cfg), cfg.ALIGNZEG.DATA.SYNONYM_COSINE)
    for warning in warnings:
        sys.stdout.write(f"{warning}\n")
    counted = f"{len(warnings)} warnings" if warnings else "nothing to warn of"
    sys.stdout.write(f"{len(prompts)} names: {counted}\n")
    return WARNINGS if warnings else CLEAN


def read_names(source: str) -> tuple[list[str], list[str]]:
    """Prompts and unseen names from a data set's name, a text file, or a list with commas.

    Raises:
        ValueError: as `read_class_list`.
    """
    if source in registered_names():
        return spoken(get_vocabulary(source))
    return list(read_class_list(source)), []
