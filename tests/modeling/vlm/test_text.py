"""OpenClipVLM's prompt templates, names and cache."""

from __future__ import annotations

from pathlib import Path

import open_clip
import pytest
import torch
import torch.nn.functional as F
from clip_cases import TOWERS
from safetensors.torch import save_file

from alignzeg.modeling.vlm import OpenClipVLM
from alignzeg.modeling.vlm.templates import TEMPLATE_SETS, resolve_templates
from alignzeg.modeling.vlm.text import encode_prompts


def test_template_sets() -> None:
    assert {name: len(templates) for name, templates in TEMPLATE_SETS.items()} == {
        "single": 1,
        "short": 4,
        "vild": 14,
        "imagenet": 80,
    }
    assert all(t.count("{}") == 1 for templates in TEMPLATE_SETS.values() for t in templates)
    assert resolve_templates(["single", "my {}", "single"]) == ("a photo of a {}.", "my {}")
    with pytest.raises(ValueError, match="'no slot' is neither"):
        resolve_templates(["no slot"])
    with pytest.raises(ValueError, match="no prompt templates"):
        resolve_templates([])


@pytest.mark.parametrize("name", sorted(TOWERS))
def test_embed_text_is_the_naive_loop(make_clip, name: str) -> None:
    templates = ["a photo of a {}.", "there is the {} in the scene with many other words"]
    vlm = make_clip(name, templates=templates)
    names = ["red star", "brick", "a much longer name of a thing"]
    tokenizer = open_clip.get_tokenizer(name)
    rows = []
    for item in names:
        prompts = [
            F.normalize(vlm.clip.encode_text(tokenizer([t.format(item)])), dim=-1)
            for t in templates
        ]
        rows.append(F.normalize(torch.cat(prompts).mean(0), dim=0))
    text = vlm.embed_text(names)
    assert text.shape == (3, vlm.embed_dim)
    assert torch.allclose(text, torch.stack(rows), atol=1e-5)
    assert not text.requires_grad


def test_context_is_cut_exactly(make_clip) -> None:
    vlm = make_clip()
    tokens = open_clip.get_tokenizer("test-vit")(["a", "a photo of a very long street"])
    seen = []
    handle = vlm.clip.transformer.register_forward_hook(
        lambda _m, _i, out: seen.append(out.shape[1])
    )
    short = encode_prompts(vlm.clip, tokens)
    handle.remove()
    assert seen == [int(tokens.argmax(-1).max()) + 1]
    assert torch.allclose(short, vlm.clip.encode_text(tokens), atol=1e-5)


def test_text_cache(make_clip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vlm = make_clip()
    calls = []
    honest = OpenClipVLM._prototypes
    monkeypatch.setattr(OpenClipVLM, "_prototypes", lambda s, n: calls.append(n) or honest(s, n))
    first = vlm.embed_text(["cat", "dog"])
    assert torch.equal(vlm.embed_text(["cat", "dog"]), first)
    assert len(calls) == 1, "memory"
    assert torch.equal(make_clip().embed_text(["cat", "dog"]), first)
    assert len(calls) == 1, "disk"
    vlm.embed_text(["dog", "cat"])
    make_clip(templates=["{}"]).embed_text(["cat", "dog"])
    assert len(calls) == 3, "names and templates are in the key"
    cached = sorted((tmp_path / "cache").glob("*.safetensors"))
    assert len(cached) == 3
    for path in cached:
        path.write_bytes(path.read_bytes()[:20])
    assert torch.equal(make_clip().embed_text(["cat", "dog"]), first)
    assert len(calls) == 4, "a damaged file is made anew"
    assert torch.equal(make_clip().embed_text(["cat", "dog"]), first)
    assert len(calls) == 4
    assert not list((tmp_path / "cache").glob(".writing*"))


def test_other_weights_other_key(make_clip, clip_files: dict[str, str], tmp_path: Path) -> None:
    model = open_clip.create_model("test-vit")
    other = tmp_path / Path(clip_files["test-vit"]).name
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, other)
    one, two = make_clip(), make_clip(weights=str(other))
    assert one.id == two.id
    assert one.hash != two.hash
    assert not torch.allclose(one.embed_text(["cat"]), two.embed_text(["cat"]))


def test_two_vocabularies_alternate(make_clip) -> None:
    vlm = make_clip()
    first, second = vlm.embed_text(["cat"]), vlm.embed_text(["dog", "cat"])
    assert torch.allclose(vlm.embed_text(["cat"]), second[1:], atol=1e-6)
    assert torch.equal(vlm.embed_text(["cat"]), first)


@pytest.mark.parametrize("names", [[], ["cat", " "]])
def test_empty_names_are_refused(make_clip, names: list[str]) -> None:
    with pytest.raises(ValueError, match="must not be empty"):
        make_clip().embed_text(names)
