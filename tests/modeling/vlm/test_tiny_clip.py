"""The bundled tiny CLIP keeps its promises, and what trains it never sees a mask."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import REPOSITORY
from safetensors import safe_open
from tiny_clip.evaluation import evaluate
from tiny_clip.model import ASSETS, build_model
from tiny_clip.recipe import Recipe
from tiny_clip.sampling import (
    CLUTTER,
    caption_windows,
    draw_batch,
    draw_windows,
    render_pool,
    say,
)
from tiny_clip.training import Job, schedule, train

from alignzeg.data.zeroshapes import class_names
from alignzeg.modeling.vlm import OpenClipVLM

WEIGHTS = ASSETS / "alignzeg-tiny.safetensors"


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    return evaluate(scenes=60, cache_dir=str(tmp_path_factory.mktemp("text")))


def test_names_regions(figures: dict[str, float]) -> None:
    """The one figure: regions of fresh scenes, exact masks, all names to choose from."""
    assert figures["MaskGuidedTokens/all"] >= 70
    assert figures["MaskGuidedTokens/unseen"] >= 60


def test_mask_pooling_is_usable(figures: dict[str, float]) -> None:
    assert figures["MaskPooling/stuff"] >= 90
    assert figures["MaskPooling/colour"] >= 90


def test_small_half_precision_and_signed() -> None:
    assert WEIGHTS.stat().st_size < 12e6
    with safe_open(WEIGHTS, "pt") as stream:
        metadata = stream.metadata()
        tensors = [stream.get_tensor(key) for key in stream.keys()]  # noqa: SIM118
    assert "train_tiny_clip.py" in metadata["command"]
    assert all(seed.strip().isdigit() for seed in metadata["seed"].split(","))
    assert all(tensor.dtype == torch.float16 for tensor in tensors)
    assert sum(tensor.numel() for tensor in tensors) < 6e6


def test_any_words_can_be_typed(tmp_path: Path) -> None:
    vlm = OpenClipVLM(templates=["single"], cache_dir=str(tmp_path))
    assert vlm.embed_text(["a crimson aeroplane over Zürich", "星"]).isfinite().all()


def test_batches_hold_images_windows_and_captions() -> None:
    pool = render_pool(0, range(4))
    batch = draw_batch(np.random.default_rng(0), pool, 4, 6)
    assert batch.images.shape == (4, 128, 128, 3)
    assert batch.windows.shape == (4, 6, 256)
    assert batch.names.shape == (4, 6)
    assert batch.names.max() <= len(class_names())
    assert (batch.names >= 0).mean() > 0.5
    assert all(" on " in caption for caption in batch.captions)
    again = draw_batch(np.random.default_rng(0), pool, 4, 6)
    assert np.array_equal(batch.windows, again.windows)
    assert batch.captions == again.captions


def test_training_scenes_are_not_the_data_sets() -> None:
    """Stream, seed and number of things differ from those of the data set's scenes."""
    from alignzeg.data.zeroshapes import render_scene, scene_rng

    pool = render_pool(Recipe().seed, range(3))
    for index in range(3):
        for seed in (0, Recipe().seed):
            for split in ("train", "val", "clip_eval"):
                other = render_scene(scene_rng(seed, split, index)).image
                assert not any(np.array_equal(image, other) for image in pool.images)


def test_windows_are_irregular_and_of_many_sizes() -> None:
    things = np.full((1, 7, 3), 0.2, np.float32)
    windows = draw_windows(np.random.default_rng(0), things, 16, 300)[0]
    sizes = windows.sum(-1)
    assert sizes.min() < 6
    assert sizes.max() > 100
    assert len({window.tobytes() for window in windows}) > 250


def test_captions_name_what_dominates() -> None:
    counts = np.zeros((1, 4, 4), int)  # four patches; names: thing 0, thing 1, stuff 2, clutter 3
    counts[0, 0] = [60, 0, 4, 0]
    counts[0, 1] = [30, 30, 4, 0]
    counts[0, 2] = counts[0, 3] = [0, 0, 64, 0]
    is_thing = np.array([True, True, False, False])
    looks = np.array([[[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 1], [1, 0, 1, 1]]], bool)
    windows, names = caption_windows(np.random.default_rng(0), looks, counts, is_thing, 4)
    said = {tuple(w.tolist()): int(n) for w, n in zip(windows[0], names[0], strict=True)}
    assert said[(True, False, False, False)] == 0
    assert said[(False, True, False, False)] == -1, "two things share it"
    assert said[(False, False, True, True)] == 2


@pytest.mark.parametrize(
    ("name", "full", "shape", "colour"),
    [
        ("red star", "red star", "star", "red thing"),
        ("brick", "brick", "brick", None),
        (CLUTTER, CLUTTER, CLUTTER, None),
    ],
)
def test_caption_styles(name: str, full: str, shape: str, colour: str | None) -> None:
    assert (say(name, "full"), say(name, "shape"), say(name, "colour")) == (full, shape, colour)


def test_schedule_warms_up_and_ends_near_zero() -> None:
    recipe = Recipe(warmup=10)
    assert schedule(recipe, 5, 0.0) == 0.5
    assert schedule(recipe, 20, 0.0) == 1.0
    assert schedule(recipe, 20, 1.0) == pytest.approx(1e-3)


def test_two_steps_of_training(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    recipe = Recipe(steps=2, batch=2, windows=4, pool_scenes=4, processes=1, warmup=1)
    path = tmp_path / "tiny.safetensors"
    try:
        train(Job(recipe, "train_tiny_clip.py --steps 2", path, save_every=2, eval_scenes=2))
    finally:
        torch.set_num_threads(threads)
    with safe_open(path, "pt") as stream:
        assert stream.metadata()["steps"] == "2"
        trained = stream.get_tensor("visual.conv1.weight").float()
    fresh, _ = build_model(recipe.seed)
    assert not torch.allclose(trained, fresh.visual.conv1.weight, atol=1e-3)


def test_command_judges_the_bundled_weights(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    script = REPOSITORY / "projects" / "tiny_clip" / "train_tiny_clip.py"
    main = runpy.run_path(str(script))["main"]
    monkeypatch.setattr(sys, "argv", [str(script), "--eval-only", "--scenes", "3"])
    assert main() == 0
    assert json.loads(capsys.readouterr().out)["MaskGuidedTokens/all"] > 50
