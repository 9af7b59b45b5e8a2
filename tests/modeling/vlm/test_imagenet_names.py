"""ImageNetVLM's names: embedded as by a loop, cached, counted."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tiny_imagenet import CHANNELS, LONGEST
from torch import Tensor

from alignzeg.data.lint import pitfalls
from alignzeg.modeling.vlm.classifier import IMAGENET_NAMES
from alignzeg.modeling.vlm.sentences import SentenceEncoder
from alignzeg.structures import Vocabulary


def naive_sentence(folder: Path, sentence: str) -> Tensor:
    """One sentence at a time, by transformers' own classes: the mean of its tokens."""
    from transformers import BertModel, PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    network = BertModel.from_pretrained(folder).eval()
    with torch.no_grad():
        states = network(**tokenizer(sentence, return_tensors="pt")).last_hidden_state[0]
    return F.normalize(states.mean(dim=0), dim=0)


def test_embed_text_is_the_naive_loop(make_imagenet, imagenet_files: Path) -> None:
    templates = ["a {}", "my {}"]
    vlm = make_imagenet(templates=templates)
    wanted = []
    for names in (["cat"], ["sofa", "bed"]):
        each = [
            F.normalize(
                sum(
                    naive_sentence(imagenet_files / "sentences", t.format(name)) for t in templates
                ),
                dim=0,
            )
            for name in names
        ]
        wanted.append(F.normalize(F.normalize(sum(each), dim=0) - vlm.text_mean, dim=0))
    text = vlm.embed_text(["cat", "sofa; bed"])
    torch.testing.assert_close(text, torch.stack(wanted), rtol=1e-4, atol=1e-5)
    assert text.shape == (2, vlm.embed_dim) == (2, CHANNELS)
    assert not text.requires_grad
    torch.testing.assert_close(text[:1], vlm.embed_text(["cat"]), rtol=1e-4, atol=1e-5)


def test_the_mean_is_that_of_imagenets_names(make_imagenet) -> None:
    vlm = make_imagenet()
    assert len(IMAGENET_NAMES) == 1000 and IMAGENET_NAMES[281] == "tabby"
    raw = vlm._sentence_embeds(list(IMAGENET_NAMES))
    torch.testing.assert_close(vlm.text_mean, raw.mean(dim=0))
    torch.testing.assert_close(
        vlm.embed_text(list(IMAGENET_NAMES[:5])), F.normalize(raw[:5] - vlm.text_mean, dim=-1)
    )


def test_a_step_never_reads_a_sentence_again(
    make_imagenet, monkeypatch: pytest.MonkeyPatch
) -> None:
    vlm = make_imagenet()
    first = vlm.embed_text(["cat", "dog"])

    def fail(*_: object) -> None:
        raise AssertionError("the sentence encoder was run")

    monkeypatch.setattr(SentenceEncoder, "encode", fail)
    monkeypatch.setattr(SentenceEncoder, "network", fail)
    assert torch.equal(vlm.embed_text(["cat", "dog"]), first), "memory"
    again = make_imagenet()
    assert torch.equal(again.embed_text(["cat", "dog"]), first), "disk"
    assert torch.equal(again.to_text, vlm.to_text)
    assert torch.equal(again.embed_text(["dog", "cat"]), first.flip(0)), "each by itself"
    with pytest.raises(AssertionError, match="was run"):
        again.embed_text(["cat", "bird"])
    with pytest.raises(AssertionError, match="was run"):
        make_imagenet(templates=["{}"])


def test_a_damaged_cache_is_made_anew(make_imagenet, tmp_path: Path) -> None:
    first = make_imagenet(cache_dir=str(tmp_path))
    text = first.embed_text(["cat"])
    cached = sorted(tmp_path.glob("*.safetensors"))
    assert len(cached) == 1, "ImageNet's names and the cat"
    for path in cached:
        path.write_bytes(path.read_bytes()[:30])
    second = make_imagenet(cache_dir=str(tmp_path))
    torch.testing.assert_close(second.to_text, first.to_text)
    torch.testing.assert_close(second.embed_text(["cat"]), text)
    assert all(path.stat().st_size > 30 for path in cached)


@pytest.mark.parametrize("names", [[], ["cat", " "]])
def test_empty_names_are_refused(make_imagenet, names: list[str]) -> None:
    with pytest.raises(ValueError, match="must not be empty"):
        make_imagenet().embed_text(names)


def test_tokens_are_counted_and_cut_off(make_imagenet) -> None:
    vlm = make_imagenet(templates=["{}", "a {}"])
    # Letters are the words of the tiny tokenizer; start, end and the template's "a" are three more.
    assert vlm.token_counts(["cat", "c" * 40]) == [6, 43]
    assert vlm.context_length == LONGEST
    short, long = vlm.embed_text(["c" * 30, "c" * 30 + "xyz"])
    torch.testing.assert_close(short, long)


def test_names_in_another_script_are_told(make_imagenet) -> None:
    """The tiny encoder reads Latin letters; predict and the page say it, as `pitfalls` does."""
    vlm = make_imagenet(templates=["{}"])
    names = ("cat", "\u0e41\u0e21\u0e27", "\u0e23\u0e16", "red \u732b")
    assert vlm.unread(names) == list(names[1:])
    unreadable, same = pitfalls(Vocabulary(names, (True,) * 4), vlm)
    assert unreadable.startswith("unreadable: the text encoder has no tokens for (a part of)")
    assert all(repr(name) in unreadable for name in names[1:])
    assert same.startswith(f"same: {names[1]!r}, {names[2]!r} are one and the same")
    assert pitfalls(Vocabulary(("cat", "dog"), (True, True)), vlm) == []
    # Two names that differ behind what the encoder reads.
    long = tuple(f"{'c' * 40} {end}" for end in "ab")
    found = pitfalls(Vocabulary(long, (True, True)), vlm)
    assert [line.split(":")[0] for line in found] == ["too long", "too long", "same"]
