"""OpenClipVLM's prompt templates, names and cache."""

from __future__ import annotations

from pathlib import Path

import open_clip
import pytest
import torch
import torch.nn.functional as F
from clip_cases import TOWERS
from safetensors.torch import save_file

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


def test_other_weights_other_key(make_clip, clip_files: dict[str, str], tmp_path: Path) -> None:
    model = open_clip.create_model("test-vit")
    other = tmp_path / Path(clip_files["test-vit"]).name
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, other)
    one, two = make_clip(), make_clip(weights=str(other))
    assert one.id == two.id
    assert one.hash != two.hash
    assert not torch.allclose(one.embed_text(["cat"]), two.embed_text(["cat"]))


def test_names_that_the_tokenizer_loses_are_told(make_clip) -> None:
    assert make_clip().unread(["cat", "&nbsp;", "\u0e41\u0e21\u0e27"]) == ["&nbsp;"]


@pytest.mark.parametrize("names", [[], ["cat", " "]])
def test_empty_names_are_refused(make_clip, names: list[str]) -> None:
    with pytest.raises(ValueError, match="must not be empty"):
        make_clip().embed_text(names)
