"""`python -m alignzeg vocabulary NAMES`: what in a list of class names will cost accuracy."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from alignzeg.arguments import did_you_mean
from alignzeg.command_lines import vocabulary as parser
from alignzeg.data.class_names import is_class_file, read_class_list
from alignzeg.data.labels import get_vocabulary, registered_names
from alignzeg.data.lint import lint, spoken
from alignzeg.engine.settings.reading import setup_config
from alignzeg.registries import build_vlm

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
    args = parser().parse_args(argv)
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
        ValueError: as `read_class_list`, or on one word that may be a data set's name misspelled.
    """
    if source in registered_names():
        return spoken(get_vocabulary(source))
    if "," not in source and not is_class_file(source):
        hint = did_you_mean(source, registered_names())
        raise ValueError(
            f"{source!r} is no data set, no file and no list; {hint}a list has commas, as in "
            "'cat, dog', also after a single name: 'cat,'"
        )
    return list(read_class_list(source)), []
