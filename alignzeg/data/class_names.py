"""Class names as people type them: in a file, in a list, or separated by commas."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

from alignzeg.structures import SYNONYM_SEPARATOR

# A text that ends so is a file, also where there is none.
_FILES = (".txt", ".csv", ".tsv", ".json", ".yaml", ".yml", ".names", ".lst", ".list")
_INVISIBLE = "\u00ad\u200b\u2060\ufeff"
# What a name cannot be, and what to do instead.
_ODD = (
    (r"#|//", "begins like a comment; a list holds names only: delete the line"),
    (r"[-*\u2022]\s", "begins like an item of another kind of list; leave the mark out"),
    (r"\d+\s*(?:[:)=]|\.(?!\d))\s*\S", "begins with a number; names only, in the order of ids"),
    (r".*[:=]\s*\d+$", "ends with a number; names only, in the order of ids"),
    (r"([\"'`]).*\1$", "stands in quotation marks; leave them out"),
    (r"[\[{(]|.*[\]}]$", "has brackets; one plain name a line"),
    (r".*[,|\uff0c]", "holds a comma or bar; one name a line, synonyms as in 'sofa; couch'"),
    (r".*;(?!\s)", "has a ';' without a blank and a name after it; synonyms: 'sofa; couch'"),
    (r"\s*;|.*;\s*;", "has no name before a ';'; synonyms are written 'sofa; couch'"),
    (r"[\W_]*$", "has no letter and no digit"),
)


def class_names(given: Sequence[str], where: str) -> tuple[str, ...]:
    """Names as they are used, each with its synonyms; blanks at the ends are dropped.

    Args:
        given: one class each; "sofa; couch" is sofa, and also called couch.
        where: for the message.

    Raises:
        ValueError: on a text in place of a list, or a name that cannot be meant, such as a comment,
            a number with a colon, or several names with commas; the message quotes it.
    """
    if isinstance(given, str):
        raise ValueError(f"{where}: class names must be a list; got the text {given!r}")
    return _checked([(f"name {place}", name) for place, name in enumerate(given, 1)], where)


def read_class_file(path: str | Path) -> tuple[str, ...]:
    """The names in a text file, one class a line; empty lines are passed over.

    Raises:
        ValueError: if the file cannot be read, is not UTF-8, or holds what `class_names` refuses.
    """
    path = Path(path)
    try:
        # Editors on Windows like to put a byte order mark first.
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        reason = error.strerror or error
        raise ValueError(
            f"cannot read class names from {path} ({reason}): one class name a line"
        ) from error
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8 text (byte {error.object[error.start]:#04x} at position "
            f"{error.start}); save it as UTF-8"
        ) from error
    lines = [(f"line {place}", line) for place, line in enumerate(text.splitlines(), 1)]
    return _checked([(place, line) for place, line in lines if line.strip()], str(path))


def read_class_list(source: str) -> tuple[str, ...]:
    """The names that a word of a command line means: a file's, or those between its commas.

    Args:
        source: a file, which exists or is called like one, or "red star, brick, grass".

    Raises:
        ValueError: if there is no name, or as `read_class_file` and `class_names`.
    """
    if source.strip().lower().endswith(_FILES) and "," not in source or _is_file(source):
        names = read_class_file(source.strip() if not _is_file(source) else source)
    else:
        names = class_names([name for name in source.split(",") if name.strip()], repr(source))
    if not names:
        raise ValueError(
            f'no class names in {source!r}; give them as "red star, brick, grass", or a file with '
            "one a line"
        )
    return names


def _is_file(source: str) -> bool:
    try:
        return Path(source).is_file()
    except (OSError, ValueError):  # too long, or a null byte
        return False


def _checked(given: Iterable[tuple[str, str]], where: str) -> tuple[str, ...]:
    rows = list(given)
    names = []
    for place, name in rows:
        if not isinstance(name, str):
            raise ValueError(f"{where}: {place} is {name!r}; a class name is a text")
        problem = _problem(name)
        if problem:
            raise ValueError(f"{where}: {place}, {name.strip()[:60]!r}, {problem}")
        text = unicodedata.normalize("NFC", name)
        parts = [" ".join(part.split()) for part in text.split(";")]
        names.append(SYNONYM_SEPARATOR.join(parts))
    if _numbered(names):
        raise ValueError(
            f"{where}: all names carry a number, as {names[0]!r}; names only, in the order of ids"
        )
    return tuple(names)


def _problem(name: str) -> str:
    """What is odd about a name; empty if nothing is."""
    text = name.strip()
    if not text:
        return "is empty"
    hidden = [c for c in text if c in _INVISIBLE or unicodedata.category(c) == "Cc"]
    if hidden:
        return f"holds the invisible character U+{ord(hidden[0]):04X}; delete it"
    if text.lower().endswith(_FILES):
        return "is called like a file; give the names in it, or that file where a file is read"
    return next((what for pattern, what in _ODD if re.match(pattern, text)), "")


def _numbered(names: Sequence[str]) -> bool:
    """Whether all names begin with a number, each one more than the last."""
    found = [re.match(r"(\d+)\s+\D", name) for name in names]
    numbers = [int(match.group(1)) for match in found if match]
    if len(names) < 2 or len(numbers) < len(names):
        return False
    return numbers == list(range(numbers[0], numbers[0] + len(numbers)))
