"""Prediction with a tiny but real model: names, and errors before any work."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from alignzeg.__main__ import main
from alignzeg.commands.predict import split_opts
from alignzeg.data.zeroshapes import render_scene, scene_rng
from alignzeg.inference import Predictor, parse_classes
from alignzeg.structures import Vocabulary

CLASSES = ["red star", "brick", "my own thing"]


@pytest.fixture(scope="module")
def predictor(tiny_weights: Path) -> Predictor:
    return Predictor(tiny_weights, classes=CLASSES, device="cpu")


@pytest.fixture
def image() -> NDArray[np.uint8]:
    return render_scene(scene_rng(3, "val", 0), 64).image


def edited(tiny_weights: Path, folder: Path, **changes: object) -> Path:
    checkpoint = torch.load(tiny_weights, weights_only=True)
    checkpoint["alignzeg"] |= changes
    torch.save(checkpoint, folder / "edited.pth")
    return folder / "edited.pth"


def test_names_every_pixel(predictor: Predictor, image: NDArray[np.uint8]) -> None:
    prediction = predictor(image)
    assert prediction.labels.shape == (64, 64)
    assert prediction.labels.dtype == np.uint8
    assert prediction.labels.max() < 3
    assert prediction.names == tuple(CLASSES)
    assert prediction.vocabulary.seen == (False, True, False)
    assert sum(prediction.areas.values()) == 64 * 64
    assert prediction.rejected == 0
    assert prediction.proposals is None


def test_a_device_may_be_one_of_torch(tiny_weights: Path) -> None:
    predictor = Predictor(tiny_weights, device=torch.device("cpu"))
    assert next(predictor.model.parameters()).device.type == "cpu"
    with pytest.raises(ValueError, match="'meta'"):
        Predictor(tiny_weights, device=torch.device("meta"))


def test_agrees_with_the_model(predictor: Predictor, image: NDArray[np.uint8]) -> None:
    vocabulary = Vocabulary(tuple(CLASSES), (False, True, False))
    tensor = torch.from_numpy(image.transpose(2, 0, 1).copy())
    with torch.no_grad():
        expected = predictor.model([{"image": tensor, "vocabulary": vocabulary}])[0]
    prediction = predictor(image, proposals=3)
    assert (prediction.labels == expected["sem_seg"].numpy()).all()
    proposals = prediction.proposals
    assert proposals is not None
    best = expected["class_probs"][:, :-1].max(-1).values.sort(descending=True).values
    np.testing.assert_allclose(proposals.scores, best[:3], atol=1e-6)
    assert proposals.masks.shape == (3, 16, 16)
    assert 0 <= float(proposals.masks.min()) <= float(proposals.masks.max()) <= 1


def test_classes_change_per_call_and_order_does_not_matter(
    predictor: Predictor, image: NDArray[np.uint8]
) -> None:
    first = predictor(image)
    other = predictor(image, classes=["grass"])
    assert other.areas == {"grass": 64 * 64}
    back = predictor(image, classes=CLASSES[::-1])
    names = np.array(CLASSES)
    same = names[first.labels] == names[::-1][back.labels]
    assert same.mean() > 0.999


def test_more_than_255_classes(predictor: Predictor, image: NDArray[np.uint8]) -> None:
    prediction = predictor(image, classes=[f"thing {i}" for i in range(300)])
    assert prediction.labels.dtype == np.uint16
    assert np.array(prediction.index_image()).max() == prediction.labels.max()


def test_reject_everything(tiny_weights: Path, image: NDArray[np.uint8], tmp_path: Path) -> None:
    opts = ["ALIGNZEG.TEST.REJECT_BELOW", "1000"]
    prediction = Predictor(tiny_weights, CLASSES, opts=opts)(image)
    assert (prediction.labels == 255).all()
    assert prediction.rejected == 64 * 64
    prediction.save(tmp_path, "x")
    summary = json.loads((tmp_path / "x.json").read_text())
    assert summary["none_of_these"] == {"id": 255, "pixels": 4096, "share": 1.0}


def test_a_class_may_have_several_names(predictor: Predictor) -> None:
    prediction = predictor(np.zeros((9, 8, 3), np.uint8), ["brick; brickwork", "my thing"])
    assert prediction.names == ("brick", "my thing")
    assert prediction.vocabulary.seen == (True, False)
    assert prediction.vocabulary.synonyms()[0] == ("brick", "brickwork")


def test_refuses_arrays_of_another_shape(predictor: Predictor) -> None:
    with pytest.raises(ValueError, match=r"uint8 of shape \(4, 4, 2\)"):
        predictor(np.zeros((4, 4, 2), np.uint8))
    with pytest.raises(ValueError, match="list"):
        predictor(np.zeros((4, 4, 3), np.uint8), classes="grass")  # type: ignore[arg-type]


def test_refuses_another_vlm(tiny_weights: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="other weights of the VLM"):
        Predictor(edited(tiny_weights, tmp_path, vlm_hash="0" * 64))
    with pytest.raises(ValueError, match="trained with the VLM 'ViT-B-16"):
        Predictor(edited(tiny_weights, tmp_path, vlm_id="ViT-B-16/openai"))


def test_refuses_files_that_are_no_checkpoint_of_ours(tiny_weights: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not a checkpoint of alignzeg"):
        Predictor(edited(tiny_weights, tmp_path, config=2.5))
    torch.save({"model": {}}, tmp_path / "foreign.pth")
    with pytest.raises(ValueError, match="not a checkpoint of alignzeg"):
        Predictor(tmp_path / "foreign.pth")
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(ValueError, match=r"text\.pth"):
        Predictor(tmp_path / "text.pth")
    with pytest.raises(ValueError, match="does not exist"):
        Predictor(tmp_path / "none.pth")


def test_needs_no_registered_training_set(
    tiny_weights: Path, tmp_path: Path, image: NDArray[np.uint8], predictor: Predictor
) -> None:
    config = torch.load(tiny_weights, weights_only=True)["alignzeg"]["config"]
    config = config.replace("zeroshapes_train", "somebody_elses_train")
    moved = Predictor(edited(tiny_weights, tmp_path, config=config), CLASSES)
    assert moved.seen == predictor.seen
    assert (moved(image).labels == predictor(image).labels).all()


def test_command(
    tiny_weights: Path, tmp_path: Path, image: NDArray[np.uint8], capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        Image.fromarray(image).save(tmp_path / folder / "same.png")
    images = [str(tmp_path / folder / "same.png") for folder in ("a", "b")]
    out = tmp_path / "out"
    arguments = [
        "--weights",
        str(tiny_weights),
        "--classes",
        "red star, brick",
        "--output",
        str(out),
    ]
    assert main(["predict", *arguments, "--proposals", *images]) == 0
    assert sorted(path.name for path in out.glob("*.json")) == [
        *("predictions.json", "same.json", "same_2.json")
    ]
    assert len(list(out.iterdir())) == 11
    assert "same.png" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--classes": " , "}, "no class names"),
        ({"--classes": "brick, red star,brick"}, "more than once: ['brick']"),
        ({"--weights": "nowhere.pth"}, "nowhere.pth"),
        ({"IMAGE": "nowhere.png"}, "nowhere.png"),
    ],
)
def test_command_errors_come_first_and_in_one_line(
    tiny_weights: Path,
    tmp_path: Path,
    image: NDArray[np.uint8],
    capsys: pytest.CaptureFixture[str],
    change: dict[str, str],
    message: str,
) -> None:
    Image.fromarray(image).save(tmp_path / "fine.png")
    words = {
        "--weights": str(tiny_weights),
        "--classes": "brick",
        "--output": str(tmp_path / "out"),
    }
    words |= {key: value for key, value in change.items() if key != "IMAGE"}
    arguments = [word for pair in words.items() for word in pair]
    images = [str(tmp_path / "fine.png"), *[v for k, v in change.items() if k == "IMAGE"]]
    assert main(["predict", *arguments, *images]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error
    assert not (tmp_path / "out").exists()


def test_key_value_pairs_follow_the_images(tmp_path: Path) -> None:
    (tmp_path / "SEED").write_text("")
    images = ["a.png", "IMG_0001.JPG", str(tmp_path / "SEED")]
    assert split_opts([*images, "SEED", "1"]) == (images, ["SEED", "1"])
    assert split_opts([*images, "MODEL.DEVICE", "cpu"]) == (images, ["MODEL.DEVICE", "cpu"])
    assert split_opts(images) == (images, [])


def test_parse_classes() -> None:
    assert parse_classes(" red star ,brick,") == ["red star", "brick"]
