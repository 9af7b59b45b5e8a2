"""Fonts for names in any alphabet, as far as the machine has one."""

from __future__ import annotations

import logging
import os
from functools import lru_cache
from typing import Any

from matplotlib import font_manager
from matplotlib.ft2font import FT2Font
from PIL import ImageFont

logger = logging.getLogger(__name__)

# Environment variable that names a font file for names which the usual one cannot show.
FONT_VARIABLE = "ALIGNZEG_FONT"


class LegibleFont(ImageFont.FreeTypeFont):
    """A font that draws code points, such as U+8349, for letters that it has not."""

    def getmask2(self, text: Any, *args: Any, **options: Any) -> Any:
        """As Pillow's, which drawing goes through."""
        return super().getmask2(self.spelled(text), *args, **options)

    def getbbox(self, text: Any, *args: Any, **options: Any) -> Any:
        """As Pillow's."""
        return super().getbbox(self.spelled(text), *args, **options)

    def getlength(self, text: Any, *args: Any, **options: Any) -> float:
        """As Pillow's."""
        return super().getlength(self.spelled(text), *args, **options)

    def spelled(self, text: str) -> str:
        """The text with code points for letters that this font has not."""
        lacking = {letter for letter in text if letter not in _letters(str(self.path))}
        if not lacking:
            return text
        _hint("".join(sorted(lacking)))
        return "".join(f"U+{ord(c):04X} " if c in lacking else c for c in text)


@lru_cache(maxsize=64)
def font(size: int, text: str = "") -> LegibleFont:
    """A font that has the letters of a text, in pixels.

    That is DejaVu Sans, which Matplotlib ships, then the file that ALIGNZEG_FONT names, then any
    font of the system; DejaVu Sans again where none has them.
    """
    return LegibleFont(_file_for(frozenset(text)) or _usual(), size)


@lru_cache(maxsize=256)
def _hint(letters: str) -> None:
    logger.warning(
        "no font here has the letters %r, so their code points are drawn; give a font file that "
        "has them, such as NotoSansCJK-Regular.ttc: %s=FILE",
        letters,
        FONT_VARIABLE,
    )


def _usual() -> str:
    return font_manager.findfont("DejaVu Sans")


@lru_cache(maxsize=256)
def _file_for(letters: frozenset[str]) -> str:
    """A font file that has all of these letters, or nothing."""
    files = [_usual(), os.environ.get(FONT_VARIABLE, "")]
    for file in files:
        if file and letters <= _letters(file):
            return file
    # Last-resort fonts have one box for a whole alphabet.
    others = (file for file in _system_fonts() if "lastresort" not in file.lower())
    return next((file for file in others if letters <= _letters(file)), "")


@lru_cache(maxsize=1)
def _system_fonts() -> tuple[str, ...]:
    return tuple(sorted({entry.fname for entry in font_manager.fontManager.ttflist}))


@lru_cache(maxsize=256)
def _letters(file: str) -> frozenset[str]:
    """Letters that a font file has; none where it cannot be read."""
    try:
        codes = FT2Font(file).get_charmap()
        ImageFont.truetype(file, 12)
    except (OSError, RuntimeError, ValueError):
        return frozenset()
    return frozenset(map(chr, codes)) | frozenset("\n\t")
