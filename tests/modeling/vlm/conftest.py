"""Tiny random networks behind each kind of VLM."""

from __future__ import annotations

import json
from pathlib import Path

import open_clip
import pytest
import torch
from clip_cases import TEXT, TOWERS
from safetensors.torch import save_file
from tiny_imagenet import MODEL, write_classifier, write_sentences

from alignzeg.modeling.vlm import ImageNetVLM, OpenClipVLM


@pytest.fixture(scope="module")
def clip_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Random weights of every tower kind, as local files; names become known to open_clip."""
    folder = tmp_path_factory.mktemp("clip")
    paths = {}
    for name, vision in TOWERS.items():
        config = {"embed_dim": 24, "vision_cfg": vision, "text_cfg": TEXT}
        if name == "test-quick":
            config["quick_gelu"] = True
        (folder / f"{name}.json").write_text(json.dumps(config))
        open_clip.add_model_config(folder / f"{name}.json")
        torch.manual_seed(0)
        model = open_clip.create_model(name)
        for parameter in model.parameters():  # biases too, so that nothing hides behind a zero
            parameter.data += 0.02 * torch.randn_like(parameter)
        paths[name] = str(folder / f"{name}.safetensors")
        save_file(
            {key: value.contiguous() for key, value in model.state_dict().items()}, paths[name]
        )
    return paths


@pytest.fixture
def make_clip(clip_files: dict[str, str], tmp_path: Path):
    """Builds a VLM of one of the tiny models."""

    def build(name: str = "test-vit", **changes: object) -> OpenClipVLM:
        arguments = {
            "model_name": name,
            "weights": clip_files.get(name, ""),
            "templates": ["single"],
            "regions": "MaskGuidedTokens" if name == "test-vit" else "MaskPooling",
            "region_blocks": 2,
            "cache_dir": str(tmp_path / "cache"),
        }
        return OpenClipVLM(**{**arguments, **changes})

    return build


@pytest.fixture(scope="module")
def imagenet_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny classifier, a tiny sentence encoder and a cache."""
    folder = tmp_path_factory.mktemp("imagenet")
    write_classifier(folder)
    write_sentences(folder)
    return folder


@pytest.fixture
def make_imagenet(imagenet_files: Path):
    """Builds the tiny VLM; the cache is shared unless a test asks for one of its own."""

    def build(**changes: object) -> ImageNetVLM:
        arguments = {
            "model_name": MODEL,
            "weights": str(imagenet_files / f"{MODEL}.pth"),
            "text_weights": str(imagenet_files / "sentences"),
            "templates": ["single"],
            "image_size": 64,
            "cache_dir": str(imagenet_files / "cache"),
        }
        return ImageNetVLM(**{**arguments, **changes})

    return build
