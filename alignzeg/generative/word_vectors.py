"""Semantic vectors of class names: the VLM's text prototypes, or word vectors from a file."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from torch import Tensor

from alignzeg.modeling.prompts import build_class_texts
from alignzeg.registries import build_vlm
from alignzeg.structures import SYNONYM_SEPARATOR, Vocabulary


def build_semantics(cfg: CfgNode, vocabulary: Vocabulary) -> Tensor:
    """(K, A) semantic vectors of all classes, from ALIGNZEG.SEMANTICS.

    Raises:
        ValueError: on names that the word vectors do not know.
    """
    node = cfg.ALIGNZEG.SEMANTICS
    texts, _ = build_class_texts(cfg).texts(vocabulary, True)
    source = build_vlm(cfg) if node.SOURCE == "vlm" else WordVectors(node.WORD_VECTORS)
    return source.embed_text(texts)


class WordVectors:
    """Semantic vectors of class names from word vectors, in place of a text encoder.

    Reads the text formats of GloVe ("word v1 v2 ..." on each line), word2vec and fastText (the
    same below a first line "count channels"). A file is read once, and only the words that are
    asked for are kept.

    Raises:
        ValueError: if the file cannot be read or has another format.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        first = next(self._lines(), "").split()
        header = len(first) == 2 and all(part.isdigit() for part in first)
        self.embed_dim = int(first[1]) if header else len(first) - 1
        self._header = header
        if self.embed_dim < 1:
            raise self._wrong(1, "no numbers")

    def embed_text(self, names: Sequence[str]) -> Tensor:
        """Semantic vectors of class names.

        A name is looked up as one word ("dining table", "dining_table", "dining-table",
        "diningtable"), else it is the mean of its words; as it is written or in lower case.

        A name may hold several, between SYNONYM_SEPARATORs, whose vectors are averaged; those
        without a vector are left out.

        Returns:
            (K, A) float32, unit length.

        Raises:
            ValueError: naming all classes without a vector.
        """
        synonyms = [name.split(SYNONYM_SEPARATOR) for name in names]
        wanted = {spelling for group in synonyms for name in group for spelling in _spellings(name)}
        vectors = self._read(wanted)
        found = [[_vector(name, vectors) for name in group] for group in synonyms]
        missing = [
            name
            for name, group in zip(names, found, strict=True)
            if all(vector is None for vector in group)
        ]
        if missing:
            raise ValueError(
                f"the word vectors {str(self.path)!r} know no word of {missing}; give these "
                "classes other prompts in the split file, or set ALIGNZEG.SEMANTICS.WORD_VECTORS "
                "to a larger vocabulary"
            )
        means = [
            torch.stack([vector for vector in group if vector is not None]).mean(dim=0)
            for group in found
        ]
        return F.normalize(torch.stack(means), dim=-1)

    def _lines(self) -> Iterator[str]:
        try:
            with open(self.path, encoding="utf-8-sig", errors="replace") as file:
                yield from file
        except OSError as error:
            raise ValueError(
                f"the word vectors {str(self.path)!r} cannot be read: {error.strerror}; set "
                "ALIGNZEG.SEMANTICS.WORD_VECTORS to a text file of GloVe, word2vec or fastText"
            ) from error

    def _read(self, wanted: set[str]) -> dict[str, Tensor]:
        """Unit-length vectors of the words that the file has."""
        vectors = {}
        for number, line in enumerate(self._lines(), start=1):
            if number == 1 and self._header:
                continue
            # Words may hold blanks (GloVe's "at name@domain.com"), so the numbers are the last.
            word, *numbers = line.rstrip().rsplit(" ", self.embed_dim)
            if word not in wanted or word in vectors:
                continue
            try:
                vector = torch.tensor([float(part) for part in numbers])
            except ValueError:
                raise self._wrong(number, "something that is no number") from None
            if len(vector) != self.embed_dim or not vector.isfinite().all():
                raise self._wrong(number, f"{len(vector)} numbers")
            vectors[word] = F.normalize(vector, dim=0)
        return vectors

    def _wrong(self, number: int, found: str) -> ValueError:
        return ValueError(
            f"the word vectors {str(self.path)!r} have {found} in line {number}, not a word and "
            f"{max(self.embed_dim, 1)} finite numbers; use a text file of GloVe, word2vec or "
            "fastText"
        )


def _words(name: str) -> list[str]:
    return [word for word in re.split(r"[\s_-]+", name.strip()) if word]


def _spellings(name: str) -> Iterable[str]:
    """Every word of the file that could be looked up for a name."""
    words = _words(name)
    phrases = [glue.join(words) for glue in (" ", "_", "-", "")]
    for spelling in (*phrases, *words):
        yield spelling
        yield spelling.lower()


def _vector(name: str, vectors: dict[str, Tensor]) -> Tensor | None:
    """The vector of a name; None if it, or one of its words, has none."""
    words = _words(name)
    for phrase in (glue.join(words) for glue in (" ", "_", "-", "")):
        for spelling in (phrase, phrase.lower()):
            if spelling in vectors:
                return vectors[spelling]
    each = [vectors.get(word, vectors.get(word.lower())) for word in words]
    known = [vector for vector in each if vector is not None]
    return torch.stack(known).mean(dim=0) if known and len(known) == len(each) else None
