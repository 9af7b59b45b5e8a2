"""What a config key is: its default, what it means, and the values that it may have."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from detectron2.config import CfgNode
from detectron2.utils.registry import Registry


@dataclass(frozen=True)
class Range:
    """What a number, or every number of a list, must be.

    Attributes:
        low: smallest value.
        high: largest value.
        above: whether `low` itself is too small.
        length: of the list; None for a number, 0 for a list of any length but empty.
        whole: whether the numbers of a list must be whole.
    """

    low: float = 0.0
    high: float = math.inf
    above: bool = False
    length: int | None = None
    whole: bool = False

    def holds(self, value: Any) -> bool:
        """Whether a value is allowed; NaN and infinity never are."""
        if self.length is not None:
            if not isinstance(value, (list, tuple)):
                return False
            single = Range(self.low, self.high, self.above)
            fits = len(value) == self.length if self.length else len(value) > 0
            return fits and all(single.holds(item) for item in value)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return False
        low = value > self.low if self.above else value >= self.low
        return low and value <= self.high and not math.isinf(value)

    def __str__(self) -> str:
        """For the message."""
        text = f"more than {self.low:g}" if self.above else f"{self.low:g} or more"
        if not math.isinf(self.high):
            text = f"{'above ' if self.above else ''}{self.low:g} to {self.high:g}"
        if self.length is None:
            return text
        count = f"{self.length} numbers" if self.length else "numbers"
        return f"a list of {count}, each {text}"

    def check(self, key: str, value: Any) -> None:
        """Raises a ValueError that names the key, its value and the range."""
        if not self.holds(value):
            raise ValueError(f"{key} is {value!r}; it must be {self}")
        if self.whole and any(item != int(item) for item in value):
            raise ValueError(f"{key} is {value!r}; its numbers must be whole")


COUNT, POSITIVE, SHARE, LEAST_0 = Range(1), Range(above=True), Range(0, 1), Range()


@dataclass(frozen=True)
class Choices:
    """The names that a value can be one of.

    Attributes:
        names: of the values, or the registry that knows them; plugins may add to a registry.
        optional: whether an empty name is allowed too.
    """

    names: tuple[str, ...] | Registry
    optional: bool = False

    @property
    def known(self) -> list[str]:
        """All names, in order."""
        if isinstance(self.names, Registry):
            return sorted(name for name, _ in self.names)
        return list(self.names)

    def __str__(self) -> str:
        """For the documentation: the names of this package, without those of plugins."""
        known = self.known
        if isinstance(self.names, Registry):
            own = ("alignzeg.", "detectron2.")
            known = sorted(n for n, part in self.names if part.__module__.startswith(own))
        names = ", ".join(f"`{name}`" for name in known)
        return f"{names} or empty" if self.optional else names

    def check(self, key: str, value: Any) -> None:
        """Raises a ValueError that names the key, its value and the names that it may be."""
        if self.optional and not value:
            return
        known = self.known
        for name in value if isinstance(value, (list, tuple)) else [value]:
            if name not in known:
                near = difflib.get_close_matches(str(name), known, n=1)
                hint = f"did you mean {near[0]!r}? " if near else ""
                raise ValueError(
                    f"{key} is {name!r}, which is unknown; {hint}it can be one of {known}"
                )


@dataclass(frozen=True)
class Key:
    """One key of the config.

    Attributes:
        default: its value where no file and no command line sets it; its type is that of all.
        text: what it means, in whole phrases.
        values: what it may be; None for words, switches and paths.
        unit: of a number, such as "pixels".
        source: of the default: "paper" (AlignZeg, arXiv 2404.05667), another paper, or "ours".
    """

    default: Any
    text: str
    values: Range | Choices | None = None
    unit: str = ""
    source: str = ""


@dataclass(frozen=True)
class Section:
    """A section of the config: keys, and sections below it.

    Attributes:
        text: what the section is about.
        entries: name -> key or section, in the order of the documentation.
    """

    text: str
    entries: Mapping[str, Key | Section] = field(default_factory=dict)

    def node(self) -> CfgNode:
        """The section with its defaults."""
        node = CfgNode()
        for name, entry in self.entries.items():
            value = entry.node() if isinstance(entry, Section) else entry.default
            node[name] = list(value) if isinstance(value, list) else value
        return node

    def keys(self, prefix: str = "") -> Iterator[tuple[str, Key]]:
        """Full names and keys of the section and of those below it."""
        for name, entry in self.entries.items():
            if isinstance(entry, Section):
                yield from entry.keys(f"{prefix}{name}.")
            else:
                yield f"{prefix}{name}", entry
