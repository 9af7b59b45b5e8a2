"""A weight file is read as its model's tag is: mean, deviation, interpolation, GELU, positions."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import open_clip
import pytest
import timm
import torch
import torch.nn.functional as F
from clip_cases import some_image
from safetensors.torch import load_file, save_file

from alignzeg.modeling.vlm.classifier import PlaceClassifier
from alignzeg.modeling.vlm.preprocessing import completed, of_file, of_tag
from alignzeg.modeling.vlm.regions import interpolated_positions

IMAGES = {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.6, 0.7]}
OPEN_CLIP = {"model_cfg": {}, "preprocess_cfg": {**IMAGES, "interpolation": "bilinear"}}
TRANSFORMERS = {"image_mean": IMAGES["mean"], "image_std": IMAGES["std"], "resample": 2}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("open_clip_config.json", OPEN_CLIP),
        ("preprocessor_config.json", TRANSFORMERS),
        ("processor_config.json", {"image_processor": TRANSFORMERS}),
    ],
)
def test_the_json_beside_a_file_decides(
    make_clip, clip_files: dict[str, str], tmp_path: Path, name: str, content: dict
) -> None:
    file = tmp_path / "open_clip_model.safetensors"
    shutil.copy(clip_files["test-vit"], file)
    (tmp_path / name).write_text(json.dumps(content))
    image = some_image(48, 40)
    small = F.interpolate(image, (40, 32), mode="bilinear", antialias=True) / 255
    mean, std = (torch.tensor(IMAGES[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    for weights in (tmp_path, file, f"local-dir:{tmp_path}"):
        vlm = make_clip(weights=str(weights))
        torch.testing.assert_close(vlm._prepared(image), (small - mean) / std)
        assert vlm.hash != make_clip().hash, "the mean is a part of what it is"


@pytest.mark.parametrize("given", [[0.5, 0.5], "0.5", [0.5, 0.5, float("nan")]])
def test_a_mean_that_cannot_be_is_refused(make_clip, clip_files, tmp_path: Path, given) -> None:
    shutil.copy(clip_files["test-vit"], tmp_path / "model.safetensors")
    content = json.dumps({"model_cfg": {}, "preprocess_cfg": {"mean": given}})
    (tmp_path / "open_clip_config.json").write_text(content)
    with pytest.raises(ValueError, match="gives mean as .*three numbers"):
        make_clip(weights=str(tmp_path))


@pytest.mark.parametrize(
    ("model", "place", "tag"),
    [
        ("ViT-L-14", "laion2b_s32b_b82k/open_clip_model.safetensors", "laion2b_s32b_b82k"),
        ("ViT-L-14", "ViT-L-14-laion2B-s32B-b82K.pt", "laion2b_s32b_b82k"),
        ("ViT-L-14", "models--laion--CLIP-ViT-L-14-laion2B-s32B-b82K/snapshots/0/m.bin", None),
        ("ViT-L-14", "models--apple--DFN2B-CLIP-ViT-L-14-39B/snapshots/0/m.bin", "dfn2b_s39b"),
        (
            "ViT-B-16",
            "models--timm--vit_base_patch16_clip_224.metaclip_2pt5b/s/0/m",
            "metaclip_fullcc",
        ),
        ("ViT-B-16-quickgelu", "dfn2b.pt", "dfn2b"),
        ("ViT-B-16", "mine.pt", ""),
        ("ViT-B-16", "notopenaiatall.pt", ""),
    ],
)
def test_a_path_that_bears_a_tag_is_that_tag(model: str, place: str, tag: str | None) -> None:
    wanted = "laion2b_s32b_b82k" if tag is None else tag
    assert of_file(model, Path("/home/someone") / place) == of_tag(model, wanted)


def test_what_is_assumed_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        facts = completed("ViT-L-14", "mine.pt", {}, ())
    assert facts["mean"][0] == pytest.approx(0.48145466)
    assert caplog.records[-1].levelno == logging.WARNING
    assert "'mine.pt'" in caplog.text and "mean [0.48" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.INFO):
        completed("convnext_base_w", "mine.pt", {}, ())  # all of its tags are alike
        assert caplog.records[-1].levelno == logging.INFO


def test_equal_tensors_are_the_same_vlm(make_clip, clip_files, tmp_path: Path) -> None:
    state = load_file(clip_files["test-vit"])
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}}, tmp_path / "w.pt")
    save_file(state, tmp_path / "other.safetensors")
    own = make_clip().hash
    assert {make_clip(weights=str(tmp_path / n)).hash for n in ("w.pt", "other.safetensors")} == {
        own
    }
    state["visual.proj"] += 1e-3
    save_file(state, tmp_path / "other.safetensors")
    assert make_clip(weights=str(tmp_path / "other.safetensors")).hash != own


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_positions_are_those_of_the_file(make_clip, clip_files, tmp_path: Path, dtype) -> None:
    state = load_file(clip_files["test-vit"])
    state["visual.positional_embedding"] = true = torch.randn(8 * 8 + 1, 32)
    state["positional_embedding"] = torch.randn(40, 16)
    half = {name: value.to(dtype) for name, value in state.items()}
    torch.save(half, tmp_path / "fine.pt")
    vlm = make_clip(weights=str(tmp_path / "fine.pt"))
    visual = vlm.clip.visual
    assert vlm.image_size == 64, "a place is 8 pixels"
    assert torch.equal(interpolated_positions(visual, (8, 8)), true.to(dtype).float())
    image = some_image(64, 64)
    whole = vlm.encode_image(image).dense
    assert whole.shape[-2:] == (8, 8)
    # As open_clip reads a model that was built for these sizes.
    built = open_clip.create_model("test-vit", force_image_size=64, force_context_length=40)
    built.load_state_dict({name: value.float() for name, value in half.items()})
    prepared = vlm._prepared(image)
    torch.testing.assert_close(visual(prepared), built.visual(prepared))
    sentence = "a photo of " + "a very " * 12 + "long thing"
    tokens = open_clip.get_tokenizer("test-vit", context_length=40)(sentence)
    assert vlm.context_length == 40 and (tokens != 0).sum() > 24
    want = F.normalize(built.encode_text(tokens), dim=-1)
    torch.testing.assert_close(
        make_clip(weights=str(tmp_path / "fine.pt"), templates=["{}"]).embed_text([sentence]), want
    )


def test_a_resnet_of_another_size(make_clip, clip_files, tmp_path: Path) -> None:
    state = load_file(clip_files["test-resnet"])
    rows = state["visual.attnpool.positional_embedding"].shape[1]
    state["visual.attnpool.positional_embedding"] = torch.randn(4 * 4 + 1, rows)
    torch.save(state, tmp_path / "fine.pt")
    vlm = make_clip("test-resnet", weights=str(tmp_path / "fine.pt"))
    assert vlm.image_size == 128


def test_a_timm_file_has_its_tags_mean(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    name = "resnet18d"
    state = timm.create_model(name).state_dict()
    means = {}
    for place in ("plain.pth", "resnet18d.ra4_e3600_r224_in1k.pth", "beside/w.pth"):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        torch.save(state, tmp_path / place)
    (tmp_path / "beside/config.json").write_text(json.dumps({"pretrained_cfg": IMAGES}))
    for place in ("plain.pth", "resnet18d.ra4_e3600_r224_in1k.pth", "beside/w.pth"):
        caplog.clear()
        found = PlaceClassifier(name, str(tmp_path / place), 32)
        means[place] = found.mean.flatten()[0].item() / 255, found.weights_hash
        assert ("assumed" in caplog.text) == (place == "plain.pth")
    assert [round(mean, 3) for mean, _ in means.values()] == [0.485, 0.5, 0.1]
    assert len({digest for _, digest in means.values()}) == 3
