"""Class lists as people write them, and one case of dev/fuzz_data.py."""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignzeg.data.class_names import class_names, read_class_file, read_class_list
from alignzeg.structures import Vocabulary


@dataclass(frozen=True)
class ReadCase:
    """Something to read.

    Attributes:
        what: a few words, for a message.
        read: reads it; raises ValueError to refuse it.
        expected: what is right; None if it has to be refused.
        same: compares what was read with it.
    """

    what: str
    read: Callable[[], Any]
    expected: Any
    same: Callable[[Any, Any], bool] = lambda found, expected: found == expected


WORDS = (
    *("grass", "sky", "Red Ball", "T-shirt", "café", "3D printer", "crane (machine)", "草地"),
    *("road; street", "sofa; couch; settee", "hair drier", "St. Bernard", "7", "2.5 ton truck"),
    *("traffic light", "wall-other", "thing 4", "don't walk sign", "fire & smoke"),
)
# What one line is made of its name, so that it cannot be meant.
ODD: dict[str, Callable[[str], str]] = {
    "comma after": lambda name: f"{name},",
    "comma within": lambda name: f"{name}, other",
    "comment": lambda name: f"# {name}",
    "number and colon": lambda name: f"3: {name}",
    "number and bracket": lambda name: f"3) {name}",
    "number and dot": lambda name: f"3. {name}",
    "colon and number": lambda name: f"{name}: 3",
    "semicolon, no blank": lambda name: f"{name};other",
    "semicolon at the end": lambda name: f"{name};",
    "semicolon first": lambda name: f"; {name}",
    "quotation marks": lambda name: f'"{name}"',
    "item": lambda name: f"- {name}",
    "list": lambda name: f"['{name}'",
    "typographic marks": lambda name: f"\u201c{name}\u201d",
    "tag": lambda name: f"<li>{name}</li>",
    "comment after": lambda name: f"{name}  # note",
    "heading": lambda name: f"{name}:",
    "colour": lambda name: f"{name} 0 128 255",
    "backslash": lambda name: f"{name}\\nother",
    "ideographic comma": lambda name: f"{name}\u3001other",
    "tab": lambda name: f"{name}\t3",
    "bar": lambda name: f"{name}|other",
    "null": lambda name: f"{name}\0",
    "invisible": lambda name: f"\u200b{name}",
    "no letter": lambda name: "---",  # noqa: ARG005 (whatever the name is)
    "file name": lambda name: f"{name}.txt",
}


def right(lines: list[str]) -> tuple[str, ...]:
    """The names in lines that are in order."""
    composed = [unicodedata.normalize("NFC", line) for line in lines if line.strip()]
    return tuple("; ".join(" ".join(part.split()) for part in line.split(";")) for line in composed)


def harmless(name: str, rng: random.Random) -> str:
    """The name, written in another way that means the same."""
    change = rng.randrange(5)
    if change == 0:
        return f"  {name} \u00a0"
    if change == 1:
        return name.replace(" ", "  ")
    if change == 2:
        return unicodedata.normalize("NFD", name)
    if change == 3:
        return name.replace("; ", " ;  ")
    return name


def list_case(folder: Path, rng: random.Random) -> ReadCase:
    """A list in a file, in a Python list or on a command line, whole or with something odd."""
    names = rng.sample(WORDS, rng.randrange(2, 8))
    lines = [harmless(name, rng) for name in names]
    how = rng.choice(("fine", "fine", "odd", "odd", "twice", "numbered", "bytes"))
    what, expected = how, right(lines)
    if how == "odd":
        what = rng.choice(list(ODD))
        place = rng.randrange(len(lines))
        lines[place], expected = ODD[what](lines[place].strip()), None
    elif how == "numbered":
        lines, expected = (
            [f"{i} {name}" for i, name in enumerate(names) if not name[0].isdigit()],
            None,
        )
        lines = lines if len(lines) > 1 else ["0 a", "1 b"]
        lines = [f"{i} {line.split(' ', 1)[1]}" for i, line in enumerate(lines)]
    elif how == "twice":
        first = names[0].split(";")[0]
        lines.append(rng.choice((first, first.upper(), f" {first}", first.swapcase())))
        expected = None
        return ReadCase(f"list: {what}", lambda: _vocabulary(class_names(lines, "names")), expected)
    way = "file" if how == "bytes" else rng.choice(("file", "list", "words", "words file"))
    if way == "words" and (
        what in ("comma after", "comma within") or not all(map(str.strip, lines))
    ):
        way = "file"
    if way == "list":
        return ReadCase(f"list: {what}", lambda: class_names(lines, "names"), expected)
    if way == "words":
        return ReadCase(f"words: {what}", lambda: read_class_list(",".join(lines)), expected)
    path = folder / "classes.txt"
    path.write_bytes(_encoded(lines, rng, damaged=how == "bytes"))
    expected = None if how == "bytes" else expected
    reader = read_class_file if way == "file" else lambda p: read_class_list(str(p))
    return ReadCase(f"{way}: {what}", lambda: reader(path), expected)


def _vocabulary(names: tuple[str, ...]) -> tuple[str, ...]:
    first = tuple(name.split("; ")[0] for name in names)
    return Vocabulary(first, (True,) * len(first)).names


def _encoded(lines: list[str], rng: random.Random, damaged: bool) -> bytes:
    """The lines as bytes of UTF-8 with any line ends, or of another encoding."""
    end = rng.choice(("\n", "\r\n", "\n\n", "\n  \n"))
    text = end.join(lines) + rng.choice(("", end))
    if damaged:
        return rng.choice((("\u00e4" + text).encode("utf-16"), b"caf\xe9\n" + text.encode()))
    return text.encode(rng.choice(("utf-8", "utf-8-sig")))
