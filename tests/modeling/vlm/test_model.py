"""OpenClipVLM's images, and what it tells of itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from clip_cases import some_image
from safetensors.torch import load_file, save_file
from torch import nn

from alignzeg.config import add_alignzeg_config
from alignzeg.registries import VLM_REGISTRY


@pytest.mark.parametrize(
    ("size", "grid"),
    [((32, 32), (4, 4)), ((64, 64), (4, 4)), ((40, 80), (4, 8)), ((90, 30), (12, 4))],
)
def test_vit_dense_grid_follows_the_image(
    make_clip, size: tuple[int, int], grid: tuple[int, int]
) -> None:
    vlm = make_clip()
    dense = vlm.embed_dense(some_image(*size))
    assert dense.shape == (2, vlm.embed_dim, *grid)
    assert dense.isfinite().all()


@pytest.mark.parametrize("name", ["test-resnet", "test-convnext"])
def test_convnets_are_dense_and_pooled(make_clip, name: str) -> None:
    vlm = make_clip(name)
    image = some_image(64, 128)
    encoded = vlm.encode_image(image)
    assert vlm.embed_dense(encoded).shape == (2, 24, 2, 4)
    masks = torch.randn(2, 5, 16, 32)
    regions = vlm.embed_regions(encoded, masks)
    assert torch.allclose(regions.norm(dim=-1), torch.ones(2, 5), atol=1e-5)
    assert torch.allclose(vlm.embed_regions(image, masks), regions, atol=1e-5)


def test_convnext_dense_mean_is_its_own_embedding(make_clip) -> None:
    """Where the trunk's head is linear after the norm, one place alone gives the tower's output."""
    vlm = make_clip("test-convnext", image_size=32)
    image = some_image(32, 32)
    dense = vlm.embed_dense(image)
    assert dense.shape[-2:] == (1, 1)
    expected = vlm.clip.visual(vlm._prepared(image))
    assert torch.allclose(dense[..., 0, 0], expected, atol=1e-4)


def test_resolution_and_normalisation_are_the_models_own(make_clip) -> None:
    vlm = make_clip()
    mean = torch.tensor(vlm.clip.visual.preprocess_cfg["mean"]).view(1, 3, 1, 1) * 255
    prepared = vlm._prepared(mean.expand(1, 3, 50, 50))
    assert prepared.shape == (1, 3, 32, 32)
    assert prepared.abs().max() < 1e-4
    assert make_clip(image_size=48)._prepared(some_image()).shape[-2:] == (48, 48)


def test_whole_image_region_is_the_plain_class_token(make_clip) -> None:
    """With all blocks read and all patches inside, a copy of the class token is the class token."""
    vlm = make_clip(region_blocks=4)
    image = some_image()
    regions = vlm.embed_regions(image, torch.full((2, 1, 8, 8), 5.0))
    plain = F.normalize(vlm.clip.visual(vlm._prepared(image)), dim=-1)
    assert torch.allclose(regions[:, 0], plain, atol=1e-5)


def test_frozen_and_outside_checkpoints(make_clip) -> None:
    vlm = make_clip()
    parent = nn.ModuleDict({"vlm": vlm, "head": nn.Linear(2, 2)})
    assert set(parent.state_dict()) == {"head.weight", "head.bias"}
    assert parent.load_state_dict(parent.state_dict(), strict=True).missing_keys == []
    assert not list(vlm.parameters())
    parent.train()
    assert not any(module.training for module in vlm.clip.modules())
    assert not any(parameter.requires_grad for parameter in vlm.clip.parameters())
    image = some_image().requires_grad_()
    assert not vlm.embed_dense(image).requires_grad
    parent.double()
    assert vlm.clip.logit_scale.dtype == torch.float64, "devices and dtypes reach the CLIP"
    assert vlm.embed_regions(image, torch.randn(2, 2, 8, 8)).isfinite().all()


def test_properties(make_clip, clip_files: dict[str, str], tmp_path: Path) -> None:
    vlm = make_clip()
    assert vlm.embed_dim == 24
    assert vlm.logit_scale == pytest.approx(float(vlm.clip.logit_scale.exp()))
    assert 1 < vlm.logit_scale < 100
    weights = load_file(clip_files["test-vit"]) | {"logit_scale": torch.tensor(9.0)}
    save_file(weights, tmp_path / "test-vit.safetensors")
    assert make_clip(weights=str(tmp_path / "test-vit.safetensors")).logit_scale == 100
    assert len(vlm.hash) == 64
    assert vlm.id == "test-vit/test-vit.safetensors"


def test_from_config(clip_files: dict[str, str], tmp_path: Path) -> None:
    from detectron2.config import get_cfg

    cfg = get_cfg()
    add_alignzeg_config(cfg)
    node = cfg.ALIGNZEG.VLM
    node.MODEL, node.WEIGHTS, node.CACHE_DIR = "test-vit", clip_files["test-vit"], str(tmp_path)
    node.TEMPLATES, node.REGION_BLOCKS, node.IMAGE_SIZE = ["vild"], 2, 64
    vlm = VLM_REGISTRY.get("OpenClipVLM")(cfg)
    assert (len(vlm.templates), vlm.region_blocks, vlm.image_size) == (14, 2, 64)
