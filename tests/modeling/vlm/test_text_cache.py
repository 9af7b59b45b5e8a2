"""Prototypes in memory and on disk: each name by itself, and no more than a bounded number."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from alignzeg.modeling.vlm import OpenClipVLM, text_cache
from alignzeg.modeling.vlm.text_cache import TextCache


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names that a text encoder has read."""
    names: list[str] = []
    honest = OpenClipVLM._prototype
    monkeypatch.setattr(
        OpenClipVLM, "_prototype", lambda self, name: names.append(name) or honest(self, name)
    )
    return names


def test_one_more_class_costs_one_name(make_clip, tmp_path: Path, asked: list[str]) -> None:
    vlm = make_clip()
    first = vlm.embed_text(["cat", "dog"])
    assert vlm.embed_text(["cat", "dog"]) is first, "a step makes no copy"
    assert torch.equal(make_clip().embed_text(["cat", "dog"]), first), "disk"
    assert torch.equal(vlm.embed_text(["dog", "bird", "cat"])[[2, 0]], first), "to the bit"
    both = vlm.embed_text(["cat; dog"])
    torch.testing.assert_close(both[0], F.normalize(first.mean(0), dim=0))
    assert asked == ["cat", "dog", "bird"]
    make_clip(templates=["{}"]).embed_text(["cat"])
    assert asked[3:] == ["cat"], "templates are in the key"
    cached = sorted((tmp_path / "cache").iterdir())
    assert len(cached) == 2
    for path in cached:
        path.write_bytes(path.read_bytes()[:20])
    assert torch.equal(make_clip().embed_text(["cat", "dog"]), first)
    assert asked[4:] == ["cat", "dog"], "a damaged file is made anew"
    make_clip().embed_text(["cat", "dog"])
    assert len(asked) == 6 and len(list((tmp_path / "cache").iterdir())) == 2


def test_visitors_fill_neither_memory_nor_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_cache, "MOST_NAMES", 20)
    calls: list[str] = []

    def make(name: str) -> torch.Tensor:
        calls.append(name)
        return F.normalize(torch.tensor([len(calls), 1.0, 2.0]), dim=0)

    cache = TextCache(tmp_path, {"of": "the test"}, 3)
    for visitor in range(50):
        cache.get([f"name {visitor}", "__metadata__"], make)
    assert len(calls) == 51, "what is asked for again and again is not forgotten"
    assert len(cache._rows) <= 20 and len(cache._lists) <= 16
    (path,) = tmp_path.iterdir()
    size = path.stat().st_size
    cache.get([f"other {i}" for i in range(50)], make)
    assert path.stat().st_size == size and len(list(tmp_path.iterdir())) == 1
    again = TextCache(tmp_path, {"of": "the test"}, 3)
    assert torch.equal(again.get(["__metadata__"], make), cache.get(["__metadata__"], make))


def test_two_processes_keep_each_others_names(tmp_path: Path) -> None:
    caches = [TextCache(tmp_path, {}, 2) for _ in range(2)]
    for number, cache in enumerate(caches):
        cache.get([f"name {number}"], lambda _: torch.tensor([1.0, 0.0]))
    fresh = TextCache(tmp_path, {}, 2)
    with pytest.raises(ZeroDivisionError):
        fresh.get(["name 0", "name 1", "name 2"], lambda name: 1 / 0)
    assert fresh.get(["name 0", "name 1"], lambda name: 1 / 0).shape == (2, 2)
