"""`alignzeg.Predictor`: one image in every form that it takes, and what it refuses."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import REPOSITORY
from numpy.typing import NDArray
from PIL import Image

import alignzeg
from alignzeg.data.zeroshapes import render_scene, scene_rng
from alignzeg.inference import Predictor

CLASSES = ["red star", "brick", "sofa; couch"]


@pytest.fixture(scope="module")
def predictor(tiny_weights: Path) -> Predictor:
    return alignzeg.Predictor(tiny_weights, CLASSES, "cpu")


@pytest.fixture(scope="module")
def image() -> NDArray[np.uint8]:
    return render_scene(scene_rng(3, "val", 0), 48).image[:, :40].copy()


def png(image: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return buffer.getvalue()


def as_tensor(image: NDArray[np.uint8]) -> torch.Tensor:
    return torch.from_numpy(image).permute(2, 0, 1)


FORMS = {
    "bytes": png,
    "a bytearray": lambda image: bytearray(png(image)),
    "a memoryview": lambda image: memoryview(png(image)),
    "a file object": lambda image: io.BytesIO(png(image)),
    "a PIL image": Image.fromarray,
    "an array": lambda image: image,
    "an array of floats": lambda image: image / 255,
    "an array not in a row": lambda image: np.asfortranarray(image),
    "with alpha": lambda image: np.dstack([image, np.full(image.shape[:2], 255, np.uint8)]),
    "a tensor, channels first": as_tensor,
    "a tensor, channels last": torch.from_numpy,
    "a tensor of floats": lambda image: as_tensor(image).float() / 255,
    "a tensor with a gradient": lambda image: (as_tensor(image) / 255).requires_grad_(),
}


def test_it_is_what_the_package_exports() -> None:
    assert alignzeg.Predictor is Predictor and "Predictor" in alignzeg.__all__


def test_it_is_imported_when_it_is_used() -> None:
    code = (
        "import sys\n__alignzeg_late__ = True\nimport alignzeg\n"
        "assert 'Predictor' in alignzeg.__all__\n"
        "assert not {'torch', 'alignzeg.inference', 'matplotlib'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=REPOSITORY, timeout=100)


@pytest.mark.parametrize("form", FORMS)
def test_one_image_has_one_answer_in_every_form(
    form: str, predictor: Predictor, image: NDArray[np.uint8]
) -> None:
    answer = predictor(FORMS[form](image))
    assert (answer.image == image).all()
    assert answer.labels.shape == (48, 40)
    assert (answer.labels == predictor(image).labels).all()


def test_files_are_read(predictor: Predictor, image: NDArray[np.uint8], tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(png(image))
    with path.open("rb") as file:
        answers = predictor([path, str(path), file])
    for answer in answers:
        assert (answer.image == image).all()


def test_a_list_and_a_batch_have_a_list_of_answers(
    predictor: Predictor, image: NDArray[np.uint8]
) -> None:
    other = image[::-1].copy()
    alone = [predictor(image).labels, predictor(other).labels]
    batch = torch.stack([as_tensor(image), as_tensor(other)])
    for given in ([image, other], (Image.fromarray(image), png(other)), batch, batch / 255):
        answers = predictor(given)
        assert isinstance(answers, list) and len(answers) == 2
        assert all((a.labels == b).all() for a, b in zip(answers, alone, strict=True))
    assert predictor([]) == []


def test_the_confidence_is_the_best_score_of_the_masks(
    predictor: Predictor, image: NDArray[np.uint8], tiny_weights: Path
) -> None:
    answer = predictor(image)
    assert answer.confidence.dtype == np.float16 and answer.confidence.shape == (48, 40)
    assert 0 <= answer.confidence.min() <= answer.confidence.max() <= 1
    limit = float(np.median(answer.confidence.astype(np.float64)))
    opts = ["ALIGNZEG.TEST.REJECT_BELOW", str(limit)]
    rejected = Predictor(tiny_weights, CLASSES, "cpu", opts)(image).labels == 255
    sure = abs(answer.confidence - limit) > 2e-3
    assert (rejected == (answer.confidence < limit))[sure].all()
    assert 0.05 < sure.mean() and 0 < rejected.mean() < 1


def test_windows_have_a_confidence_too(image: NDArray[np.uint8], tiny_weights: Path) -> None:
    opts = ["ALIGNZEG.TEST.WINDOW", "32"]
    answer = Predictor(tiny_weights, CLASSES, "cpu", opts)(image)
    assert answer.confidence.shape == (48, 40) and answer.confidence.max() > 0
    assert set(answer.scores) == set(answer.areas)


def test_words_that_the_vlm_knows(predictor: Predictor, tiny_weights: Path) -> None:
    about = predictor.known_words()
    assert about["vlm"].startswith("alignzeg-tiny")
    assert about["asked"] == ["red", "star", "brick", "sofa", "couch"]
    assert [word in about["known"] for word in about["asked"]] == [True, True, True, False, False]
    assert Predictor(tiny_weights, device="cpu").known_words()["asked"] is None


class Closed(io.BytesIO):
    def __init__(self) -> None:
        super().__init__(b"x")
        self.close()


IMAGES = {
    "nothing": (None, "got NoneType"),
    "a number": (3, "got int"),
    "a dict": ({}, "got dict"),
    "a file that is not there": ("no.png", "no.png"),
    "an address": ("https://a.org/x.png", "is an address; download the image"),
    "no bytes": (b"", "0 bytes are no image file"),
    "bytes of a text": (b"hello", "5 bytes are no image file"),
    "a file of texts": (io.StringIO("x"), "gives text; open it with mode 'rb'"),
    "a file at its end": (io.BytesIO(), r"is at its end; go back: \.seek\(0\)"),
    "a closed file": (Closed(), "cannot read the file object .*closed"),
    "two channels": (np.zeros((4, 4, 2), np.uint8), r"got uint8 of shape \(4, 4, 2\)"),
    "no pixels": (np.zeros((0, 4, 3), np.uint8), r"got uint8 of shape \(0, 4, 3\)"),
    "channels first": (np.zeros((3, 9, 8), np.uint8), r"array.transpose\(1, 2, 0\)"),
    "a batch of arrays": (np.zeros((2, 9, 8, 3), np.uint8), r"shape \(2, 9, 8, 3\)"),
    "complex numbers": (np.zeros((4, 4), complex), "holds numbers; got complex128"),
    "texts": (np.full((4, 4), "x"), "holds numbers; got <U1"),
    "normalised floats": (np.full((4, 4, 3), -1.5), "in 0 to 1, not normalised.*-1.5"),
    "NaN": (np.full((4, 4, 3), np.nan), "in 0 to 1, not normalised.*nan"),
    "12 bits": (np.full((4, 4), 4095, np.uint16), "its values are 4095 to 4095"),
    "negative integers": (np.full((4, 4), -1), "its values are -1 to -1"),
    "an unclear tensor": (torch.zeros(3, 9, 3), "channels first or last"),
    "a tensor of five axes": (torch.zeros(1, 1, 3, 8, 8), r"shape \(1, 1, 3, 8, 8\)"),
    "a bad one in a list": ([np.zeros((4, 4), np.uint8), None], "got NoneType"),
}


@pytest.mark.parametrize("name", IMAGES)
def test_what_is_no_image_is_named(name: str, predictor: Predictor) -> None:
    given, message = IMAGES[name]
    with pytest.raises(ValueError, match=message) as caught:
        predictor(given)
    assert "\n" not in str(caught.value)


CALLS = {
    "classes as a text": ({"classes": "grass"}, "must be a list; got the text 'grass'"),
    "no classes": ({"classes": []}, "at least one class name"),
    "classes as a set": ({"classes": {"a"}}, "must be a list, .*; got a set"),
    "classes twice": ({"classes": ["a", "A"]}, r"more than once: \['A', 'a'\]"),
    "a class that is no text": ({"classes": ["a", 3]}, "name 2 is 3; a class name is a text"),
    "fewer than no proposals": ({"proposals": -1}, "proposals is -1; it must be a whole number"),
    "half a proposal": ({"proposals": 0.5}, "proposals is 0.5; it must be a whole number"),
}


@pytest.mark.parametrize("name", CALLS)
def test_wrong_words_of_a_call_are_named(name: str, predictor: Predictor) -> None:
    given, message = CALLS[name]
    with pytest.raises(ValueError, match=message):
        predictor(np.zeros((8, 8, 3), np.uint8), **given)


def test_classes_must_be_given_somewhere(tiny_weights: Path) -> None:
    with pytest.raises(ValueError, match=r"give them to Predictor\(...\) or to this call"):
        Predictor(tiny_weights, device="cpu")(np.zeros((8, 8, 3), np.uint8))


MADE = {
    "no weights": ({"weights": None}, "weights is None; it must be the name"),
    "weights that are not there": ({"weights": "no.pth"}, "'no.pth' does not exist"),
    "pixels as a text": ({"max_pixels": "many"}, "max_pixels is 'many'; it must be a whole number"),
    "fewer than no pixels": ({"max_pixels": -1}, "max_pixels is -1; it must be a whole number"),
    "options as a text": ({"opts": "SEED 1"}, "opts is 'SEED 1'; it must be a list of texts"),
    "half a pair": ({"opts": ["SEED"]}, "come in pairs KEY VALUE"),
    "numbers as options": ({"opts": ["SEED", 1]}, "it must be a list of texts"),
    "an unknown device": ({"device": "gpu"}, "is 'gpu'"),
    "an unknown key": ({"opts": ["MODEL.DEVCE", "cpu"]}, "did you mean MODEL.DEVICE"),
}


@pytest.mark.parametrize("name", MADE)
def test_wrong_arguments_are_named(name: str, tiny_weights: Path) -> None:
    given, message = MADE[name]
    with pytest.raises(ValueError, match=message):
        Predictor(**{"weights": tiny_weights, "classes": CLASSES, **given})
