"""Weight files of OpenClipVLM: every layout loads, no code runs, and every refusal."""

from __future__ import annotations

import json
from pathlib import Path

import open_clip
import pytest
import torch
from clip_cases import TOWERS
from safetensors.torch import save_file
from tiny_imagenet import write_sentences

from alignzeg.modeling.vlm import OpenClipVLM
from alignzeg.modeling.vlm.weights import check_clip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_name": "ViT-Z-99"}, "unknown CLIP model 'ViT-Z-99'"),
        ({"weights": "no-such-tag"}, "'no-such-tag', which is neither a file nor a pretrained tag"),
        ({"weights": ""}, "'test-vit' comes without weights"),
        ({"regions": "Crops"}, r"REGIONS is 'Crops'.*MaskGuidedTokens"),
        ({"region_blocks": 9}, "REGION_BLOCKS is 9.*choose 1 to 4"),
        ({"templates": ["x"]}, "template 'x'"),
        ({"image_size": -1}, "IMAGE_SIZE is -1"),
    ],
)
def test_bad_settings(make_clip, changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_clip(**changes)


@pytest.mark.parametrize("name", ["test-resnet", "test-convnext"])
def test_mask_guided_tokens_need_a_vit(make_clip, name: str) -> None:
    with pytest.raises(ValueError, match="set ALIGNZEG.VLM.REGIONS to MaskPooling"):
        make_clip(name, regions="MaskGuidedTokens")


def test_wrong_and_damaged_weight_files(
    make_clip, clip_files: dict[str, str], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="cannot be loaded into 'test-vit'"):
        make_clip(weights=clip_files["test-resnet"])
    whole = Path(clip_files["test-vit"]).read_bytes()
    for name, data in [
        ("short.safetensors", whole[:4000]),
        ("empty.pt", b""),
        ("noise.pt", b"abc" * 99),
    ]:
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ValueError, match=f"{name}.*damaged"):
            make_clip(weights=str(tmp_path / name))


def test_pickled_code_is_not_run(make_clip, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple:
            return (Path(tmp_path / "ran").touch, ())

    torch.save({"state_dict": Trap()}, tmp_path / "trap.pt")
    with pytest.raises(ValueError, match="trap.pt"):
        make_clip(weights=str(tmp_path / "trap.pt"))
    assert not (tmp_path / "ran").exists()


def test_plain_checkpoints_load(make_clip, clip_files: dict[str, str], tmp_path: Path) -> None:
    model = open_clip.create_model("test-vit", pretrained=clip_files["test-vit"])
    torch.save(
        {"state_dict": {f"module.{k}": v for k, v in model.state_dict().items()}}, tmp_path / "a.pt"
    )
    same = make_clip(weights=str(tmp_path / "a.pt")).embed_dense(torch.ones(1, 3, 32, 32))
    assert torch.allclose(same, make_clip().embed_dense(torch.ones(1, 3, 32, 32)))


@pytest.mark.parametrize(
    ("model", "weights", "fix"),
    [
        ("ViT-B-32", "openai", "'ViT-B-32-quickgelu'"),
        ("ViT-B-32-quickgelu", "laion2b_s34b_b79k", "'ViT-B-32'"),
        ("RN50", "rn50-openai.pt", "'RN50-quickgelu'"),
    ],
)
def test_activation_mismatch_before_any_download(
    monkeypatch: pytest.MonkeyPatch, model: str, weights: str, fix: str
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("tried to download")

    monkeypatch.setattr(open_clip, "download_pretrained", refuse)
    with pytest.raises(ValueError, match=f"GELU.*set ALIGNZEG.VLM.MODEL to {fix}"):
        OpenClipVLM(model_name=model, weights=weights)


def test_activation_in_a_files_metadata(make_clip, tmp_path: Path) -> None:
    model = open_clip.create_model("test-vit")
    tensors = {key: value.contiguous() for key, value in model.state_dict().items()}
    save_file(tensors, tmp_path / "w.safetensors", metadata={"quick_gelu": "true"})
    with pytest.raises(ValueError, match="QuickGELU"):
        make_clip(weights=str(tmp_path / "w.safetensors"))
    make_clip("test-quick")


def test_failed_download_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> str:
        raise RuntimeError("no route to host")

    monkeypatch.setattr(open_clip, "download_pretrained", fail)
    with pytest.raises(ValueError, match="could not be downloaded.*no route to host"):
        OpenClipVLM(model_name="ViT-B-32", weights="laion2b_s34b_b79k")


def test_towers_that_cannot_be_read_are_refused_before_any_download(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of every kind of tower that open_clip has; the hint is a pair that is not refused itself."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("tried to download")

    monkeypatch.setattr(open_clip, "download_pretrained", refuse)
    names = ("MobileCLIP2-S0", "MobileCLIP-B", "ViTamin-S", "EVA02-B-16", "PE-Core-T-16-384")
    names += ("ViT-B-16-SigLIP2", "coca_ViT-B-32", "ViT-L-14-CLIPA", "nllb-clip-base-siglip")
    for name in names:
        tag = open_clip.list_pretrained_tags_by_model(name)[0]
        for regions in ("MaskGuidedTokens", "MaskPooling"):
            with pytest.raises(ValueError, match="cannot be read.*until it can be") as failure:
                OpenClipVLM(model_name=name, weights=tag, regions=regions)
            assert "MaskPooling" not in str(failure.value) and "\n" not in str(failure.value)
    for regions in ("MaskGuidedTokens", "MaskPooling"):
        check_clip("ViT-B-16", "laion2b_s34b_b88k", regions, 3)
    check_clip("convnext_base_w", "laion2b_s13b_b82k", "MaskPooling", 3)
    check_clip("RN50-quickgelu", "openai", "MaskPooling", 3)
    with pytest.raises(ValueError, match="one of the tags.*'RN50-quickgelu'"):
        check_clip("RN50", "", "MaskPooling", 3)
    with pytest.raises(ValueError, match=r"tags \['laion400m_e31'.*(?!openai)"):
        check_clip("ViT-B-16", "", "MaskPooling", 3)


def test_checking_draws_no_random_numbers() -> None:
    torch.manual_seed(3)
    wanted = torch.rand(2)
    torch.manual_seed(3)
    check_clip("alignzeg-tiny", "", "MaskGuidedTokens", 3)
    assert torch.equal(torch.rand(2), wanted)


def test_a_multilingual_clip_reads_names(make_clip, tmp_path: Path) -> None:
    write_sentences(tmp_path)
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path / "sentences"
    PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), pad_token="[PAD]", unk_token="[UNK]"
    ).save_pretrained(folder)
    text = {"hf_model_name": str(folder), "hf_tokenizer_name": str(folder), "context_length": 30}
    text |= {"hf_proj_type": "mlp", "hf_pooler_type": "mean_pooler"}
    config = {"embed_dim": 24, "vision_cfg": TOWERS["test-vit"], "text_cfg": text}
    (tmp_path / "multilingual.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / "multilingual.json")
    model = open_clip.create_model("multilingual", load_weights=False, pretrained_text=False).eval()
    torch.save(model.state_dict(), tmp_path / "w.pt")
    vlm = make_clip("multilingual", weights=str(tmp_path / "w.pt"))
    tokens = open_clip.get_tokenizer("multilingual")(["a photo of a gato."])
    want = torch.nn.functional.normalize(model.encode_text(tokens), dim=-1)
    torch.testing.assert_close(vlm.embed_text(["gato"]), want)
    assert vlm.token_counts(["gato"])[0] < vlm.context_length == 30
    assert vlm.unread(["gato", "\u732b"]) == ["\u732b"]
    config["text_cfg"] |= {"hf_model_name": "none/there", "hf_tokenizer_name": "none/there"}
    (tmp_path / "far.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / "far.json")
    with pytest.raises(ValueError, match="tokenizer of 'far' cannot be had"):
        make_clip("far", weights=str(tmp_path / "w.pt"))
