"""Class names as people type them: in a file, in a list, or separated by commas."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence, Set
from pathlib import Path

from alignzeg.structures import SYNONYM_SEPARATOR

# A text that ends so is a file, also where there is none.
_FILES = (
    *(".txt", ".text", ".csv", ".tsv", ".json", ".jsonl", ".yaml", ".yml", ".toml", ".xml"),
    *(".names", ".lst", ".list", ".md", ".py", ".xlsx"),
)
# Letters of a name at most; text encoders read about 300 and cut off the rest.
_LONGEST = 200
_INVISIBLE = "\u00ad\u200b\u200e\u200f\u2060\ufeff"
# What a name cannot be, and what to do instead.
_ODD = (
    (r"__\w+__$", "is labelme's mark of pixels without a class, 255 in the files: delete the line"),
    (
        r"#\s*label:color_rgb|[^:]+:\d+,\d+,\d+:",
        "is a line of CVAT's labelmap.txt; a list holds names only; docs/custom_data.md, 'Label "
        "files of other tools'",
    ),
    (r"#|//|%\s|<!--", "begins like a comment; a list holds names only: delete the line"),
    (r".*\s(?:#|//)\s", "ends with a comment; a list holds names only"),
    (r"[-*\u2022]\s", "begins like an item of another kind of list; leave the mark out"),
    (r"\d+\s*(?:[:)=]|\.(?!\d))\s*\S", "begins with a number; names only, in the order of ids"),
    (r".*[:=]\s*\d+$", "ends with a number; names only, in the order of ids"),
    (r".*(?:\s\d{1,3}){3}$", "ends with three numbers, as of a colour; names only"),
    (r"n\d{8}\b", "begins with a number of WordNet; names only, in the order of ids"),
    (
        r"([\"'`]).*\1$"
        r"|[\u201c\u201d\u201e\u2018\u201a\u00ab\u300c].*[\u201c\u201d\u2018\u2019\u00bb\u300d]$",
        "stands in quotation marks; leave them out",
    ),
    (r"[\[{(<]|.*[\]}]$|.*<[^<>]+>", "has brackets; one plain name a line"),
    (
        r".*[,|\uff0c\u3001\uff5c\u060c]",
        "holds a comma or bar; one name a line, synonyms as in 'sofa; couch'",
    ),
    (
        r".*(?:;(?!\s)|\uff1b)",
        "has a ';' without a blank and a name after it; synonyms: 'sofa; couch'",
    ),
    (r"\s*;|.*;\s*;", "has no name before a ';'; synonyms are written 'sofa; couch'"),
    (r".*[:=]$", "ends like a heading; a list holds names only"),
    (r".*\\", "holds a backslash; one plain name a line"),
    (r"[\W_]*$", "has no letter and no digit"),
)
# The first line of a table with one column.
_HEADINGS = {
    *("name", "names", "class", "classes", "label", "labels", "category", "categories"),
    *("class name", "class_name", "label name", "label_name"),
}


def class_names(given: Sequence[str], where: str) -> tuple[str, ...]:
    """Names as they are used, each with its synonyms; blanks at the ends are dropped.

    "sofa; couch" is sofa, and also called couch. Messages begin with `where`.

    Raises:
        ValueError: on a text in place of a list, or a name that cannot be meant, such as a comment,
            a number with a colon, or several names with commas; the message quotes it.
    """
    if isinstance(given, str):
        raise ValueError(f"{where}: class names must be a list; got the text {given!r}")
    if isinstance(given, (Set, Mapping)):
        raise ValueError(
            f"{where}: class names must be a list, whose order is that of the ids; got a "
            f"{type(given).__name__}"
        )
    return _checked([(f"name {place}", name) for place, name in enumerate(given, 1)], where)


def readable(prompt: str) -> str:
    """What a text encoder is given for a name as data sets spell it, such as traffic_light."""
    return " ".join(prompt.replace("_", " ").split()) or prompt


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
    rows = [(place, line) for place, line in lines if line.strip()]
    if len(rows) > 1 and rows[0][1].strip().lower() in _HEADINGS:
        raise ValueError(
            f"{path}: {rows[0][0]}, {rows[0][1].strip()!r}, is the heading of a table; a list "
            "holds names only: delete the line"
        )
    return _checked(rows, str(path))


def numbered_names(path: Path) -> dict[int, str]:
    """The names by id of a file whose lines all read `5: red ball`; empty if it is no such file."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError):
        return {}
    found = [re.fullmatch(r"(\d{1,5})\s*:\s*(\S.*)", line) for line in lines if line]
    pairs = [(int(match[1]), match[2]) for match in found if match]
    return dict(pairs) if pairs and len(pairs) == len(found) == len(dict(pairs)) else {}


def read_class_list(source: str) -> tuple[str, ...]:
    """The names that a word of a command line means: a file's, or those between its commas.

    Raises:
        ValueError: if there is no name, or as `read_class_file` and `class_names`.
    """
    if is_class_file(source):
        names = read_class_file(_place(source))
    else:
        # Letters that the locale does not have come as bytes.
        source = source.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        names = class_names([name for name in source.split(",") if name.strip()], repr(source))
    if not names:
        raise ValueError(
            f'no class names in {source!r}; give them as "red star, brick, grass", or a file with '
            "one a line"
        )
    return names


def is_class_file(source: str) -> bool:
    """Whether a word of a command line means a file: it exists, is called like one or a path."""
    if _is_file(source):
        return True
    text = source.strip()
    if "," in text:
        return False
    if text.lower().endswith(_FILES) or text.startswith(("/", "./", "../", "~", "@")):
        return True
    # A class may be called "sofa/couch".
    return os.path.isdir(text) or "/" in text and os.path.isdir(os.path.dirname(text))


def _place(source: str) -> str:
    """The path that is meant; the shell does not expand "~" in `--classes=~/classes.txt`."""
    return source if _is_file(source) else os.path.expanduser(source.strip())


def _is_file(source: str) -> bool:
    return os.path.isfile(source)  # False of what is too long, too


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
    problem = _of_all(names)
    if problem:
        raise ValueError(f"{where}: {problem}")
    return tuple(names)


def _problem(name: str) -> str:
    """What is odd about a name; empty if nothing is."""
    text = name.strip()
    if not text:
        return "is empty"
    hidden = [c for c in text if c in _INVISIBLE or unicodedata.category(c) == "Cc"]
    if hidden:
        return f"holds the invisible character U+{ord(hidden[0]):04X}; delete it"
    if max(map(len, text.split(SYNONYM_SEPARATOR.strip()))) > _LONGEST:
        return f"has {len(text)} letters; a class name has {_LONGEST} at most: shorten it"
    if text.lower().endswith(_FILES):
        return "is called like a file; give the names in it, or that file where a file is read"
    return next((what for pattern, what in _ODD if re.match(pattern, text)), "")


def _of_all(names: Sequence[str]) -> str:
    """What is odd about all names together; empty if nothing is."""
    if len(names) < 2:
        return ""
    if _ascending([re.match(r"(\d+)\s+(?=\D)", name) for name in names]):
        return f"all names carry a number, as {names[0]!r}; names only, in the order of ids"
    ends = [re.search(r"[\s#(]+(\d+)\)?$", name) for name in names]
    # "thing 0", "thing 1" are names; "grass 0", "sky 1" are names with their ids.
    stems = {name[: end.start()] for name, end in zip(names, ends, strict=True) if end}
    if len(stems) == len(names) and _ascending(ends, step=1):
        return f"all names carry a number, as {names[0]!r}; names only, in the order of ids"
    if all(re.match(r"[^:]+:\s", name) for name in names):
        return f"all names hold a colon, as {names[0]!r}; one plain name a line"
    return ""


def _ascending(found: Sequence[re.Match[str] | None], step: int = 0) -> bool:
    """Whether all are there, each number more than the last, by as much as the step if not 0."""
    numbers = [int(match.group(1)) for match in found if match]
    if len(numbers) < len(found):
        return False
    return all(b - a == step if step else b > a for a, b in zip(numbers, numbers[1:], strict=False))
