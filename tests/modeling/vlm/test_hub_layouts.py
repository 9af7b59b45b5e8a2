"""CLIP as Hugging Face's transformers saves it: the same answers as transformers gives."""

from __future__ import annotations

import json
from pathlib import Path

import open_clip
import pytest
import torch
from torch import Tensor
from transformers import CLIPConfig, CLIPModel

from alignzeg.modeling.vlm.weights import load_clip

SIDES = {"hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 2}
TEXT = {**SIDES, "num_attention_heads": 2, "vocab_size": 100, "max_position_embeddings": 16}
VISION = {**SIDES, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
OURS = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 100, "width": 32, "heads": 2, "layers": 2},
}


def theirs(activation: str) -> CLIPModel:
    torch.manual_seed(7)
    text = {**TEXT, "hidden_act": activation, "bos_token_id": 98, "eos_token_id": 99}
    config = CLIPConfig(
        text_config=text, vision_config={**VISION, "hidden_act": activation}, projection_dim=24
    )
    return CLIPModel(config).eval()


@pytest.fixture(scope="module", autouse=True)
def names(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("hub")
    for name, quick in (("hub", False), ("hub-quickgelu", True)):
        (folder / f"{name}.json").write_text(json.dumps({**OURS, "quick_gelu": quick}))
        open_clip.add_model_config(folder / f"{name}.json")


@torch.no_grad()
def features(model: CLIPModel, image: Tensor, words: Tensor) -> tuple[Tensor, Tensor]:
    answer = model(input_ids=words, pixel_values=image)
    return answer.image_embeds, answer.text_embeds


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
@pytest.mark.parametrize("layout", ["folder", "file", "module."])
def test_the_answers_are_those_of_transformers(
    tmp_path: Path, activation: str, layout: str
) -> None:
    model = theirs(activation)
    model.save_pretrained(tmp_path)
    path = tmp_path if layout == "folder" else tmp_path / "model.safetensors"
    if layout == "module.":
        path = tmp_path / "w.pt"
        torch.save({f"module.{name}": value for name, value in model.state_dict().items()}, path)
    name = "hub" if activation == "gelu" else "hub-quickgelu"
    loaded, _ = load_clip(name, str(path))
    image = torch.rand(2, 3, 32, 32)
    words = torch.randint(1, 97, (2, 16))
    words[:, -1] = 99  # the end of a text has the highest number
    want_image, want_text = features(model, image, words)
    with torch.no_grad():
        assert torch.allclose(loaded.encode_image(image, normalize=True), want_image, atol=1e-5)
        assert torch.allclose(loaded.encode_text(words, normalize=True), want_text, atol=1e-5)
    assert torch.equal(loaded.logit_scale, model.logit_scale)


def test_the_activation_beside_the_file_is_minded(tmp_path: Path) -> None:
    theirs("quick_gelu").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="QuickGELU: set .* to 'hub-quickgelu'"):
        load_clip("hub", str(tmp_path))


def test_what_lacks_is_named(tmp_path: Path) -> None:
    state = dict(theirs("gelu").state_dict())
    del state["text_model.encoder.layers.1.self_attn.q_proj.weight"]
    state["text_model.encoder.layers.0.lora"] = torch.zeros(2)
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(ValueError) as failure:
        load_clip("hub", str(tmp_path / "w.pt"))
    assert "lacking: transformer.resblocks.1.attn.in_proj_weight" in str(failure.value)
    assert "too many: transformer.resblocks.0.lora" in str(failure.value)
    assert "\n" not in str(failure.value)


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="neither a file nor a pretrained tag"):
        load_clip("hub", str(tmp_path))
