"""ImageNetVLM: the map between its two halves, images, and the contract of its registry."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from detectron2.modeling import build_model
from helpers import CONFIGS
from imagenet_cases import imagenet_opts
from tiny_imagenet import CHANNELS, FEATURES, MODEL, write_classifier
from torch import Tensor, nn

from alignzeg.engine import setup_config
from alignzeg.engine.checkpoints.checkpoint import describe, verify
from alignzeg.modeling.vlm import ImageNetVLM
from alignzeg.modeling.vlm.classifier import IMAGENET_NAMES
from alignzeg.modeling.vlm.imagenet import ridge_map
from alignzeg.registries import VLM_REGISTRY


def some_image(height: int = 64, width: int = 96, batch: int = 2) -> Tensor:
    return torch.rand(batch, 3, height, width) * 255


def test_the_ridge_is_the_naive_closed_form() -> None:
    random = np.random.default_rng(0)
    x, y = random.normal(size=(30, 5)), random.normal(size=(30, 7))
    for ridge in (0.1, 10.0):
        naive = np.linalg.inv(x.T @ x + ridge * np.eye(5)) @ x.T @ y
        found = ridge_map(torch.tensor(x), torch.tensor(y), ridge)
        np.testing.assert_allclose(found.numpy(), naive, rtol=1e-8, atol=1e-10)
    # And the minimum of what it minimises: the gradient there is zero.
    m = found.clone().requires_grad_()
    loss = (torch.tensor(y) - torch.tensor(x) @ m).square().sum() + ridge * m.square().sum()
    (gradient,) = torch.autograd.grad(loss, m)
    assert gradient.abs().max() < 1e-9


def test_the_map_joins_names_and_rows(make_imagenet, imagenet_files: Path) -> None:
    vlm = make_imagenet(ridge=3.0)
    state = torch.load(imagenet_files / f"{MODEL}.pth", weights_only=True)
    rows = state["classifier.weight"]
    names = vlm.embed_text(list(IMAGENET_NAMES))
    wanted = ridge_map(names, rows - rows.mean(dim=0), 3.0)
    torch.testing.assert_close(vlm.to_text, wanted, rtol=1e-3, atol=1e-4)
    assert vlm.to_text.shape == (CHANNELS, FEATURES)


@pytest.mark.parametrize(
    ("stride", "size", "grid"),
    [
        (32, (64, 96), (2, 3)),
        (16, (64, 64), (4, 4)),
        (8, (128, 300), (8, 20)),
        (16, (30, 60), (4, 8)),
    ],
)
def test_the_dense_grid_follows_the_stride(
    make_imagenet, stride: int, size: tuple, grid: tuple
) -> None:
    dense = make_imagenet(output_stride=stride).embed_dense(some_image(*size))
    assert dense.shape == (2, CHANNELS, *grid)
    assert dense.isfinite().all()


def test_features_are_timms_own(make_imagenet, imagenet_files: Path) -> None:
    """Without dilation and at the network's own resolution it is the plain classifier."""
    vlm = make_imagenet(output_stride=32)
    image = some_image()
    network = timm.create_model(MODEL, checkpoint_path=str(imagenet_files / f"{MODEL}.pth")).eval()
    mean, std = (torch.tensor(network.pretrained_cfg[k]).view(1, 3, 1, 1) for k in ("mean", "std"))
    with torch.no_grad():
        pixels = (image / 255 - mean) / std
        maps, logits = network.forward_features(pixels), network(pixels)
    encoded = vlm.encode_image(image)
    torch.testing.assert_close(encoded.features, maps, rtol=1e-4, atol=1e-5)
    said = network.classifier(encoded.features.mean(dim=(2, 3)))
    torch.testing.assert_close(said, logits, rtol=1e-4, atol=1e-5)
    mapped = torch.einsum("dc,bchw->bdhw", vlm.to_text, maps)
    torch.testing.assert_close(encoded.dense, mapped, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("model", ["test_resnet", "test_convnext"])
def test_another_classifier(make_imagenet, tmp_path: Path, model: str) -> None:
    """ConvNeXt has a norm between the mean and the last layer, which every place passes alone."""
    vlm = make_imagenet(
        model_name=model, weights=write_classifier(tmp_path, model), output_stride=32
    )
    features = vlm.encode_image(some_image(32, 32)[:, :, :1, :1].expand(2, 3, 64, 64)).features
    network = vlm.classifier.network
    pixel = features[:1, :, :1, :1].mean(dim=(2, 3))
    assert pixel.shape[1] == network.get_classifier().in_features
    image = some_image(64, 64)
    maps = network.forward_features((image - vlm.classifier.mean) / vlm.classifier.std)
    alone = network.forward_head(maps[:, :, 1:2, :1], pre_logits=True)
    torch.testing.assert_close(
        vlm.encode_image(image).features[:, :, 1, 0], alone, rtol=1e-4, atol=1e-5
    )


def test_regions_are_the_naive_mean(make_imagenet) -> None:
    vlm = make_imagenet()
    image, masks = some_image(), torch.randn(2, 3, 16, 24) * 4
    masks[1, 2] = -40.0
    masks[1, 2, 0, 23] = -30.0
    dense = vlm.embed_dense(image)
    regions = vlm.embed_regions(image, masks)
    assert dense.shape[-2:] == (4, 6)
    for b in range(2):
        for q in range(3):
            total = torch.zeros(CHANNELS)
            for i in range(4):
                for j in range(6):
                    block = masks[b, q, 4 * i : 4 * i + 4, 4 * j : 4 * j + 4]
                    total += block.sigmoid().mean() * dense[b, :, i, j]
            if (b, q) == (1, 2):  # empty: its most likely place
                total = dense[b, :, 0, 5]
            torch.testing.assert_close(regions[b, q], F.normalize(total, dim=0))


def test_one_pass_serves_both(make_imagenet) -> None:
    vlm = make_imagenet()
    image, masks = some_image(), torch.randn(2, 3, 16, 24)
    encoded = vlm.encode_image(image)
    assert torch.equal(vlm.embed_dense(encoded), vlm.embed_dense(image))
    assert torch.equal(vlm.embed_regions(encoded, masks), vlm.embed_regions(image, masks))
    calls = []
    handle = vlm.classifier.network.register_forward_pre_hook(lambda *_: calls.append(1))
    stem = vlm.classifier.network.conv_stem.register_forward_hook(lambda *_: calls.append(1))
    encoded = vlm.encode_image(image)
    vlm.embed_dense(encoded)
    vlm.embed_regions(encoded, masks)
    handle.remove()
    stem.remove()
    assert len(calls) == 1
    assert vlm.embed_regions(encoded, torch.zeros(2, 0, 8, 8)).shape == (2, 0, CHANNELS)


@pytest.mark.parametrize(
    ("image", "masks"),
    [((2, 1, 64, 64), (2, 3, 8, 8)), ((2, 3, 64, 64), (1, 3, 8, 8)), ((2, 3, 64, 64), (2, 8, 8))],
)
def test_wrong_shapes_are_refused(make_imagenet, image: tuple, masks: tuple) -> None:
    with pytest.raises(ValueError, match=r"must be \("):
        make_imagenet().embed_regions(torch.zeros(image), torch.zeros(masks))


def test_autocast(make_imagenet) -> None:
    vlm = make_imagenet()
    image, masks = some_image(), torch.randn(2, 3, 16, 16)
    plain = vlm.embed_regions(image, masks)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = vlm.embed_regions(image, masks)
        text = vlm.embed_text(["a new name"])
    assert (plain * mixed).sum(-1).min() > 0.98
    assert mixed.dtype == text.dtype == torch.float32
    torch.testing.assert_close(text, make_imagenet().embed_text(["a new name"]))


def test_frozen_and_outside_checkpoints(make_imagenet) -> None:
    vlm = make_imagenet()
    parent = nn.ModuleDict({"vlm": vlm, "head": nn.Linear(2, 2)})
    assert set(parent.state_dict()) == {"head.weight", "head.bias"}
    parent.load_state_dict(parent.state_dict(), strict=True)
    assert not list(vlm.parameters())
    parent.train()
    assert not any(module.training for module in vlm.classifier.modules())
    assert not any(parameter.requires_grad for parameter in vlm.classifier.parameters())
    image = some_image().requires_grad_()
    encoded = vlm.encode_image(image)
    assert not encoded.dense.requires_grad and not encoded.features.requires_grad
    parent.double()
    assert vlm.classifier.network.conv_stem.weight.dtype == torch.float64
    assert vlm.embed_regions(image, torch.randn(2, 2, 8, 8)).isfinite().all()
    parent.to("meta")
    assert vlm.device.type == vlm.classifier.mean.device.type == "meta"


def test_properties_and_what_the_hash_depends_on(
    make_imagenet, imagenet_files: Path, tmp_path: Path
) -> None:
    vlm = make_imagenet()
    assert (vlm.embed_dim, vlm.logit_scale, vlm.device.type) == (CHANNELS, 30.0, "cpu")
    assert vlm.id == f"{MODEL}/{MODEL}.pth+sentences" and len(vlm.hash) == 64
    assert (
        make_imagenet().hash
        == vlm.hash
        == make_imagenet(output_stride=32, image_size=96, logit_scale=9).hash
    )
    assert make_imagenet(logit_scale=9).logit_scale == 9
    assert make_imagenet(image_size=0).image_size == 320
    state = torch.load(imagenet_files / f"{MODEL}.pth", weights_only=True)
    torch.save({**state, "classifier.bias": state["classifier.bias"] + 1}, tmp_path / "w.pth")
    others = [
        make_imagenet(ridge=2.0),
        make_imagenet(templates=["{}"]),
        make_imagenet(weights=str(tmp_path / "w.pth")),
    ]
    assert len({vlm.hash, *(other.hash for other in others)}) == 4


def test_a_checkpoint_says_what_differs(make_imagenet) -> None:
    class Model(nn.Module):
        def __init__(self, vlm: ImageNetVLM) -> None:
            super().__init__()
            self.vlm = vlm

    found = describe(Model(make_imagenet()), "")
    verify("x.pth", found, Model(make_imagenet()))
    with pytest.raises(ValueError, match="other weights of the VLM.*TEMPLATES, RIDGE"):
        verify("x.pth", found, Model(make_imagenet(ridge=2.0)))


def test_from_config(imagenet_files: Path) -> None:
    opts = [*("ALIGNZEG.VLM.OUTPUT_STRIDE", "8", "ALIGNZEG.VLM.LOGIT_SCALE", "20")]
    cfg = setup_config("", [*imagenet_opts(imagenet_files), *opts])
    vlm = VLM_REGISTRY.get("ImageNetVLM")(cfg)
    assert vlm.templates == ("a photo of a {}", "a {}", "{}", "a photo of the {} in a scene")
    assert (vlm.image_size, vlm.logit_scale) == (64, 20.0)
    assert vlm.embed_dense(some_image(64, 64)).shape[-2:] == (8, 8)


def test_the_whole_model_keeps_no_key_of_it(imagenet_files: Path, tiny_opts: list[str]) -> None:
    config = CONFIGS / "zeroshapes" / "alignzeg.yaml"
    model = build_model(setup_config(config, [*tiny_opts, *imagenet_opts(imagenet_files)]))
    assert isinstance(model.vlm, ImageNetVLM)
    names = [*model.state_dict(), *(name for name, _ in model.named_parameters())]
    assert names and not any(name.startswith("head.vlm.") for name in names)
