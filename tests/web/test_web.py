"""What the page asks the model, and what it draws; the page itself is in test_web_page."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from detectron2.modeling import build_model
from detectron2.utils.env import seed_all_rng
from helpers import CONFIGS, TINY_OPTS
from PIL import Image

from alignzeg.colors import class_colors
from alignzeg.data.pictures import read_rgb
from alignzeg.data.zeroshapes import render_scene, scene_rng
from alignzeg.engine import AlignZegCheckpointer, setup_config
from alignzeg.inference import Predictor
from alignzeg.modeling.meta_arch import AlignZeg
from alignzeg.structures import Vocabulary
from alignzeg.web import Session, pictures
from alignzeg.web.samples import write_examples

TEXT = "red star, brick, my own thing; a thing, grass"
NAMES = ("red star", "brick", "my own thing", "grass")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of an untrained model whose correction is on."""
    folder = tmp_path_factory.mktemp("weights")
    seed_all_rng(0)
    opts = [*TINY_OPTS, "ALIGNZEG.CORRECTOR.GAMMA", "3", "ALIGNZEG.CORRECTOR.THRESHOLD", "0.45"]
    cfg = setup_config(CONFIGS / "zeroshapes" / "alignzeg.yaml", opts)
    AlignZegCheckpointer(build_model(cfg), str(folder), config=cfg.dump()).save("model")
    return folder / "model.pth"


@pytest.fixture(scope="module")
def session(weights: Path) -> Session:
    return Session(Predictor(weights, device="cpu"))


@pytest.fixture
def image() -> np.ndarray:
    return render_scene(scene_rng(3, "val", 0), 64).image


def predicted(weights: Path, image: np.ndarray, gamma: float, threshold: float) -> np.ndarray:
    """What a new predictor with this correction says."""
    opts = ["ALIGNZEG.CORRECTOR.GAMMA", str(gamma), "ALIGNZEG.CORRECTOR.THRESHOLD", str(threshold)]
    names = [part.strip() for part in TEXT.split(",")]
    return Predictor(weights, names, "cpu", opts)(image).labels


def test_corrections_are_those_of_inference_and_run_no_network(
    session: Session, weights: Path, image: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs, network = [], AlignZeg.outputs
    monkeypatch.setattr(
        AlignZeg, "outputs", lambda self, *args: (runs.append(1), network(self, *args))[1]
    )
    scene = session.look(image, TEXT)
    assert len(runs) == 1
    assert (session.gamma, session.threshold) == (3.0, 0.45)
    assert scene.vocabulary.names == NAMES and scene.vocabulary.seen == (False, True, False, True)
    assert session.look(image.copy(), f" {TEXT} ", scene) is scene
    answers = {
        (gamma, theta): session.answer(scene, ["brick", "grass"], gamma, theta)
        for gamma in (0.0, 3.0, 40.0)
        for theta in (0.1, 0.45, 0.9)
    }
    assert len(runs) == 1
    for (gamma, theta), answer in answers.items():
        assert np.array_equal(answer.labels, predicted(weights, image, gamma, theta))
    assert not np.array_equal(answers[40.0, 0.1].labels, answers[0.0, 0.1].labels)
    # The sliders leave no trace in the model.
    assert np.array_equal(
        session.answer(scene, ["brick", "grass"], 3.0).labels, answers[3.0, 0.45].labels
    )


def test_what_is_marked_as_seen_is_lowered(session: Session, image: np.ndarray) -> None:
    scene = session.look(image, TEXT)
    plain = session.answer(scene, NAMES, 0.0, 0.0)
    everything = session.answer(scene, NAMES, 40.0, 0.0)
    assert np.array_equal(everything.labels, plain.labels)
    winner = int(np.bincount(plain.labels.ravel()).argmax())
    lowered = session.answer(scene, [NAMES[winner]], 40.0, 0.0)
    assert (lowered.labels == winner).mean() < (plain.labels == winner).mean()
    assert len(plain.scores) == len(plain.classes) == len(plain.unseen) == 9
    assert session.masks(scene, [0, 4]).shape == (2, 16, 16)


def test_a_model_without_correction_gets_a_constant_shift(tmp_path: Path, image) -> None:
    seed_all_rng(0)
    cfg = setup_config(CONFIGS / "zeroshapes" / "baseline.yaml", TINY_OPTS)
    AlignZegCheckpointer(build_model(cfg), str(tmp_path), config=cfg.dump()).save("model")
    session = Session(Predictor(tmp_path / "model.pth", device="cpu"))
    assert (session.gamma, session.threshold) == (0.0, None)
    scene = session.look(image, TEXT)
    seen = session.answer(scene, ["brick"], 60.0, None)
    assert not (seen.labels == 1).any()


def test_names_from_a_browser_are_never_read_as_a_file(session: Session, tmp_path: Path) -> None:
    secret = tmp_path / "names"
    secret.write_text("secret\n")
    assert session.vocabulary(str(secret)).names == (str(secret),)
    with pytest.raises(ValueError, match="is called like a file"):
        session.vocabulary("classes.txt")
    for text in ("", " , ,\n"):
        with pytest.raises(ValueError, match="type class names between commas"):
            session.vocabulary(text)
    with pytest.raises(ValueError, match="given more than once"):
        session.vocabulary("cat, Cat")


def test_windows_are_refused(weights: Path) -> None:
    predictor = Predictor(weights, device="cpu", opts=["ALIGNZEG.TEST.WINDOW", "64"])
    with pytest.raises(ValueError, match=r"looks at each image once; set TEST\.AUG"):
        Session(predictor)


def test_an_overlay_says_the_name_of_every_region() -> None:
    vocabulary = Vocabulary.from_unseen(["grass", "a <b> & c"], ["a <b> & c"])
    labels = np.zeros((60, 80), np.uint8)
    labels[10:30, 20:60] = 1
    labels[40:50, 5:15] = 1
    labels[55:, 70:] = 255
    svg = pictures.overlay(np.zeros((60, 80, 3), np.uint8), labels, vocabulary)
    root = ElementTree.fromstring(svg)
    titles = [title.text for title in root.iter("title")]
    assert titles == ["grass, 80 %", "a <b> & c, 17 %", "a <b> & c, 2 %", "none of these, 1 %"]
    texts = [(text.text, float(text.get("x")), float(text.get("y"))) for text in root.iter("text")]
    assert [text for text, *_ in texts] == titles_without_shares(titles[:3])
    for name, x, y in texts:
        assert labels[int(y), int(x)] == vocabulary.names.index(name)
    outline = [path.get("d") for path in root.iter("path")][1]
    corners = {tuple(map(int, pair)) for pair in re.findall(r"(\d+) (\d+)", outline)}
    assert corners == {(20, 10), (20, 29), (59, 29), (59, 10)}


def titles_without_shares(titles: list[str]) -> list[str]:
    return [title.rpartition(",")[0] for title in titles]


def test_areas_before_and_after() -> None:
    vocabulary = Vocabulary.from_unseen(["grass", "<sky>"], ["<sky>"])
    before, after = np.zeros((2, 10, 10), np.uint8)
    after[:3] = 1
    after[9, 9] = 255
    image = np.full((10, 10, 3), 200, np.uint8)
    table = ElementTree.fromstring(pictures.areas(image, before, after, vocabulary))
    rows = ["".join(row.itertext()) for row in table.iter("tr")]
    assert rows[1:] == [
        "grass100.0 %69.0 %",
        "<sky> unseen0.0 %30.0 %",
        "none of these0.0 %1.0 %",
    ]
    # The legend has the colour of the overlay: 55 percent of the class's, the rest the image's.
    mixed = np.round(0.45 * 200 + 0.55 * class_colors(vocabulary.names)[0].astype(float))
    color = "#{:02x}{:02x}{:02x}".format(*mixed.astype(int))
    assert color in table.find(".//tbody/tr/th/i").get("style")


def test_a_tile_lights_the_proposal() -> None:
    image = np.full((40, 80, 3), 100, np.uint8)
    mask = np.zeros((10, 20), np.float32)
    mask[:, :10] = 1
    tile = pictures.tile(image, mask, (255, 0, 0))
    assert tile.shape == (110, 220, 3)
    assert tile[55, 20].tolist() == [146, 70, 70]
    assert tile[55, 200].tolist() == [201, 201, 201]


def test_examples_suit_the_words_that_the_model_knows(session: Session, tmp_path: Path) -> None:
    assert session.knows("red star, brick") and not session.knows("red star, cat")
    examples = write_examples(tmp_path, session)
    assert len(examples) == 2
    for example in examples:
        with Image.open(example.file) as image:
            assert image.size == (256, 256)
        session.vocabulary(example.classes)
        assert session.knows(example.classes)


def test_the_page_reads_pictures_as_all_commands_do(session: Session, tmp_path: Path) -> None:
    """What Gradio hands over is the file: by itself it would show transparent pixels as black."""
    from gradio.components.image import ImageData

    from alignzeg.web import page

    clear = np.zeros((32, 48, 4), np.uint8)
    clear[:, :20] = (200, 30, 40, 255)
    Image.fromarray(clear).save(tmp_path / "clear.png")
    (tmp_path / "text.png").write_text("no image")
    blocks = page.build(session)
    (part,) = [b for b in blocks.blocks.values() if getattr(b, "elem_id", "") == "image"]
    given = part.preprocess(ImageData(path=str(tmp_path / "clear.png"), orig_name="clear.png"))
    assert (session.look(given, TEXT).image == read_rgb(tmp_path / "clear.png")).all()
    shown = page._Page(session).show(str(tmp_path / "text.png"), TEXT, [], 0, 0, None)
    assert "cannot read image file text.png" in shown[2] and str(tmp_path) not in shown[2]
