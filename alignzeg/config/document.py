"""Writes `docs/config.md` from the table of keys: `python -m alignzeg.config.document`."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from alignzeg.config.keys import Key, Section
from alignzeg.config.table import ALIGNZEG

_HEAD = """# Config keys

Made by `python -m alignzeg.config.document`; change `alignzeg/config/` instead.
Detectron2's own keys mean what they mean there.
*Source* says where a default comes from.
*paper* is AlignZeg (arXiv 2404.05667), *ours* a choice of this project.
"""


def document() -> str:
    """The page, in Markdown."""
    return _HEAD + "\n".join(_section("ALIGNZEG", ALIGNZEG)) + "\n"


def _section(name: str, section: Section) -> Iterator[str]:
    keys = {n: entry for n, entry in section.entries.items() if isinstance(entry, Key)}
    yield f"\n## {name}\n\n{section.text}\n"
    if keys:
        yield "| key | default | values | unit | source | |"
        yield "|--|--|--|--|--|--|"
    for key, entry in keys.items():
        values = "" if entry.values is None else str(entry.values)
        cells = (f"`{key}`", f"`{entry.default!r}`", values, entry.unit, entry.source, entry.text)
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
    for below, part in section.entries.items():
        if isinstance(part, Section):
            yield from _section(f"{name}.{below}", part)


if __name__ == "__main__":
    import alignzeg  # noqa: F401 (registers the components)

    sys.stdout.write(document())
