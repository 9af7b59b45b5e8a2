"""Word vectors from files: the formats, the names, and what is missing."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from alignzeg.generative.word_vectors import WordVectors

VECTORS = {
    "red": [1.0, 0.0, 0.0],
    "star": [0.0, 2.0, 0.0],
    "dining": [5.0, 5.0, 0.0],
    "table": [0.0, 1.0, 1.0],
    "dining_table": [0.0, 0.0, -3.0],
    "Paris": [1.0, 1.0, 1.0],
}


def text(kind: str) -> str:
    lines = [" ".join([word, *map(str, vector)]) for word, vector in VECTORS.items()]
    head = [] if kind == "glove" else [f"{len(VECTORS)} 3"]
    # fastText ends every line with a blank.
    return "\n".join([*head, *(line + " " * (kind == "fasttext") for line in lines)]) + "\n"


@pytest.fixture(params=["glove", "word2vec", "fasttext"])
def vectors(request, tmp_path) -> WordVectors:
    path = tmp_path / "vectors.txt"
    path.write_text(text(request.param))
    return WordVectors(path)


def unit(*values: float) -> torch.Tensor:
    return F.normalize(torch.tensor(values, dtype=torch.float32), dim=0)


def test_every_format_gives_the_same_vectors(vectors):
    assert vectors.embed_dim == 3
    found = vectors.embed_text(["red", "Star", "Paris", "red star", "dining table"])
    expected = [
        unit(1, 0, 0),
        unit(0, 1, 0),
        unit(1, 1, 1),
        unit(1, 1, 0),  # the mean of two words, each of unit length
        unit(0, 0, -1),  # a phrase of the file goes before the mean of its words
    ]
    torch.testing.assert_close(found, torch.stack(expected))


def test_synonyms_are_averaged_and_unknown_ones_left_out(vectors):
    found = vectors.embed_text(["red; star; gibberish"])
    torch.testing.assert_close(found, unit(1, 1, 0)[None])


def test_unknown_words_are_reported_by_name(vectors):
    with pytest.raises(ValueError, match=r"know no word of \['blue star', 'gibberish'\]"):
        vectors.embed_text(["red", "blue star", "gibberish"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "no numbers in line 1"),
        ("word\n", "no numbers in line 1"),
        ("2 3\nred 1 2 3\nstar 1 x 3\n", "something that is no number in line 3"),
        ("red 1 2 3\nstar 1 2 nan\n", "3 numbers in line 2"),
    ],
)
def test_a_damaged_file_is_refused_with_the_line(content, message, tmp_path):
    path = tmp_path / "damaged.txt"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        WordVectors(path).embed_text(["red", "star"])


def test_a_missing_file_says_which_key_to_set(tmp_path):
    with pytest.raises(ValueError, match=r"ALIGNZEG\.SEMANTICS\.WORD_VECTORS"):
        WordVectors(tmp_path / "none.txt")
