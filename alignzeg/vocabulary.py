"""`python -m alignzeg vocabulary NAMES`: what in a list of class names will cost accuracy."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from alignzeg.arguments import did_you_mean
from alignzeg.command_lines import vocabulary as parser
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
    unseen = [*unseen, *_split(args.unseen)]
    warnings = lint(prompts, unseen, build_vlm(cfg), cfg.ALIGNZEG.DATA.SYNONYM_COSINE)
    for warning in warnings:
        sys.stdout.write(f"{warning}\n")
    counted = f"{len(warnings)} warnings" if warnings else "nothing to warn of"
    sys.stdout.write(f"{len(prompts)} names: {counted}\n")
    return WARNINGS if warnings else CLEAN


def read_names(source: str) -> tuple[list[str], list[str]]:
    """Prompts and unseen names from a data set's name, a text file, or a list with commas.

    Raises:
        ValueError: if there is no name in it, or the file cannot be read.
    """
    if source in registered_names():
        return spoken(get_vocabulary(source))
    path = Path(source)
    if "," not in source and path.suffix != ".txt" and not path.is_file():
        hint = did_you_mean(source, registered_names())
        raise ValueError(
            f"{source!r} is no data set, no file and no list; {hint}a list has commas, as in "
            "'cat, dog', also after a single name: 'cat,'"
        )
    if path.suffix == ".txt" or path.is_file():
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"cannot read class names from {source}: {error}") from error
        names = [line.strip() for line in lines if line.strip()]
    else:
        names = _split(source)
    if not names:
        raise ValueError(f'no class names in {source!r}; give them as "cat, dog, tree"')
    return names, []


def _split(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]
