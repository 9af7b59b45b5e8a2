"""Exported graphs: the answers of PyTorch and of `Predictor`, without either; what is refused."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from detectron2.modeling import build_model
from detectron2.utils.env import seed_all_rng
from helpers import CONFIGS, REPOSITORY, TINY_OPTS
from numpy.typing import NDArray
from PIL import Image

from alignzeg.__main__ import main
from alignzeg.data.zeroshapes import render_scene, scene_rng
from alignzeg.engine import AlignZegCheckpointer, setup_config
from alignzeg.exporting.files import TOLERANCE
from alignzeg.exporting.pooling import adaptive_avg_pool2d, adaptive_max_pool2d
from alignzeg.inference import Predictor

onnxruntime = pytest.importorskip("onnxruntime")
CLASSES = ["red star", "brick", "my own thing"]
SCRIPT = REPOSITORY / "projects" / "onnx" / "predict.py"
# Everything that a graph may hold: correction, ensemble, a size of the test that differs.
OPTS = [
    *TINY_OPTS,
    *("ALIGNZEG.EXTRACTOR.LAYERS", "1"),
    *("ALIGNZEG.CORRECTOR.GAMMA", "3.0", "ALIGNZEG.CORRECTOR.MODE", "soft"),
    *("ALIGNZEG.TEST.ENSEMBLE_SEEN", "0.2", "ALIGNZEG.TEST.ENSEMBLE_UNSEEN", "0.4"),
    *("INPUT.MIN_SIZE_TEST", "72", "INPUT.MAX_SIZE_TEST", "200"),
]


def checkpoint(folder: Path, config: Path, opts: list[str]) -> Path:
    """A checkpoint of an untrained model."""
    seed_all_rng(0)
    cfg = setup_config(config, opts)
    AlignZegCheckpointer(build_model(cfg), str(folder), config=cfg.dump()).save("model")
    return folder / "model.pth"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    return checkpoint(folder, CONFIGS / "zeroshapes" / "alignzeg.yaml", OPTS)


@pytest.fixture(scope="module")
def predictor(weights: Path) -> Predictor:
    return Predictor(weights, classes=CLASSES, device="cpu")


@pytest.fixture(scope="module")
def graph(weights: Path) -> Path:
    """The model as ONNX, made by the command."""
    file = weights.with_name("graph.onnx")
    assert main(["export", str(weights), str(file), "--classes", ", ".join(CLASSES)]) == 0
    return file


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("onnx_predict", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def scene(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    return render_scene(scene_rng(seed, "val", 0), max(height, width)).image[:height, :width]


@pytest.mark.parametrize("size", [(7, 9), (16, 16), (5, 40), (3, 2)])
@pytest.mark.parametrize("bins", [(7, 9), (4, 3), (1, 1), (9, 12), (5, 7)])
def test_adaptive_pooling_by_gathering_is_pytorchs(size, bins):
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    assert torch.equal(adaptive_max_pool2d(x, bins), F.adaptive_max_pool2d(x, bins))
    torch.testing.assert_close(adaptive_avg_pool2d(x, bins), F.adaptive_avg_pool2d(x, bins))


def run(graph: Path, script: ModuleType, rgb: NDArray[np.uint8], **changed) -> dict[str, NDArray]:
    """Outputs of the graph for an image of the size that the network sees."""
    session = onnxruntime.InferenceSession(str(graph))
    about = json.loads(session.get_modelmeta().custom_metadata_map["alignzeg"])
    edges = [(0, -side % about["divisor"]) for side in rgb.shape[:2]]
    image = np.pad(rgb.astype(np.float32).transpose(2, 0, 1), [(0, 0), *edges])
    size = script.vlm_size(*image.shape[1:], about["vlm_size"], about["vlm_cell"])
    seen_by_vlm = script.resize(image, size, Image.Resampling.BICUBIC).clip(0, 255)
    stored = np.load(graph.with_name(f"{graph.stem}_classes.npz"))
    given = {"image": image[None], "vlm_image": seen_by_vlm[None]}
    given |= {"text": stored["text"], "unseen": stored["unseen"]} | changed
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, given), strict=True))


@pytest.mark.parametrize(("height", "width"), [(72, 96), (130, 72), (72, 72)])
def test_scores_and_masks_are_those_of_the_model(graph, script, predictor, height, width) -> None:
    rgb = scene(height, width)
    found = run(graph, script, rgb)
    assert list(found) == ["masks", "embeds", "scores", "weights"]
    sample = {
        "image": torch.from_numpy(rgb.transpose(2, 0, 1).copy()),
        "vocabulary": predictor.vocabulary,
    }
    with torch.no_grad():
        wanted = predictor.model([sample])[0]
    np.testing.assert_allclose(found["scores"], wanted["class_probs"].numpy(), atol=TOLERANCE)
    rows, columns = wanted["mask_logits"].shape[1:]
    masks = found["masks"][:, :rows, :columns]
    np.testing.assert_allclose(masks, wanted["mask_logits"].numpy(), atol=TOLERANCE)
    np.testing.assert_allclose(np.linalg.norm(found["embeds"], axis=1), 1, atol=1e-5)


def test_scores_follow_from_embeddings_and_text_by_hand(graph, script, predictor) -> None:
    """Without correction and ensemble, as the classifier's formula has it."""
    model = predictor.model
    stored = np.load(graph.with_name("graph_classes.npz"))
    names = np.zeros(3, bool)
    found = run(graph, script, scene(72, 96), unseen=names)
    background = model.head.classifier.background_embeds.weight.detach().numpy()
    background = background / np.linalg.norm(background, axis=1, keepdims=True)
    scale = model.vlm.logit_scale
    powers = np.exp(scale * found["embeds"] @ stored["text"].T)
    nothing = np.exp(scale * found["embeds"] @ background.T).sum(axis=1, keepdims=True)
    total = powers.sum(axis=1, keepdims=True) + nothing
    np.testing.assert_allclose(found["scores"][:, -1:], nothing / total, rtol=1e-3, atol=1e-4)


def test_text_is_an_input(graph, script) -> None:
    rgb = scene(72, 96)
    stored = np.load(graph.with_name("graph_classes.npz"))
    assert stored["names"].tolist() == CLASSES
    assert stored["unseen"].tolist() == [True, False, True]
    plain, turned = (
        run(graph, script, rgb, text=stored["text"][order], unseen=stored["unseen"][order])
        for order in ([0, 1, 2], [2, 0, 1])
    )
    np.testing.assert_allclose(turned["scores"][:, :3], plain["scores"][:, [2, 0, 1]], atol=1e-5)
    np.testing.assert_allclose(turned["embeds"], plain["embeds"], atol=1e-6)
    many = np.tile(stored["text"], (50, 1))
    assert run(graph, script, rgb, text=many, unseen=np.zeros(150, bool))["scores"].shape[1] == 151


def test_the_script_needs_neither_torch_nor_detectron2(graph, predictor, tmp_path) -> None:
    rgb = scene(96, 150)
    Image.fromarray(rgb).save(tmp_path / "image.png")
    blocked = ("torch", "detectron2", "alignzeg", "torchvision", "open_clip")
    code = f"import sys, runpy\nfor n in {blocked!r}: sys.modules[n] = None\n"
    code += f"sys.argv = ['predict.py', {str(graph)!r}, 'image.png']\n"
    code += f"runpy.run_path({str(SCRIPT)!r}, run_name='__main__')\n"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    labels = np.asarray(Image.open(tmp_path / "image_labels.png"))
    wanted = predictor(rgb)
    assert (labels == wanted.labels).mean() > 0.998
    first = done.stdout.splitlines()[0].split(":")[0]
    assert first == next(iter(wanted.areas))


def test_a_pt2_file_has_free_sizes_too(weights, predictor, tmp_path, capsys) -> None:
    """Of the classes seen in training, as none are given; a key changes what is exported."""
    file = tmp_path / "graph.pt2"
    assert main(["export", str(weights), str(file), "ALIGNZEG.CORRECTOR.GAMMA", "0.0"]) == 0
    said = capsys.readouterr().out
    found = re.search(r"masks (\S+), embeds (\S+), scores (\S+), weights (\S+)$", said.strip())
    assert all(float(value) <= TOLERANCE for value in found.groups())
    extra = {"alignzeg.json": ""}
    program = torch.export.load(file, extra_files=extra)
    about = json.loads(extra["alignzeg.json"])
    assert about["seen"] == list(predictor.seen) and about["vlm_hash"] == predictor.model.vlm.hash
    stored = np.load(tmp_path / "graph_classes.npz")
    assert tuple(stored["names"]) == predictor.seen and not stored["unseen"].any()
    side, count = about["divisor"] * 7, len(predictor.seen)
    rows, columns = about["vlm_cell"]
    given = (torch.rand(1, 3, side, 2 * side) * 255, torch.rand(1, 3, 6 * rows, 9 * columns) * 255)
    text = torch.from_numpy(stored["text"])
    run = program.module()
    with torch.no_grad():
        plain, marked = (run(*given, text, torch.arange(count) < unseen) for unseen in (0, 3))
    masks, embeds, scores, weights_of = plain
    assert masks.shape == (9, side // 4, side // 2) and embeds.shape[0] == len(weights_of) == 9
    assert scores.shape == (9, count + 1)
    # Without a correction nothing depends on what is unseen: an untrained classifier answers as the
    # VLM does, in whatever shares the two are mixed.
    torch.testing.assert_close(scores, marked[2])


def one_line(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of a command that is refused."""
    assert main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    return line


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["W", "x.bin"], "'x.bin'; its name must end in one of .safetensors, .onnx, .pt2"),
        (["W", "x"], "'x'; its name must end in"),
        (["W", "no/where.onnx"], "no folder 'no'"),
        (["W", "folder.onnx"], "which is a folder; give a file"),
        (["none.pth", "x.onnx"], "'none.pth' does not exist"),
        (["text.pth", "x.onnx"], "text.pth"),
        (["foreign.pth", "x.onnx"], "not a checkpoint of alignzeg"),
        (["W", "x.onnx", "--classes", " , "], "no class names"),
        (["W", "x.onnx", "--classes", "brick,brick"], "more than once: ['brick']"),
        (["W", "x.onnx", "--classes", "nowhere.txt"], "nowhere.txt"),
        (["W", "x.onnx", "ALIGNZEG.CORRECTOR.GAMA", "1"], "did you mean ALIGNZEG.CORRECTOR.GAMMA?"),
        (["W", "x.onnx", "ALIGNZEG.CORRECTOR.GAMMA"], "come in pairs KEY VALUE"),
        (["W", "x.onnx", "ALIGNZEG.TEST.WINDOW", "64"], "a graph looks at an image once"),
        (["W", "x.onnx", "TEST.AUG.ENABLED", "True"], "a graph looks at an image once"),
        (
            ["W", "x.onnx", "--classes", "brick; wall", "ALIGNZEG.TEST.SYNONYMS", "max"],
            "SYNONYMS max cannot be exported: a graph has one text for each class, and 'brick'",
        ),
        (["W", "--classes", "brick"], "--classes is for a graph"),
        (["W", "x.safetensors", "SEED", "1"], "SEED is for a graph"),
        (["W", "x.onnx", "--clases", "brick"], "did you mean '--classes'?"),
    ],
)
def test_wrong_exports_are_one_line(words, message, weights, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.onnx").mkdir()
    (tmp_path / "text.pth").write_text("hello")
    torch.save({"model": {"a": torch.zeros(1)}}, tmp_path / "foreign.pth")
    before = {path.name for path in tmp_path.iterdir()}
    line = one_line(["export", *(str(weights) if w == "W" else w for w in words)], capsys)
    assert message in line
    assert {path.name for path in tmp_path.iterdir()} == before


def test_a_missing_package_is_named_first(weights, tmp_path, monkeypatch, capsys) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "onnx" else real(name)
    )
    line = one_line(["export", "none.pth", str(tmp_path / "x.onnx")], capsys)
    assert "package onnx" in line and "pip install 'alignzeg[export]'" in line


def test_a_model_without_proposals_is_refused(tmp_path, capsys) -> None:
    file = checkpoint(tmp_path, CONFIGS / "zeroshapes" / "pixel.yaml", TINY_OPTS)
    line = one_line(["export", str(file), str(tmp_path / "x.onnx")], capsys)
    assert "makes no mask proposals" in line
